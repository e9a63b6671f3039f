"""Heatmaps and tables have all numbers of the JSON view, and tokens cannot inject markup."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from base64 import b64encode
from html.parser import HTMLParser

import inseq
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import CoarseFeatureAttributionSequenceOutput
from inseq.utils.typing import TokenWithId

from attribution.results import heatmap_view, html_page, inseq_html_view, table_views
from attribution.results.json_views import json_view
from attribution_client.frames import read_parquet as client_frame
from attribution_schema.view_options import ViewOptions
from problems import InvalidRequest
from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE

HTML, CSV, PARQUET, JSON = "text/html", "text/csv", "application/vnd.apache.parquet", "application/json"
JOBS = {
    "decoder-only": {"model": LOOKUP, "input_text": PROMPT},
    "encoder-decoder": {"model": PHRASEBOOK, "input_text": [SENTENCE, "a king buys the old hat"], "attribute_target": True},
}  # fmt: skip


@pytest.fixture(scope="module", params=JOBS)
def done(request, server):
    """The id of a completed job with step scores, for each kind of model."""
    return server.run(method="input_x_gradient", step_scores=["probability", "entropy"], **JOBS[request.param])


@pytest.fixture(scope="module")
def one(server):
    return server.run(method="saliency", step_scores=["probability"], **JOBS["decoder-only"])


def get(server, job_id, accept=None, **parameters):
    headers = {"Accept": accept} if accept else {}
    return server.client.get(f"/attribution/jobs/{job_id}/results", params=parameters, headers=headers)


# Tables


def expected_rows(result):
    """The rows of the table, computed from the JSON view."""
    rows = []
    for index, sequence in enumerate(result["sequence_attributions"]):
        for side in ("source", "target"):
            for at, scores in enumerate(sequence[f"{side}_attributions"] or []):
                for step, score in enumerate(scores):
                    position = sequence["attr_pos_start"] + step
                    if score is not None:
                        place = (*cells(sequence[side], at), *cells(sequence["target"], position))
                        rows.append((index, side, *place, score))
    return rows


def cells(tokens, position):
    return position, tokens[position]["token"], tokens[position]["token_id"]


def expected_step_scores(result):
    return [
        (index, *cells(sequence["target"], sequence["attr_pos_start"] + step), name, score)
        for index, sequence in enumerate(result["sequence_attributions"])
        for name, scores in sequence["step_scores"].items()
        for step, score in enumerate(scores)
    ]


def read_csv(content):
    header, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
    numbers = {"score": lambda text: float(np.float32(text)) if text else None}
    whole = ("sequence", "attributed_position", "attributed_token_id", "generated_position", "generated_token_id")
    numbers |= dict.fromkeys(whole, int)
    return header, [tuple(numbers.get(name, str)(cell) for name, cell in zip(header, row, strict=True)) for row in rows]


def read_parquet(content):
    found = pyarrow.parquet.read_table(io.BytesIO(content))
    return found.column_names, list(zip(*(column.to_pylist() for column in found.columns), strict=True))


READ = {"csv": read_csv, "parquet": read_parquet}
OPTIONS = [{}, {"aggregator": "sum", "normalize": "false"}, {"aggregator": "subwords,vnorm", "aggregate_fn": "max,"}]


@pytest.mark.parametrize("view", READ)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_tables_have_the_numbers_of_the_json(server, done, view, options):
    header, rows = READ[view](get(server, done, format=view, **options).content)
    assert header == [
        "sequence", "side", "attributed_position", "attributed_token", "attributed_token_id", "generated_position",
        "generated_token", "generated_token_id", "score",
    ]  # fmt: skip
    expected = expected_rows(server.result(done, **options))
    assert len(rows) == len(expected) >= 8
    for ours, theirs in zip(rows, expected, strict=True):
        assert ours[:-1] == theirs[:-1]
        assert ours[-1] == np.float32(theirs[-1])


@pytest.mark.parametrize("view", READ)
def test_step_scores_are_a_table_of_their_own(server, done, view):
    header, rows = READ[view](get(server, done, format=view, table="step_scores").content)
    assert header == [
        "sequence", "generated_position", "generated_token", "generated_token_id", "step_score", "score"
    ]  # fmt: skip
    assert rows == [(*row[:-1], np.float32(row[-1])) for row in expected_step_scores(server.result(done))]


def test_granular_tables_name_their_dimensions(server):
    job_id = server.run(model=LOOKUP, method="attention", input_text=PROMPT)
    header, rows = read_parquet(get(server, job_id, format="parquet", granular="true").content)
    assert header[-3:] == ["model_layer", "attention_head", "score"]
    (sequence,) = server.result(job_id, granular="true")["sequence_attributions"]
    start = sequence["attr_pos_start"]
    for row in rows:
        at, step = row[2], row[5] - start
        layer, head, score = row[-3:]
        assert score == np.float32(sequence["target_attributions"][at][step][layer][head])
    assert len(rows) == len({(*row[2:3], *row[5:6], *row[-3:-1]) for row in rows}) > 100


def test_a_result_without_attributions_has_an_empty_table(server):
    job_id = server.run(model=LOOKUP, method="dummy", input_text=PROMPT, step_scores=["logit"])
    header, rows = read_csv(get(server, job_id, format="csv").content)
    assert (header[-1], rows) == ("score", [])
    assert len(read_csv(get(server, job_id, format="csv", table="step_scores").content)[1]) == 2
    assert "logit" in get(server, job_id, format="html").text


def test_parquet_carries_the_record(server, one):
    schema = pyarrow.parquet.read_schema(io.BytesIO(get(server, one, format="parquet").content))
    assert json.loads(schema.metadata[b"info"]) == server.result(one)["info"]


def test_readable_tokens_are_a_column(server, one):
    header, rows = read_csv(get(server, one, format="csv", decode_tokens="true").content)
    assert [row[header.index("attributed_text")] for row in rows[:2]] == ["Anna", "Anna"]
    assert rows[2][header.index("attributed_text")] == " likes"


# Arbitrary tokens


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
TOKENS = st.lists(
    TEXT | st.sampled_from(["<script>alert(1)</script>", '"', "NA", "nan", "&lt;", "\u202e", "a,b"]),
    min_size=2,
    max_size=5,
)


def an_output(source, target, scores=None):
    """An output with these tokens, in which all target tokens but the first are attributed."""
    steps = len(target) - 1
    made = (
        torch.arange(len(source) * steps, dtype=torch.float32).reshape(len(source), steps) / 7
        if scores is None
        else scores
    )
    after = torch.arange(len(target))[:, None] > torch.arange(steps)[None, :]
    sequence = CoarseFeatureAttributionSequenceOutput(
        source=[TokenWithId(token, index) for index, token in enumerate(source)],
        target=[TokenWithId(token, 100 + index) for index, token in enumerate(target)],
        source_attributions=made,
        target_attributions=torch.ones(len(target), steps).masked_fill(after, torch.nan),
        step_scores={"probability": torch.linspace(0, 1, steps)},
        sequence_scores=None,
        attr_pos_start=1,
        attr_pos_end=len(target),
    )
    return FeatureAttributionOutput([sequence], None, {"model_name": "m", "attribution_method": "saliency"})


@settings(max_examples=150, deadline=None)
@given(source=TOKENS, target=TOKENS)
def test_any_token_survives_a_table(source, target):
    output = an_output(source, target)
    rows = expected_rows(json.loads(json_view(output, ViewOptions())))
    for view, read in ((table_views.csv_view, read_csv), (table_views.parquet_view, read_parquet)):
        found = read(view(output, ViewOptions()))[1]
        assert found == [(*row[:-1], np.float32(row[-1])) for row in rows]


# As docs/api.md says it.
PANDAS = {
    "dtype": {"attributed_token": str, "generated_token": str}, "keep_default_na": False, "na_values": {"score": [""]}
}  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(source=TOKENS, target=TOKENS)
@example(source=["NA", "", "null", "None", "n/a"], target=["<s>", "nan", "NaN"])
def test_pandas_reads_every_token_of_a_csv(source, target):
    """By default `pandas.read_csv` takes the token `NA` for a missing value, quoted or not, and `007` for 7."""
    output = an_output(source, target, torch.full((len(source), len(target) - 1), math.nan))
    found = pd.read_csv(io.BytesIO(table_views.csv_view(output, ViewOptions())), **PANDAS)
    expected = client_frame(table_views.parquet_view(output, ViewOptions()))
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert set(expected["attributed_token"]) >= set(source)


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", '=HYPERLINK("http://x","y")']


def test_a_text_is_no_formula_in_a_spreadsheet_if_asked_and_exact_if_not():
    """A spreadsheet takes a field for a formula by its first character, whether it is quoted or not."""
    output = an_output([*FORMULAS, "a=b", "'=1", "1-2"], ["<s>", *FORMULAS])
    exact = read_csv(table_views.csv_view(output, ViewOptions()))[1]
    assert set(FORMULAS) <= {row[3] for row in exact}
    escaped = read_csv(table_views.csv_view(output, ViewOptions(escape_formulas=True)))[1]
    assert not [
        field for row in escaped for field in row if isinstance(field, str) and field[:1] in set("=+-@\t\r\n\uff1d")
    ]
    assert [[f"'{each}" if each in FORMULAS else each for each in row] for row in exact] == [
        list(row) for row in escaped
    ]


def test_formulas_are_escaped_in_csv_only(server, one):
    assert "'" not in get(server, one, format="csv", escape_formulas="true").text
    assert get(server, one, format="csv").headers["content-disposition"].startswith("attachment")
    refused = get(server, one, format="json", escape_formulas="true")
    assert (refused.status_code, "escape_formulas" in refused.json()["detail"]) == (422, True)


def test_a_score_that_is_not_a_number_is_null_and_not_lost():
    output = an_output(["a", "b"], ["c", "d"], torch.tensor([[math.nan], [2.0]]))
    for view, read in ((table_views.csv_view, read_csv), (table_views.parquet_view, read_parquet)):
        rows = read(view(output, ViewOptions()))[1]
        assert [(row[1], row[2], row[-1]) for row in rows] == [
            ("source", 0, None),
            ("source", 1, 2.0),
            ("target", 0, 1.0),
        ]


# The heatmap


class Page(HTMLParser):
    """The elements, attributes, scores and labels of a parsed HTML document."""

    def __init__(self, document):
        super().__init__()
        self.elements, self.attributes, self.scores, self.told, self.style = set(), set(), [], [], ""
        self._in_style = False
        self.feed(document)

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attributes}
        found = dict(attributes)
        self._in_style = tag == "style"
        if tag == "td" and "title" in found:
            self.scores.append((found["class"].split()[0], found["title"].rsplit(": ", 1)[1]))
        if tag == "bdi" and "title" in found:
            self.told.append(found["title"])

    def handle_data(self, data):
        if self._in_style:
            self.style += data

    def handle_endtag(self, tag):
        self._in_style = False


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_the_heatmap_has_the_numbers_of_the_json(server, done, options):
    page = Page(get(server, done, format="html", **options).text)
    result = server.result(done, **options)
    found = [np.float32(score) for kind, score in page.scores if kind == "score"]
    assert found == [np.float32(row[-1]) for row in expected_rows(result)]
    steps = [np.float32(score) for kind, score in page.scores if kind == "step"]
    assert steps == [np.float32(row[-1]) for row in expected_step_scores(result)]


def test_the_heatmap_runs_and_loads_nothing(server, one):
    answer = get(server, one, format="html")
    page = Page(answer.text)
    assert not page.elements & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert not {name for name in page.attributes if name.startswith("on")} | (
        page.attributes & {"style", "src", "href"}
    )
    assert "url(" not in page.style
    assert "@import" not in page.style
    policies = answer.headers.get_list("content-security-policy")
    assert len(policies) == 1
    digest = b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policies[0].startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    # All other responses have the policy that allows nothing.
    assert get(server, one).headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


OWN = {
    "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "b", "bdi", "section", "div", "table", "thead",
    "tbody", "tr", "th", "td", "small", "i", "span", "details", "summary", "pre", "sup", "ol", "li",
}  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(source=TOKENS, target=TOKENS)
def test_no_token_can_be_anything_but_text(source, target):
    page = Page(heatmap_view.html_view(an_output(source, target), ViewOptions()).decode())
    assert page.elements <= OWN
    assert page.attributes <= {
        "lang", "charset", "name", "content", "class", "dir", "title", "scope", "colspan", "tabindex", "role",
        "aria-label", "data-sign",
    }  # fmt: skip
    assert {f"{token!r} (id {index})" for index, token in enumerate(source)} <= set(page.told)
    plain = Page(inseq_html_view.inseq_html_view(an_output(source, target), ViewOptions()).decode())
    assert plain.elements <= {"meta", "title", "br", "b", "html", "div", "span", "table", "tr", "th"}
    assert not {name for name in plain.attributes if name.startswith("on")}


SHOWN = {
    " the": '<i class="mark">␣</i>the',
    " ": '<i class="mark">␣</i>',
    "  ": '<i class="mark">␣</i><i class="mark">␣</i>',
    "  a b": '<i class="mark">␣</i><i class="mark">␣</i>a b',
    "\n": '<i class="mark">⏎</i>',
    "a b": "a b",
    "": '<i class="mark">∅</i>',
    "\u202eabc": '<i class="code">U+202E</i>abc',
    "\u200b": '<i class="code">U+200B</i>',
    "<b>": "&lt;b&gt;",
    "🏳\u200d🌈": "🏳\u200d🌈",
    "漢字": "漢字",
}


@pytest.mark.parametrize("token", SHOWN)
def test_what_nobody_sees_is_made_visible(token):
    assert str(html_page.visible(token)) == SHOWN[token]


@pytest.mark.parametrize("view", [heatmap_view.html_view, inseq_html_view.inseq_html_view])
def test_control_characters_are_shown_by_their_codes(view):
    controls = [chr(code) for code in (*range(9), *range(0xB, 0x20), *range(0x7F, 0xA0))]
    output = an_output(["a", *controls], ["<s>", *controls])
    output.info["warnings"] = ["a \0 warning"]
    document = view(output, ViewOptions()).decode()
    assert not [each for each in controls if each in document]
    assert all(f"U+{ord(each):04X}" in document for each in controls)


def test_too_many_scores_are_refused_before_they_are_written(monkeypatch):
    monkeypatch.setattr(heatmap_view, "MOST_CELLS", 3)
    monkeypatch.setattr(table_views, "MOST_ROWS", 3)
    output = an_output(["a", "b"], ["c", "d", "e"])
    with pytest.raises(InvalidRequest, match="10 scores are too many for a heatmap"):
        heatmap_view.html_view(output, ViewOptions())
    with pytest.raises(InvalidRequest, match="10 scores are too many for a table"):
        table_views.csv_view(output, ViewOptions())


def test_a_heatmap_is_of_one_score_for_each_pair(server, one):
    answer = get(server, one, format="html", aggregator="spans", aggregator_args='{"target_spans": [[0, 2]]}')
    assert answer.status_code == 422
    assert "one score for each pair of tokens" in answer.json()["detail"]


def test_inseqs_own_heatmap_is_inseqs(server, one, tmp_path):
    answer = get(server, one, format="html", style="inseq")
    assert answer.headers["content-security-policy"] == inseq_html_view.POLICY
    file = tmp_path / "result.json"
    file.write_bytes(get(server, one, format="inseq").content)
    theirs = inseq.FeatureAttributionOutput.load(file).show(display=False, return_html=True)

    def cells(html):
        return re.findall(r'<th style="background:rgba\(([^"]*)\)">([^<]*)</th>', html)

    # With NumPy 2, Inseq writes `np.float64(...)` into colours, which browsers cannot read; ours has the plain numbers.
    assert cells(answer.text) == [
        (re.sub(r"np\.float64\((.*?)\)", r"\1", color), score) for color, score in cells(theirs)
    ]
    assert len(cells(answer.text)) > 20
    assert answer.text == get(server, one, format="html", style="inseq").text
