"""Plots show the scores of the result with readable labels, and leave matplotlib's settings unchanged."""

from __future__ import annotations

import io
import math
import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from attribution_client import (
    AttributionClient,
    attribution_graph,
    compare_methods,
    plot_attribution_graph,
    plot_attribution_heatmap,
    plot_step_scores,
    plot_top_tokens,
    rank_correlation,
    top_token_overlap,
    top_tokens,
)
from attribution_client.labels import label
from models import AttributionResult, Token
from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE

mpl.use("Agg")
TARGET = "il gatto rosso vede un cane"


@pytest.fixture(autouse=True)
def clean():
    plt.close("all")  # figures of other tests
    before = dict(mpl.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # fonts may be missing on this machine
        yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="module")
def client(server):
    with AttributionClient(server.url) as made:
        yield made


@pytest.fixture(scope="module")
def lookup(client):
    return client.attribute(LOOKUP, "saliency", PROMPT, step_scores=["probability", "entropy"])


@pytest.fixture(scope="module")
def translations(client):
    methods = ("attention", "saliency", "value_zeroing")
    return [client.attribute(PHRASEBOOK, each, SENTENCE, generated_text=TARGET) for each in methods]


def a_result(source, scores, target=("<s>", "x", "y")):
    """A result with these source tokens and scores."""
    tokens = {"source": source, "target": target}
    sequence = {side: [{"token": each, "token_id": 1} for each in tokens[side]] for side in tokens}
    sequence |= {"source_attributions": scores, "target_attributions": None, "step_scores": {}, "sequence_scores": {}}
    return AttributionResult.model_validate(
        {"sequence_attributions": [{**sequence, "attr_pos_start": 1, "attr_pos_end": len(target)}], "info": {}}
    )


def drawn(ax):
    """Numbers in the cells of a heatmap, [rows, columns]; NaN if empty."""
    return np.ma.filled(ax.collections[0].get_array(), np.nan)


def written(labels):
    return [each.get_text() for each in labels]


def test_a_heatmap_shows_the_scores(lookup):
    ax = plot_attribution_heatmap(lookup)
    (sequence,) = lookup.sequence_attributions
    scores = np.array(sequence.target_attributions, float)
    # The plot leaves out the last token, which has no scores.
    np.testing.assert_allclose(drawn(ax), scores[:-1], rtol=1e-6)
    assert written(ax.get_xticklabels()) == ["tea", "."]
    assert written(ax.get_yticklabels()) == [
        *["Anna", "likes", "tea", ".", "Ben", "likes", "milk", ".", "Anna", "likes", "tea"]
    ]
    assert ax.collections[0].get_cmap().name == "scores"
    assert ax.collections[0].get_clim() == (0, pytest.approx(np.nanmax(scores)))
    assert sorted(written(ax.texts)) == sorted(f"{each:.2f}" for each in scores.flat if not math.isnan(each))


def test_signed_scores_diverge_around_zero(client):
    job = client.wait(client.submit(model=LOOKUP, method="input_x_gradient", input_text=PROMPT))
    result = client.results(job, aggregator="sum", normalize=False)
    ax = plot_attribution_heatmap(result)
    assert ax.collections[0].get_cmap().name == "signed_scores"
    low, high = ax.collections[0].get_clim()
    assert low == -high
    # The power of ten of very small scores is only in the label of the colour bar.
    scores = np.array(result.sequence_attributions[0].target_attributions, float)[:-1]
    power = math.floor(math.log10(np.nanmax(np.abs(scores))))
    assert power < -2
    np.testing.assert_allclose(drawn(ax), scores / 10.0**power, rtol=1e-4)
    assert ax.collections[0].colorbar.ax.get_ylabel() == rf"score ($\times 10^{{{power}}}$)"


def test_pictures_are_drawn_where_they_are_told(lookup, translations):
    figure, axes = plt.subplots(1, 4)
    pictures = (plot_attribution_heatmap, plot_step_scores, plot_top_tokens, plot_attribution_graph)
    for picture, ax in zip(pictures, axes, strict=True):
        assert picture(lookup, ax=ax) is ax
    assert plt.get_fignums() == [figure.number]
    assert written(plot_attribution_heatmap(translations[0]).get_yticklabels())[:2] == ["the", "red"]


def test_step_scores(lookup):
    ax = plot_step_scores(lookup, "entropy")
    values = lookup.sequence_attributions[0].step_scores["entropy"]
    assert ax.lines[0].get_ydata().tolist() == values
    assert ax.get_ylabel() == "entropy"
    assert plot_step_scores(lookup).get_ylabel() == "probability"
    with pytest.raises(ValueError, match="There are: probability, entropy"):
        plot_step_scores(lookup, "logit")


def test_top_tokens_as_bars(lookup):
    ax = plot_top_tokens(lookup, 3)
    found = top_tokens(lookup, 3, generated=0)
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(found["score"].tolist())
    expected = [f"{text.strip()} ({at})" for text, at in zip(found["attributed_text"], found["attributed_position"], strict=True)]  # fmt: skip
    assert written(ax.get_yticklabels()) == expected


def test_comparing_methods(translations):
    comparison = compare_methods(translations, k=2)
    names = ["attention", "saliency", "value_zeroing"]
    assert [ax.get_title() for ax in comparison.heatmaps] == names
    matrices = [np.array(each.sequence_attributions[0].source_attributions, float) for each in translations]
    for i, one in enumerate(matrices):
        np.testing.assert_allclose(drawn(comparison.heatmaps[i]), one, rtol=1e-6)
        for j, other in enumerate(matrices):
            pairs = list(zip(one.T, other.T, strict=True))
            expected = np.mean([spearmanr(a, b).statistic for a, b in pairs])
            assert comparison.rank_correlation.loc[names[i], names[j]] == pytest.approx(expected)
            common = [len({*np.argsort(-a)[:2]} & {*np.argsort(-b)[:2]}) / 2 for a, b in pairs]
            assert comparison.top_token_overlap.loc[names[i], names[j]] == pytest.approx(np.mean(common))


def test_only_the_same_tokens_can_be_compared(translations, lookup):
    with pytest.raises(ValueError, match="'b' is of other tokens than 'a'"):
        compare_methods({"a": lookup, "b": translations[0]})
    with pytest.raises(ValueError, match="give them names"):
        compare_methods([lookup, lookup])
    with pytest.raises(ValueError, match="nothing to compare"):
        rank_correlation([lookup])
    assert top_token_overlap({"a": lookup, "b": lookup}).to_numpy().tolist() == [[1, 1], [1, 1]]


def test_equal_scores_have_no_rank():
    results = {"flat": a_result("ab", [[1, 1], [1, 1]]), "steep": a_result("ab", [[1, 2], [3, 4]])}
    assert math.isnan(rank_correlation(results).loc["flat", "steep"])


def test_the_graph_has_every_score(translations):
    graph = attribution_graph(translations[0])
    (sequence,) = translations[0].sequence_attributions
    scores = np.array(sequence.source_attributions, float)
    assert graph.number_of_edges() == scores.size
    for (_, at), (_, generated), data in graph.edges(data=True):
        assert data["score"] == pytest.approx(scores[at, generated - sequence.attr_pos_start])
        assert data["weight"] == abs(data["score"])
    assert graph.nodes["source", 1]["token"] == "▁red"
    ax = plot_attribution_graph(translations[0], k=1)
    assert written(ax.texts)[:3] == ["the", "red", "cat"]
    assert len(ax.collections) == scores.shape[1]


def test_nothing_to_draw_is_said(client):
    empty = client.attribute(LOOKUP, "dummy", PROMPT)
    with pytest.raises(ValueError, match="no target scores"):
        plot_attribution_heatmap(empty)
    with pytest.raises(ValueError, match="no step scores"):
        plot_step_scores(empty)


LABELS = {
    "Ġtea": "tea", "▁gatto": "gatto", "Ċ": "⏎", " ": "␣", "": "∅", "a b": "a b", "\u202e": "U+202E", "漢字": "漢字",
    "🏳\u200d🌈": "🏳\u200d🌈", "a\u00a0b": "a⍽b", "ĠĠ": "␣␣", "ĠĠa": "a", "x" * 40: "x" * 17 + "…", "$x$": "$x$",
}  # fmt: skip


@pytest.mark.parametrize("token", LABELS)
def test_labels(token):
    assert label(Token(token=token, token_id=0)) == LABELS[token]


def test_a_readable_text_wins_over_the_marks():
    assert label(Token(token="å¤§", token_id=0, text="大")) == "大"


@settings(max_examples=6)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=2, max_size=3))
def test_any_token_can_be_drawn(tokens):
    """No token makes drawing fail, and `$` does not start mathematics."""
    result = a_result([*tokens, "$\\frac$"], [[0.1, 0.2]] * (len(tokens) + 1))
    for picture in (plot_attribution_heatmap, plot_attribution_graph, plot_top_tokens):
        picture(result).figure.savefig(io.BytesIO(), dpi=30)
        plt.close("all")
