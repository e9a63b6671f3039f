"""The page at `/` in a real browser: drawing, comparing, reading and downloading results."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from attribution_reading.palette import DARK, LIGHT, shade
from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.page import (
    address,
    assert_drawn,
    attributions,
    expect_equal,
    expect_number,
    expect_values,
    field,
    opened_job,
)
from tests.serving import until

HOSTILE = "<script>window.harmed=1</script>"
IMAGE = "<img/src=x/onerror=window.harmed=1>"


def test_the_first_result_is_one_click_away_and_its_numbers_are_the_servers(served, open_page):
    page = open_page(served)
    page.get_by_role("button", name="Attribute", exact=True).click()
    job_id = opened_job(page)
    job = served.job(job_id)
    assert (job["request"]["model"], job["request"]["input_text"]) == (LOOKUP, PROMPT)
    result = served.result(job_id)
    assert_drawn(page, attributions(result))
    (sequence,) = result["sequence_attributions"]
    start = sequence["attr_pos_start"]
    # The whole answer is selected: each token of the prompt has the sum of its scores, coloured by its share of the largest.
    expect(page.get_by_role("button", name="Whole answer")).to_have_attribute("aria-pressed", "true")
    sums = [sum(row) for row in sequence["target_attributions"][:start]]
    assert lit(page)[:start] == [(pytest.approx(each), pytest.approx(each / max(sums), abs=1e-4)) for each in sums]
    expect(page.locator(".strongest")).to_contain_text("The whole answer depended most on")
    # One key away is the token with the strongest score, with the scores of the tokens before it.
    page.get_by_role("button", name="Strongest token").click()
    column = max(
        range(len(sequence["target_attributions"][0])),
        key=lambda each: max(row[each] or 0 for row in sequence["target_attributions"]),
    )
    chosen = page.locator('.tokens .token[aria-pressed="true"]')
    expect(chosen).to_have_attribute("data-column", str(column))
    scores = [row[column] for row in sequence["target_attributions"][: start + column]]
    assert lit(page)[: start + column] == [(each, pytest.approx(each / max(scores), abs=1e-4)) for each in scores]
    bars = page.locator(".strongest .number").evaluate_all("all => all.map(each => Number(each.dataset.value))")
    assert bars == sorted(scores, reverse=True)[: len(bars)]
    expect_values(page.locator("td.bar"), sequence["step_scores"]["probability"])


def lit(page):
    """The score and the share of the largest one of each token of the text."""
    found = page.locator(".tokens .token").evaluate_all(
        "all => all.map(each => [Number(each.dataset.value), Number(each.style.getPropertyValue('--w'))])"
    )
    return [tuple(each) for each in found]


def test_a_translation_token_by_token(served, open_page):
    page = open_page(served)
    page.get_by_role("button", name="English to Italian").click()
    expect(page.locator(".estimate")).to_have_text(re.compile(r"on cpu: \d+ passes, \d+ MB"))
    page.get_by_role("button", name="Attribute", exact=True).click()
    job_id = opened_job(page)
    (sequence,) = served.result(job_id)["sequence_attributions"]
    source, target = page.get_by_label("Source: tokens"), page.get_by_label("Target: tokens")
    expect(source.locator(".token")).to_have_text(["the", "red", "cat", "sees", "a", "dog", "</s>"])
    target.get_by_role("button", name="rosso").click()
    column = [token["token"] for token in sequence["target"]].index("▁rosso") - sequence["attr_pos_start"]
    expect_values(source.locator(".token"), [row[column] for row in sequence["source_attributions"]])
    assert f"pos={column}" in address(page)
    source.get_by_role("button", name="red").hover()
    expect(page.locator(".hovered-score")).to_have_text(
        f"“\u2068red\u2069” → “\u2068rosso\u2069”: {sequence['source_attributions'][1][column]}"
    )
    # The other direction: the generated tokens that a source token contributed to.
    source.get_by_role("button", name="red").click()
    expect_values(target.locator(".generated"), sequence["source_attributions"][1])
    expect(page.locator(".strongest")).to_contain_text("contributed most to")


def test_a_contrast_is_an_example_too(served, open_page):
    page = open_page(served)
    page.get_by_role("button", name="Why tea and not milk?").click()
    expect(field(page, "/attributed_fn_args/contrast_targets")).to_have_value(f"{PROMPT} milk")
    page.get_by_role("button", name="Attribute", exact=True).click()
    result = served.result(opened_job(page))
    assert result["info"]["arguments"]["attributed_fn"] == "contrast_prob_diff"
    assert_drawn(page, attributions(result))


def test_aggregation_and_normalisation_are_the_servers_and_in_the_address(served, open_page):
    job_id = served.run(model=PHRASEBOOK, method="input_x_gradient", input_text=[SENTENCE, "a dog sees the cat"])
    page = open_page(served, f"/#/jobs/{job_id}")
    assert opened_job(page) == job_id
    page.get_by_role("button", name="Sentences").click()
    expect(page.locator("tbody th.source")).to_have_count(2)
    assert_drawn(page, attributions(served.result(job_id, aggregator="sentences")))
    page.get_by_role("button", name="Custom…").click()
    page.get_by_role("button", name="Remove step 1").click()
    page.get_by_role("button", name="Custom…").click()
    # A step is empty until it has an aggregator, so that the view stays.
    for number, name in enumerate(("subwords", "scores"), 1):
        page.get_by_role("button", name="Add a step").click()
        page.get_by_label(f"Step {number}: aggregator").select_option(name)
        expect(page.get_by_label(f"Step {number}: function")).to_be_visible()
    assert_drawn(page, attributions(served.result(job_id, aggregator="subwords,scores")))
    page.get_by_label("Step 1: function").select_option("sum")
    page.get_by_label("Normalise").select_option("false")
    page.get_by_label("Text", exact=True).select_option("1")
    parameters = {"aggregator": "subwords,scores", "aggregate_fn": "sum,", "normalize": False}
    expected = attributions(served.result(job_id, **parameters), sequence=1)
    expect_number(page, "td[data-row='0'][data-column='0']", expected[0][0])
    assert_drawn(page, expected)
    # Opening the address shows the same view.
    again = open_page(served, address(page).removeprefix(served.url))
    assert opened_job(again) == job_id
    assert_drawn(again, expected)
    # An aggregation that fails shows the problem and a way back.
    page.get_by_label("Step 2: aggregator").select_option("slices")
    expect(page.get_by_role("alert").first).to_be_visible()
    expect(page.locator(".shown[inert]")).to_be_visible()  # what was shown stays below the error
    page.get_by_role("button", name="Back to the default view").click()
    expect(page.locator("tbody th.source").last).to_have_text("</s>")


def test_other_scores_of_a_sequence_have_a_table_each(served, open_page):
    job_id = served.run(model=PHRASEBOOK, method="attention", input_text=SENTENCE)
    (sequence,) = served.result(job_id)["sequence_attributions"]
    page = open_page(served, f"/#/jobs/{job_id}?table=no")
    opened_job(page)
    for name, scores in sequence["sequence_scores"].items():
        fold = page.locator("details.all", has_text=name)
        fold.locator("summary").click()
        expect(fold.locator("tbody tr")).to_have_count(len(scores))
        read = "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => JSON.parse(cell.dataset.value ?? null)))"
        expect_equal(lambda fold=fold, read=read: fold.locator("tbody tr").evaluate_all(read), scores)
    assert len(sequence["sequence_scores"]) == 2


def test_signed_scores_have_a_diverging_scale(served, open_page):
    job_id = served.run(model=LOOKUP, method="input_x_gradient", input_text=PROMPT)
    scores = attributions(served.result(job_id, aggregator="sum"))
    assert any(value < 0 for row in scores for value in row if value is not None)
    page = open_page(served, f"/#/jobs/{job_id}?agg=sum")
    opened_job(page)
    assert_drawn(page, scores)
    signs = page.locator("td[data-value]").evaluate_all(
        "all => all.map(cell => (Number(cell.dataset.value) < 0) === cell.classList.contains('less'))"
    )
    assert all(signs)
    largest = max(abs(value) for row in scores for value in row if value is not None)
    low, high = (float(text) for text in page.locator(".all .legend .number").all_inner_texts())
    assert -low == high == pytest.approx(largest, rel=0.01)


def test_methods_are_compared_side_by_side(served, open_page):
    page = open_page(served)
    page.get_by_role("button", name="Three methods side by side").click()
    expect(page.locator("details.compare")).to_have_attribute("open", "")
    field(page, "/attribution_args/integrated_gradients/n_steps").fill("none")
    page.get_by_role("button", name="Attribute", exact=True).click()
    expect(field(page, "/attribution_args/integrated_gradients/n_steps")).to_be_focused()
    field(page, "/attribution_args/integrated_gradients/n_steps").fill("10")
    page.get_by_role("button", name="Attribute", exact=True).click()
    job_id = opened_job(page)
    methods = ["saliency", "integrated_gradients", "occlusion"]
    request = served.job(job_id)["request"]
    assert request["methods"] == methods
    assert request["attribution_args"]["integrated_gradients"] == {"n_steps": 10}
    result = served.result(job_id)
    # A token is selected for all methods; each shows its own scores.
    page.get_by_label("occlusion", exact=True).get_by_role("button", name="rosso").first.click()
    for entry in result["comparison"]:
        (sequence,) = entry["sequence_attributions"]
        column = [token["token"] for token in sequence["target"]].index("▁rosso") - sequence["attr_pos_start"]
        shown = page.get_by_label(entry["method"], exact=True).get_by_label("Source: tokens").locator(".token")
        expect_values(shown, [row[column] for row in sequence["source_attributions"]])
    drawn_agreement = page.locator(".agreement tbody tr").evaluate_all(
        "rows => rows.map(row => [row.querySelector('th').textContent,"
        " ...[...row.querySelectorAll('td')].map(cell => cell.dataset.value === undefined ? null : Number(cell.dataset.value))])"
    )
    names = ("spearman", "kendall", "top_overlap")
    assert drawn_agreement == [
        [" and ".join(each["methods"]), *(each[name] for name in names)] for each in result["agreement"]
    ]
    assert len(drawn_agreement) == 3
    axe = [each["id"] for each in Axe().run(page).response["violations"] if each["impact"] in {"serious", "critical"}]
    assert axe == []
    # One method alone, with its scores and download formats.
    page.get_by_role("button", name="integrated_gradients").click()
    expect(page.locator('table[role="grid"]')).to_have_count(1)
    assert_drawn(page, attributions(served.result(job_id, method="integrated_gradients")))
    expect(page.get_by_role("group", name="Download").get_by_role("link").nth(1)).to_be_visible()
    page.get_by_role("link", name="Edit and run again").click()
    expect(field(page, "/attribution_args/integrated_gradients/n_steps")).to_have_value("10")
    expect(page.locator("details.compare").get_by_label("occlusion")).to_be_checked()
    expect(page.locator(".estimate")).to_have_text(re.compile(r"on cpu: \d+ passes"))


def test_hostile_tokens_stay_text_and_scripts_of_all_kinds_are_shown(served, open_page):
    text = f"Anna {HOSTILE} {IMAGE} שלום עולם 你好 a\n\tb\u202e"
    job_id = served.run(model=LOOKUP, method="saliency", input_text=text, generation_args={"max_new_tokens": 1})
    page = open_page(served, f"/#/jobs/{job_id}?agg=subwords,scores")
    opened_job(page)
    shown = page.locator(".tokens").first.locator(".token")
    until(lambda: f" {HOSTILE}" in shown.all_text_contents())
    words = shown.all_text_contents()
    assert f" {IMAGE}" in words
    assert {" שלום", " עולם", " 你好"} <= set(words)
    signs = page.locator(".tokens .sign").evaluate_all("all => all.map(each => each.dataset.sign)")
    assert {"↵", "⇥", "U+202E"} <= set(signs)
    listed = page.locator(".jobs li").first.locator(".job-text")
    expect(listed).to_have_text(re.compile(re.escape(f"Anna {HOSTILE}")))
    assert page.locator(".tokens").first.get_attribute("dir") == "ltr"
    assert page.evaluate("window.harmed") is None
    assert page.locator("script:not([src])").count() == 0
    hebrew = served.run(model=LOOKUP, method="saliency", input_text="שלום עולם", generation_args={"max_new_tokens": 1})
    page.goto(f"{served.url}/#/jobs/{hebrew}?agg=subwords,scores")
    expect(page.locator(".tokens").first).to_have_attribute("dir", "rtl")


@pytest.mark.parametrize("style", ["heatmap", "inseq"])
def test_hostile_tokens_run_no_script_in_a_picture(served, open_page, style):
    text = f"Anna {HOSTILE} {IMAGE} </title></style><svg/onload=window.harmed=1>"
    job_id = served.run(
        model=LOOKUP, method="saliency", input_text=text, generation_args={"max_new_tokens": 1}, tags={"of": HOSTILE}
    )
    query = f"format=html&style={style}&aggregator=subwords,scores"
    page = open_page(served, f"/attribution/jobs/{job_id}/results?{query}")
    expect(page.locator("body")).to_contain_text("onerror=window.harmed")
    assert page.locator("script, img, svg").count() == 0
    assert page.evaluate("window.harmed") is None


def test_hostile_names_run_no_script_in_the_page(served, open_page):
    """Tags of a job, and a model's name that the server refuses and the page repeats."""
    job_id = served.run(
        model=LOOKUP, method="saliency", input_text=PROMPT, generation_args={"max_new_tokens": 1},
        tags={"of": HOSTILE, "and": IMAGE},
    )  # fmt: skip
    page = open_page(served, f"/#/jobs/{job_id}")
    opened_job(page)
    page.get_by_role("link", name="Edit and run again").click()
    field(page, "/model").fill(f"{HOSTILE}{IMAGE}")
    page.get_by_role("button", name="Attribute", exact=True).click()
    expect(page.get_by_text("This is no model name").first).to_be_visible()
    assert page.evaluate("window.harmed") is None
    assert page.locator("script:not([src]), img[src=x]").count() == 0


def test_the_colour_scale_is_the_servers(served, open_page):
    job_id = served.run(model=LOOKUP, method="input_x_gradient", input_text=PROMPT, reuse=True)
    page = open_page(served, f"/#/jobs/{job_id}?agg=sum")
    opened_job(page)
    drawn = page.locator("td[data-row][data-value]").evaluate_all(
        "all => all.map(cell => [cell.classList.contains('less'), Number(cell.style.getPropertyValue('--w'))])"
    )
    view = served.client.get(f"/attribution/jobs/{job_id}/results", params={"format": "html", "aggregator": "sum"}).text
    shades = [
        (sign == "less", int(level)) for sign, level in re.findall(r'class="score heat (more|less) \w+ s(\d+)"', view)
    ]
    assert len(drawn) == len(shades) > 0
    assert [is_negative for is_negative, _ in drawn] == [is_negative for is_negative, _ in shades]
    # The server rounds a share to one of 50 shades, the page to four decimals: half a unit of each.
    shares = [share for _, share in drawn]
    assert shares == pytest.approx([level / 50 for _, level in shades], abs=0.5 / 50 + 0.5e-4)


# The colour that a browser draws, as #rrggbb.
DRAWN = """all => all.map(each => {
  const pen = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
  const color = name => {
    pen.fillStyle = getComputedStyle(each)[name]; pen.fillRect(0, 0, 1, 1);
    return '#' + [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map(part => part.toString(16).padStart(2, '0')).join('');
  };
  return [Number(each.dataset.value ?? each.innerText.replace('\u2212', '-')), color('backgroundColor'), color('color')];
})"""


@pytest.mark.parametrize(("scheme", "colours"), [("light", LIGHT), ("dark", DARK)])
@pytest.mark.parametrize("view", ["page", "html"])
def test_page_and_view_draw_the_colours_of_the_palette(served, open_page, scheme, colours, view):
    job_id = served.run(model=LOOKUP, method="input_x_gradient", input_text=PROMPT, reuse=True)
    results = f"/attribution/jobs/{job_id}/results?format=html&aggregator=sum"
    page = open_page(served, f"/#/jobs/{job_id}?agg=sum" if view == "page" else results, color_scheme=scheme)
    cells = page.locator("td[data-row][data-value]" if view == "page" else "td.score")
    expect(cells.first).to_be_visible()
    scores = [each for row in attributions(served.result(job_id, aggregator="sum")) for each in row if each is not None]
    drawn = cells.evaluate_all(DRAWN)
    assert len(drawn) == len(scores)
    largest = max(map(abs, scores))
    for score, (_, background, text) in zip(scores, drawn, strict=True):
        share = abs(score) / largest if view == "page" else round(50 * abs(score) / largest) / 50
        expected = shade(colours.zero, colours.end(score), share)
        assert all(abs(a - b) <= 1 for a, b in zip(parts(background), parts(expected), strict=True)), (
            score,
            background,
        )
        assert text == colours.text(share)


def parts(color):
    return bytes.fromhex(color.removeprefix("#"))


def test_the_legend_is_that_of_the_colours(served, open_page):
    """Scaled to the chosen token, the legend ends at that token's largest score, and the table has its own."""
    job_id = served.run(model=LOOKUP, method="input_x_gradient", input_text=PROMPT, reuse=True)
    scores = attributions(served.result(job_id, aggregator="sum"))
    whole = max(abs(each) for row in scores for each in row if each is not None)
    column = min(range(len(scores[0])), key=lambda each: max(abs(row[each] or 0) for row in scores))
    token = max(abs(row[column] or 0) for row in scores)
    assert token < whole
    page = open_page(served, f"/#/jobs/{job_id}?agg=sum&pos={column}")
    opened_job(page)
    legends = page.locator(".legend").all_inner_texts()
    assert [legend.split("\n")[0] for legend in legends] == ["this token", "whole text"]
    for legend, largest in zip(legends, (token, whole), strict=True):
        written = legend.split("\n")[-1]
        decimals = len(written.partition(".")[2])
        assert abs(float(written) - largest) <= 0.5 * 10**-decimals + 1e-9  # rounded to what is written
    strongest = page.locator(".tokens .token.heat").evaluate_all(
        "all => Math.max(...all.map(each => each.style.getPropertyValue('--w')))"
    )
    assert strongest == 1
    page.get_by_label("one scale for all tokens").check()
    expect(page.locator(".legend .muted")).to_have_text("whole text")
    strongest = page.locator(".tokens .token.heat").evaluate_all(
        "all => Math.max(...all.map(each => each.style.getPropertyValue('--w')))"
    )
    assert strongest == pytest.approx(token / whole, abs=1e-4)


def test_the_same_characters_are_invisible_for_the_page_and_the_server(served, open_page):
    # A control character, one that reverses the direction, a line separator, an em space, one for private use, one that
    # is never assigned, and a joiner at the end of a word. The joiner within a word is not shown.
    invisible = ["\u0007", "\u202e", "\u2028", "\u2003", "\ue000", "\ufdd0", "\u200d"]
    text = f"Anna {' '.join(f'a{each}b' for each in invisible[:-1])} a\u200cb c\u200d Ben"
    job_id = served.run(model=LOOKUP, method="saliency", input_text=text, generation_args={"max_new_tokens": 1})
    page = open_page(served, f"/#/jobs/{job_id}?agg=subwords,scores")
    opened_job(page)
    parameters = {"format": "html", "aggregator": "subwords,scores"}
    view = served.client.get(f"/attribution/jobs/{job_id}/results", params=parameters).text
    signs = page.locator(".tokens .sign").evaluate_all("all => all.map(each => each.dataset.sign)")
    by_page = {sign for sign in signs if sign.startswith("U+")}
    by_server = set(re.findall(r"U\+[0-9A-F]{4,6}", view))
    assert by_page == {f"U+{ord(each):04X}" for each in invisible}
    assert by_server == by_page


def test_results_are_downloaded_as_they_are_shown(served, open_page, tmp_path):
    job_id = served.run(model=PHRASEBOOK, method="saliency", input_text=SENTENCE)
    page = open_page(served, f"/#/jobs/{job_id}?norm=false")
    opened_job(page)
    offered = page.get_by_role("group", name="Download").get_by_role("link")
    schema = served.client.get("/openapi.json").json()["paths"]["/attribution/jobs/{job_id}/results"]["get"]
    named = next(each["schema"] for each in schema["parameters"] if each["name"] == "format")
    formats = named["anyOf"][0]["enum"]
    assert {"json", "inseq", "csv", "parquet", "html"} <= set(formats)
    expect(offered).to_have_count(len(formats))
    for index, name in enumerate(formats):
        with page.expect_download() as saving:
            offered.nth(index).click()
        saving.value.save_as(tmp_path / name)
        parameters = {"format": name} | ({} if name == "inseq" else {"normalize": False})
        answer = served.client.get(f"/attribution/jobs/{job_id}/results", params=parameters)
        assert (tmp_path / name).read_bytes() == answer.content


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(served, open_page, scheme):
    signed = served.run(model=LOOKUP, method="input_x_gradient", input_text=PROMPT, step_scores=["entropy"], reuse=True)
    page = open_page(served, f"/#/jobs/{signed}?agg=sum", color_scheme=scheme)
    opened_job(page)
    scans = [Axe().run(page)]
    page.goto(f"{served.url}/#/")
    page.get_by_text("Seed, limits and tags").click()
    field(page, "/seed").fill("x")
    page.get_by_role("button", name="Attribute", exact=True).click()
    expect(field(page, "/seed")).to_have_attribute("aria-invalid", "true")
    scans.append(Axe().run(page))
    page.set_viewport_size({"width": 390, "height": 800})
    scans.append(Axe().run(page))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # no horizontal scrolling on a phone
    found = [
        each for scan in scans for each in scan.response["violations"] if each["impact"] in {"serious", "critical"}
    ]
    assert [
        (each["id"], [(node["html"][:200], node["failureSummary"]) for node in each["nodes"]]) for each in found
    ] == []
