"""Results in notebooks and on paper: coloured text by `show`, the HTML view and figures, with the page's colours."""

from __future__ import annotations

import re

import matplotlib as mpl
import numpy as np
import pytest
import torch
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import CoarseFeatureAttributionSequenceOutput
from inseq.utils.typing import TokenWithId
from matplotlib.colors import to_hex
from playwright.sync_api import expect
from transformers import AutoModelForCausalLM, AutoTokenizer

from attribution.results import heatmap_view
from attribution_client import AttributionClient, plot_attribution_heatmap, plot_highlighted_text
from attribution_reading.palette import LIGHT, shade
from attribution_reading.text_units import UNITS
from attribution_schema.view_options import ViewOptions
from tests import chat_models
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.page import opened_job

mpl.use("Agg")
MESSAGES = [{"role": "user", "content": "The quick brown fox.\n\nIt jumps $ over é 漢字"}]


@pytest.fixture(scope="module")
def client(server):
    with AttributionClient(server.url) as made:
        yield made


@pytest.fixture(scope="module")
def chat(server, client, model_dir):
    """The id of a conversation's job, and its result."""
    if not (folder := model_dir / "chat-qwen2").exists():
        chat_models.build("chat-qwen2", folder)
    job_id = server.run(
        model="chat-qwen2", method="input_x_gradient", messages=MESSAGES, generated_text=" The lazy dog jumps."
    )
    return job_id, client.results(job_id, decode_tokens=True, aggregator="sum")


# The text, the background and the ink of each coloured token.
COLOURED = """all => all.map(each => {
  const pen = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
  const read = name => {
    pen.fillStyle = getComputedStyle(each)[name]; pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  return [each.textContent, read('backgroundColor'), read('color')];
})"""


@pytest.mark.parametrize("column", [None, 2])
def test_show_draws_what_the_page_draws(server, chat, open_page, tmp_path, column):
    job_id, result = chat
    page = open_page(server, f"/#/jobs/{job_id}?agg=sum{'' if column is None else f'&pos={column}'}")
    opened_job(page)
    expected = page.locator(".tokens .token.heat:not(.none)").evaluate_all(COLOURED)
    roles = page.locator(".role").all_inner_texts()
    bars = page.locator(".strongest li").all_inner_texts()
    result.show(token=column).save(tmp_path / "shown.html")
    page.goto("about:blank")  # the page's own style must not be there
    page.set_content((tmp_path / "shown.html").read_text(encoding="utf-8"))
    assert page.locator(".role").all_inner_texts() == roles
    drawn = page.locator(".tokens .token.heat").evaluate_all(COLOURED)
    assert [text for text, *_ in drawn] == [text for text, *_ in expected]
    for (text, background, ink), (_, other_background, other_ink) in zip(drawn, expected, strict=True):
        # 50 shades here and any share there: half of the largest step between two shades.
        assert all(abs(a - b) <= 4 for a, b in zip(background, other_background, strict=True)), text
        assert ink == other_ink or max(abs(a - b) for a, b in zip(background, other_background, strict=True)) > 0
    found = page.locator(".bars li").all_inner_texts()
    blank = {"␣": "space", "⏎": "line feed"}  # the page has signs with a name for screen readers
    names = [each.split("\n")[0] for each in found]
    assert [blank.get(each, each) for each in names] == [each.split("\n")[0] for each in bars]


CHAT = {
    "model": "chat-qwen2",
    "messages": [{"role": "user", "content": "The quick brown"}],
    "generated_text": " fox jumps over",
}
PLAIN = {"model": LOOKUP, "input_text": PROMPT, "generated_text": f"{PROMPT} tea. Ben likes milk."}
SEQ2SEQ = {"model": PHRASEBOOK, "input_text": SENTENCE}
TWO_SPANS = {"spans": [{"text": "fox", "name": "animal"}, {"text": "over", "name": "place"}]}
BLOCKS = {
    "a later token": (PLAIN | {"attr_pos_start": 13}, [("Prompt", PROMPT), ("Generated text", " tea. Ben likes milk.")]),
    "a contrast": (
        PLAIN | {
            "attr_pos_start": 14, "attr_pos_end": 15, "attributed_fn": "contrast_prob_diff",
            "attributed_fn_args": {"contrast_targets": f"{PROMPT} tea. Ben likes tea."},
        },
        [("Prompt", PROMPT), ("Generated text", " tea. Ben likes milk.")],
    ),
    "spans": (
        PLAIN | {"spans": [{"text": "tea.", "name": "first"}, {"text": "milk.", "name": "second"}]},
        [("Prompt", PROMPT), ("Generated text", " tea. Ben likes milk."), ("Spans", "firstsecond")],
    ),
    "spans of a conversation": (
        CHAT | TWO_SPANS,
        [("user", "<|im_start|>user\nThe quick brown<|im_end|>\n"),
         ("assistant", "<|im_start|>assistant\n fox jumps over"), ("Spans", "animalplace")],
    ),
    "a span of a translation": (SEQ2SEQ | {"spans": [{"name": "all of it"}]}, [("Source", None), ("Target", None), ("Spans", "all of it")]),
}  # fmt: skip


@pytest.mark.usefixtures("chat")  # its model
@pytest.mark.parametrize("name", BLOCKS)
def test_each_part_of_a_text_is_under_its_title(server, client, open_page, name):
    """The same on the page, in the HTML view, in a notebook and in a figure, also in units of text."""
    body, expected = BLOCKS[name]
    job_id = server.run(method="saliency", **body)
    page = open_page(server, f"/#/jobs/{job_id}")
    opened_job(page)
    documents = [
        server.client.get(f"/attribution/jobs/{job_id}/results", params={"format": "html"} | more).text
        for more in ({}, {"aggregator": "words"}, {"aggregator": "messages"})
    ]
    result = client.results(job_id, decode_tokens=True)
    documents += [result.show().html, result.show(merge="words").html]
    for document in (None, *documents):
        if document is not None:
            page.goto("about:blank")
            page.set_content(document)
        found = page.locator(".block").evaluate_all(
            "all => all.map(each => [each.querySelector('.role').textContent, each.querySelector('.tokens').textContent])"
        )
        assert [title for title, _ in found] == [title for title, _ in expected]
        assert all(text == other for (_, text), (_, other) in zip(found, expected, strict=True) if other is not None)
        assert page.locator(".block .generated").count() > 0
        if expected[-1][0] == "Spans":  # and they are no running text
            gaps = page.locator(".block .span").evaluate_all(
                "all => all.slice(1).map((each, i) => { const [a, b] = [all[i], each].map(e => e.getBoundingClientRect());"
                " return b.top >= a.bottom || b.left - a.right > 4; })"
            )
            assert all(gaps)
    drawn = [each.get_text() for each in plot_highlighted_text(result).texts]
    titles = [drawn.index(title) for title, _ in expected]
    assert titles == sorted(titles)
    if name == "spans":
        rows = {each.get_text(): each.get_position()[1] for each in plot_highlighted_text(result).texts}
        assert rows["Spans"] < rows["first"] < rows["second"]


def sums(sequence):
    """The scores for the whole answer, of the tokens before it."""
    start = sequence.attr_pos_start
    return [sum(each for each in row if each is not None) for row in sequence.target_attributions[:start]]


def test_show_says_the_strongest_tokens_in_a_terminal(client):
    result = client.attribute(LOOKUP, "saliency", PROMPT, view={"decode_tokens": True})
    (sequence,) = result.sequence_attributions
    assert repr(result) == f"<saliency of {LOOKUP}: 1 text; show() draws it>"
    lines = repr(result.show()).splitlines()
    assert lines[0] == f"saliency of {LOOKUP}"
    scores = [row[0] for row in sequence.target_attributions if row[0] is not None]
    best = max(range(len(scores)), key=scores.__getitem__)
    assert lines[1].startswith(f"  'tea': {sequence.target[best].text.strip()!r} {max(scores):.2g}, ")
    assert len(lines) == 1 + len(sequence.target_attributions[0])
    with pytest.raises(IndexError):
        result.show(token=99)
    granular = client.results(client.submit(result.info["arguments"] and request_of(client), reuse=True), granular=True)
    assert granular._repr_html_() is None  # the notebook then writes its repr
    with pytest.raises(ValueError, match="granular"):
        granular.show()


def request_of(client):
    return next(iter(client.jobs(model=LOOKUP, method="saliency"))).request


def test_show_escapes_what_a_token_contains(client):
    text = "Anna <script>alert(1)</script> <b>\u202e likes"
    html = client.attribute(LOOKUP, "saliency", text, view={"decode_tokens": True}).show().html
    assert "<script" not in html
    assert "U+202E" in html
    assert "\u202e" not in html


def test_a_result_of_spans_opens_on_the_first(client, server, open_page, tmp_path):
    """They may overlap, so that their sum is nobody's score: on the page, in the HTML view, by `show` and in figures."""
    whole = "Anna likes tea. Ben likes milk. Anna likes tea. Ben likes milk."
    job_id = server.run(
        model=LOOKUP, method="input_x_gradient", input_text=PROMPT, generated_text=whole,
        spans=[{"name": "drink", "text": " tea", "occurrence": -1}, {"name": "all"}],
    )  # fmt: skip
    result = client.results(job_id, decode_tokens=True)
    (sequence,) = result.sequence_attributions
    first = {at: row[0] for at, row in enumerate(sequence.target_attributions) if row[0] is not None}
    best = sequence.target[max(first, key=lambda at: abs(first[at]))].text.strip()
    for html in (result.show().html, client.view(job_id, "html").decode()):
        assert "this span" in html
        assert "“drink” depended most on" in html
        assert "whole answer" not in html
    assert repr(result.show()).splitlines()[1].startswith(f"  'drink': {best!r}")
    page = open_page(server, f"/#/jobs/{job_id}")
    opened_job(page)
    expect(page.locator(".legend").first).to_contain_text("this span")
    expect(page.locator(".strongest li").first).to_contain_text(best)
    controls = page.get_by_role("group", name="Selection")
    expect(controls.get_by_role("button")).to_have_count(3)  # the strongest, the one before and the one after
    expect(controls.get_by_role("button", name="Next span")).to_be_enabled()
    # Generated tokens are no rows of `plot_highlighted_text`'s scale: the first span's colours are on the figure.
    largest = max(abs(each) for at, each in first.items())
    strongest = shade(LIGHT.zero, LIGHT.end(largest), 1.0)
    assert strongest in [to_hex(each.get_facecolor()) for each in plot_highlighted_text(result).patches]


def test_a_comparison_shows_each_method(client):
    compared = client.compare(PHRASEBOOK, ["saliency", "occlusion"], SENTENCE, view={"decode_tokens": True})
    html = compared._repr_html_()
    assert html.count('<div class="attribution-result">') == 2
    assert repr(compared) == "<comparison of saliency, occlusion; show() draws it>"


def test_a_merge_in_the_client_is_the_servers(client, chat):
    job_id, result = chat
    for unit in UNITS:
        theirs = client.results(job_id, decode_tokens=True, aggregator=f"sum,{unit}").sequence_attributions[0]
        ax = plot_attribution_heatmap(result, merge=unit, annotate=False)
        expected = np.array(theirs.target_attributions, float)
        visible = expected[~np.isnan(expected).all(axis=1)]
        found = np.ma.filled(ax.collections[0].get_array(), np.nan).reshape(visible.shape)
        power = round(float(np.log10(np.nanmax(np.abs(visible)) / np.nanmax(np.abs(found)))))
        # Sums of float32 in another order: rounded by the largest one.
        np.testing.assert_allclose(found * 10.0**power, visible, rtol=1e-5, atol=1e-6 * np.nanmax(np.abs(visible)))
    with pytest.raises(ValueError, match="There is no unit 'verses'"):
        result.show(merge="verses")


def test_a_heatmap_of_a_part(client, chat):
    _, result = chat
    (sequence,) = result.sequence_attributions
    scores = np.array(sequence.target_attributions, float)
    template = [bool(each.template or each.special) for each in sequence.target[: len(scores)]]
    size = np.nan_to_num(np.abs(scores)).max(axis=1)
    kept = sorted(sorted((i for i in range(len(scores)) if not template[i]), key=lambda each: -size[each])[:5])
    ax = plot_attribution_heatmap(result, top=5, hide_template=True)
    found = np.ma.filled(ax.collections[0].get_array(), np.nan).reshape(5, -1)
    ratio = scores[kept] / found
    np.testing.assert_allclose(ratio[np.isfinite(ratio)], np.nanmedian(ratio), rtol=1e-4)
    assert len(plot_attribution_heatmap(result, rows=slice(2, 6)).get_yticklabels()) == 4
    with pytest.raises(ValueError, match="No attributed token is left"):
        plot_attribution_heatmap(result, rows=[])


def test_highlighted_text_has_the_words_and_their_colours(client, chat, tmp_path):
    _, result = chat
    (sequence,) = result.sequence_attributions
    ax = plot_highlighted_text(result, hide_template=True)
    texts = [each.get_text() for each in ax.texts]
    joined = "".join(texts[1 : texts.index("assistant")])
    assert joined.replace(" ", "") == "".join(MESSAGES[0]["content"].split())
    assert not any(each.get_parse_math() for each in ax.texts)  # a dollar sign is a letter
    kept = [
        (token, score)
        for token, score in zip(sequence.target, sums(sequence), strict=False)
        if not (token.template or token.special or token.continues) and token.text.strip()
    ]
    largest = max(abs(score) for _, score in kept)
    colours = [to_hex(each.get_facecolor()) for each in ax.patches]
    for _, score in kept:
        assert shade(LIGHT.zero, LIGHT.end(score), round(abs(score) / largest, 2)) in colours
    right = max(each.get_x() + each.get_width() for each in ax.patches)
    assert right <= 6.5 + 1e-6  # inches
    for kind in ("svg", "pdf"):
        ax.figure.savefig(tmp_path / f"text.{kind}")
    assert (tmp_path / "text.pdf").read_bytes().startswith(b"%PDF")
    # Lines end between words, also where a word consists of several tokens.
    drawn = {}
    for each in plot_highlighted_text(result, width=1.2).texts:
        drawn.setdefault(each.get_position()[1], []).append(each.get_text())
    drawn = ["".join(line) for line in drawn.values()]
    assert len(drawn) > len({each.get_position()[1] for each in ax.texts})  # than on the wide page
    assert [word for word in MESSAGES[0]["content"].split() if not any(word in line for line in drawn)] == []
    with pytest.raises(ValueError, match="only step scores"):
        plot_highlighted_text(client.attribute(LOOKUP, "dummy", PROMPT, step_scores=["probability"]))


def sharp(model_dir, factor):
    """A model that is sure of its next token: its logits are `factor` times those of the bundled one."""
    if not (folder := model_dir / f"sharp-{factor}").exists():
        model = AutoModelForCausalLM.from_pretrained(BUNDLED / LOOKUP)
        with torch.no_grad():
            model.transformer.ln_f.weight *= factor
            model.transformer.ln_f.bias *= factor
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(BUNDLED / LOOKUP).save_pretrained(folder)
    return {"model": folder.name, "input_text": PROMPT, "generated_text": f"{PROMPT} Ben Ben milk"}


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient"])
def test_infinite_scores_are_told_and_drawn_as_none(server, model_dir, method):
    """The norm of the gradient of a large perplexity is beyond the largest float."""
    job_id = server.run(method=method, attributed_fn="perplexity", **sharp(model_dir, 4))
    result = server.result(job_id, normalize=False)
    (sequence,) = result["sequence_attributions"]
    cells = [value for row in sequence["target_attributions"][: sequence["attr_pos_start"]] for value in row]
    infinite = cells.count(None)
    assert 0 < infinite < len(cells)
    told = f"{infinite} of {len(cells)} scores are infinite, which JSON writes as null. Ask for"
    assert [each for each in result["info"]["warnings"] if each.startswith(told)]
    for more in ({}, {"normalize": "false"}, {"normalize": "false", "aggregator": "words"}):
        answer = server.client.get(f"/attribution/jobs/{job_id}/results", params={"format": "html"} | more)
        assert answer.status_code == 200
        numbers = [float(each.replace("\u2212", "-")) for each in re.findall(r'class="number">([^<]*)<', answer.text)]
        assert numbers
        assert np.isfinite(numbers).all()


def test_infinite_step_scores_are_told(server, model_dir):
    job_id = server.run(method="saliency", step_scores=["perplexity"], **sharp(model_dir, 7))
    result = server.result(job_id)
    assert result["sequence_attributions"][0]["step_scores"]["perplexity"].count(None) == 2
    assert [
        each for each in result["info"]["warnings"] if each.startswith("2 of 3 values of perplexity are infinite, ")
    ]


def test_a_long_text_is_a_page_that_fits_paper(open_page, server):
    """210 tokens by 30: at most 2 MB, no wider than A4, numbers in titles alone."""
    generator = torch.Generator().manual_seed(0)
    target = [TokenWithId(f"Ġword{index}", index) for index in range(240)]
    scores = torch.rand((240, 30), generator=generator)
    later = torch.arange(240)[:, None] >= torch.arange(30)[None, :] + 210
    scores[later] = torch.nan
    sequence = CoarseFeatureAttributionSequenceOutput(
        source=target[:210], target=target, target_attributions=scores, sequence_scores={},
        step_scores={"probability": torch.arange(30) / 30, "entropy": -torch.arange(30) / 3},
        attr_pos_start=210, attr_pos_end=240,
    )  # fmt: skip
    output = FeatureAttributionOutput([sequence], None, {})
    document = heatmap_view.html_view(output, ViewOptions())
    assert len(document) < 2_000_000
    page = open_page(server, "/docs", viewport={"width": 794, "height": 1123})
    page.goto("about:blank")
    page.emulate_media(media="print")
    page.set_content(document.decode())
    expect(page.locator("td.score")).to_have_count(int((~later).sum()))
    assert page.evaluate("document.documentElement.scrollWidth") <= 794
    assert page.locator("td.score").first.inner_text() == ""
    row = page.locator("tbody tr").filter(has=page.locator("td.score")).last
    assert row.bounding_box()["height"] < 16
    steps = page.locator("tr").filter(has=page.locator("th.step"))
    assert [each.split() for each in steps.all_inner_texts()] == [
        ["probability", *(f"{index / 30:.2f}" for index in range(30))],
        ["entropy", *(f"{-index / 3:.2f}".replace("-0.00", "0.00").replace("-", "\u2212") for index in range(30))],
    ]


def test_what_is_summed_is_named(client, chat, server):
    """The answer's two words, of more tokens, in the HTML view and in a notebook."""
    job_id, result = chat
    words = client.results(job_id, decode_tokens=True, aggregator="sum,words").sequence_attributions[0]
    count = words.attr_pos_end - words.attr_pos_start
    tokens = len(result.sequence_attributions[0].target_attributions[0])
    assert count < tokens
    for aggregator, told in {"sum,words": f"sum of {count} words", "sum": f"sum of {tokens} tokens"}.items():
        view = server.client.get(
            f"/attribution/jobs/{job_id}/results", params={"format": "html", "aggregator": aggregator}
        )
        assert f">{told}<" in view.text
    assert f">sum of {count} words<" in result.show(merge="words").html
    assert ">this word<" in result.show(merge="words", token=0).html
    assert ">this token<" in result.show(token=0).html
