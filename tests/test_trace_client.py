"""Traces in Python and at a terminal: typed results, tables, pictures."""

from __future__ import annotations

import asyncio
import json

import pytest
from matplotlib.colors import to_hex

from attribution_client import AsyncAttributionClient, AttributionClient, InvalidRequest, plot_trace
from attribution_reading.palette import LIGHT, shade
from attribution_schema.spans import TextSelection
from tests.command_line import run
from tests.conftest import LOOKUP
from tests.test_trace_views import ANSWER, TEXT


@pytest.fixture(scope="module")
def job(server):
    return server.run(model=LOOKUP, method="input_x_gradient", input_text=TEXT, generated_text=TEXT + ANSWER)


@pytest.fixture(scope="module")
def client(server):
    with AttributionClient(server.url) as opened:
        yield opened


@pytest.fixture(scope="module")
def found(client, job):
    return client.trace(job, "text[1]:milk", through="20:22")


def test_the_client_reads_what_the_server_says(server, client, job, found):
    asked = {"trace": "22:23", "through": "20:22", "decode_tokens": True}
    assert found.model_dump(by_alias=True) == server.result(job, **asked)
    for from_ in ((22, 23), "22:", {"text": "milk", "occurrence": -1}, TextSelection(start=22, end=23)):
        assert client.trace(job, from_, through=(20, 22)).traces[0].scores == found.traces[0].scores

    async def read():
        async with AsyncAttributionClient(server.url) as other:
            return await other.trace(job, from_="22:23", through="20:22", hops=1, without_template=True)

    trace = asyncio.run(read()).traces[0]
    assert (len(trace.hops), trace.dropped) == (2, 0)
    with pytest.raises(InvalidRequest, match="does not occur"):
        client.trace(job, "text:rice")
    with pytest.raises(TypeError, match="a view has no option 'trace'"):
        client.results(job, trace="22:23")
    assert client.view(job, "csv", trace=(22, 23)) == client.view(job, "csv", trace="22:23")


def test_a_frame_has_a_row_for_each_token_of_the_input(found):
    frame, (trace,) = found.frame(), found.traces
    assert list(frame.columns[:6]) == ["sequence", "side", "position", "token", "text", "score"]
    assert "".join(frame["text"]) == TEXT
    assert frame["score"].tolist() == trace.scores
    assert frame["hop_1"].tolist() == trace.hops[1].scores
    assert frame.filter(like="hop_").sum(axis=1).to_numpy() == pytest.approx(frame["score"].to_numpy(), abs=1e-9)


def test_a_notebook_draws_it(found):
    html, (trace,) = found._repr_html_(), found.traces
    for words in ("Answer", "Reasoning", "Prompt", "Strongest paths"):
        assert f">{words}</h2>" in html
    for token, score in zip(trace.inputs, trace.scores, strict=True):
        assert f'title="{token.text.strip()}: {score:.6g}"' in html
    assert repr(found) == f"<trace of input_x_gradient of {LOOKUP}: 1 text; show() draws it>"
    assert f"{sum(trace.scores):.1%} of the answer came to the input" in repr(found.show())


def test_a_picture_has_the_text_and_its_colours(found):
    (trace,) = found.traces
    ax = plot_trace(found)
    drawn = "".join(each.get_text() for each in ax.texts)
    assert drawn.startswith("Answer")
    assert "Reasoning (reached each token; darkest: " in drawn
    best = max(trace.scores)
    assert f"Prompt (came to each token; darkest: {best:.1%})" in drawn
    colours = [to_hex(each.get_facecolor()) for each in ax.patches]
    assert len(colours) == 2 + 14  # of the reasoning and the prompt
    assert colours.count(shade(LIGHT.zero, LIGHT.more, 1.0)) == 2  # each part has its own scale
    shares = [round(each / best, 2) for each in trace.scores]
    assert colours[2:] == [shade(LIGHT.zero, LIGHT.more, each) for each in shares]


def test_a_terminal_prints_the_strongest_tokens_within_its_width(server, job, found, tmp_path):
    asked = ("trace", job, "--from", "text[1]:milk", "--through", "20:22")
    (trace,) = found.traces
    best = trace.scores.index(max(trace.scores))
    for width in ("40", "80", "200"):
        done = run(server, *asked, COLUMNS=width)
        lines = done.stdout.splitlines()
        assert done.returncode == 0
        assert max(map(len, lines)) <= int(width)
        first = lines[next(i for i, each in enumerate(lines) if each.startswith("token of the input")) + 1]
        assert first.split()[:3] == [trace.inputs[best].text.strip(), f"@{best}", f"{max(trace.scores):.1%}"]
    assert "hop 1" in done.stdout
    assert f"{trace.elsewhere:.1%} ended on other generated tokens" in done.stdout
    shown = run(server, *asked, "--hops", "1", "--top", "2", "--viz_path", tmp_path / "trace.html")
    assert "is left on the reasoning" in shown.stdout
    assert "<!DOCTYPE html>" in (tmp_path / "trace.html").read_text()
    assert json.loads(run(server, *asked, "--json").stdout) == server.result(
        job, trace="text[1]:milk", through="20:22", decode_tokens=True
    )
    refused = run(server, "trace", job, "--from", "text:rice")
    assert refused.returncode == 2
    assert "does not occur" in refused.stderr


def test_hostile_tokens_are_text_everywhere(found, tmp_path):
    """In HTML they are escaped, and no control sequence reaches a terminal."""
    from rich.console import Console

    from attribution_client.trace_text import print_trace

    hostile = "<script>x</script>\x1b[31m\u202e"
    (trace,) = found.traces
    changed = {"text": hostile, "token": hostile}
    tokens = {
        name: [each.model_copy(update=changed) for each in getattr(trace, name)] for name in ("inputs", "generated")
    }
    paths = [each.model_copy(update={"tokens": tokens["inputs"][:2]}) for each in trace.paths]
    span = trace.from_.model_copy(update={"text": hostile, "name": hostile})
    bad = found.model_copy(
        update={"traces": [trace.model_copy(update={**tokens, "paths": paths, "from_": span, "warnings": [hostile]})]}
    )
    for shown in (bad._repr_html_(), repr(bad.show())):
        assert "\x1b" not in shown
        assert "\u202e" not in shown
    assert "<script>" not in bad._repr_html_()
    out = Console(record=True, width=80, file=(tmp_path / "out").open("w"))
    print_trace(bad, out)
    printed = out.export_text()
    assert "<script>" in printed
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert set(bad.frame()["text"]) == {hostile}  # a table is data
