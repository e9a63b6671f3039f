"""The views of a trace: from a stored result, without a model. `attribution_reading.traces` has the mathematics."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import orjson
import pyarrow.csv
import pyarrow.parquet
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput
from markupsafe import Markup

from attribution.results import html_page
from attribution.results.aggregation import aggregate
from attribution.results.inseq_fields import SIDES, token_id, token_notes, without_notes
from attribution.results.scored_sequences import scored_sequence
from attribution.results.table_views import MOST_ROWS, escaped
from attribution.text.readable_tokens import Note, without_marks
from attribution.text.spans import SelectableText, TokenSpan
from attribution_reading.scored_sequence import ScoredSequence
from attribution_reading.trace_html import trace_html
from attribution_reading.trace_paths import strongest_paths
from attribution_reading.trace_table import trace_table
from attribution_reading.traces import TracedMass, shares_of, trace
from attribution_schema.spans import TextSelection
from attribution_schema.trace_options import TraceOptions
from attribution_schema.trace_result import PlacedToken, SequenceTrace, TracedSpan, TraceHop, TracePath, TraceResult
from attribution_schema.view_options import ViewOptions
from models import ProblemItem
from problems import InputRejected, InvalidRequest

MOST_PAIRS = 30_000_000  # of tokens, whose shares take 240 MB
_MATRIX = 2  # dimensions
_TEXT_NOTES = {"text", "continues", "contrast"}  # for readers who ask for decoded tokens
_WRITTEN_NOTES = {"special", "template", "turn", "role"}


def trace_view(output: FeatureAttributionOutput, view: str, options: ViewOptions, asked: TraceOptions) -> bytes:
    """Return the traces of all texts as `json`, `csv`, `parquet` or `html`.

    The scores are aggregated as the options say, to one number for each pair of tokens. The spans of `asked` are
    selections; names were looked up before. Raises `InvalidRequest` where there is no such span, or nothing to trace.
    """
    aggregated = aggregate(output, options)
    with_text = options.decode_tokens or view == "html"
    pairs = list(zip(aggregated.sequence_attributions, token_notes(aggregated), strict=True))
    if asked.sequence is not None and asked.sequence >= len(pairs):
        raise _refused("sequence", f"There is no text {asked.sequence}: this result has {len(pairs)}, counted from 0.")
    traces = [
        _Traced(number, sequence, notes, asked, with_text=with_text).trace()
        for number, (sequence, notes) in enumerate(pairs)
        if asked.sequence in {None, number}
    ]
    return _WRITERS[view](TraceResult(traces=traces, info=without_notes(output.info)), options)


def _json(result: TraceResult, _options: ViewOptions) -> bytes:
    return orjson.dumps(result.model_dump(by_alias=True))


def _csv(result: TraceResult, options: ViewOptions) -> bytes:
    written, table = io.BytesIO(), _table(result, options)
    pyarrow.csv.write_csv(escaped(table) if options.escape_formulas else table, written)
    return written.getvalue()


def _parquet(result: TraceResult, options: ViewOptions) -> bytes:
    written = io.BytesIO()
    table = _table(result, options).replace_schema_metadata({"info": orjson.dumps(result.info)})
    pyarrow.parquet.write_table(table, written, compression="zstd")
    return written.getvalue()


def _table(result: TraceResult, options: ViewOptions) -> Any:
    rows = sum(len(each.inputs) * (len(each.hops) + 1) + len(each.generated) for each in result.traces)
    if rows > MOST_ROWS:
        raise InvalidRequest(f"{rows} shares are too many for a table (at most {MOST_ROWS}). Ask for fewer hops.")
    return trace_table(result.traces, with_text=options.decode_tokens)


def _html(result: TraceResult, _options: ViewOptions) -> bytes:
    info = result.info
    method, model = info.get("attribution_method", "attribution"), info.get("model_name", "a model")
    return html_page.render(
        "trace.html",
        title=f"Trace of {method} of {model}",
        facts=["Shares of absolute scores, from the answer back to the input. They are no causes."],
        warnings=info.get("warnings", []),
        traces=[Markup(trace_html(each)) for each in result.traces],  # noqa: S704 - it escapes tokens
    )


_WRITERS: dict[str, Callable[[TraceResult, ViewOptions], bytes]] = {
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
    "html": _html,
}


class _Traced:
    """One text of a result, and what to trace in it."""

    def __init__(
        self,
        number: int,
        sequence: FeatureAttributionSequenceOutput,
        notes: dict[str, list[Note]],
        asked: TraceOptions,
        *,
        with_text: bool,
    ) -> None:
        self._number, self._sequence, self._asked = number, sequence, asked
        self._scored = scored_sequence(sequence)
        self._notes = {side: notes.get(side) or _notes_of(getattr(sequence, side)) for side in SIDES}
        self._written = _WRITTEN_NOTES | (_TEXT_NOTES if with_text else set())
        self._warnings: list[str] = []

    def trace(self) -> SequenceTrace:
        """Find the spans and follow the answer back. Raises `InvalidRequest`."""
        _check_scores(self._scored, self._number)
        if any(each.get("span") for each in self._notes["target"]):
            raise InvalidRequest(
                "This job has the scores of spans, and a trace needs those of the tokens. Submit it with "
                '"trace": {"from": ..., "mode": "exact"}, whose spans are names; the hops of "mode": "span" are in '
                "info.trace."
            )
        start, asked = self._sequence.attr_pos_start, self._asked
        answer, reasoning = self._spans()
        dropped = {
            side: np.array([bool(each.get("template") or each.get("special")) for each in self._notes[side]])
            for side in self._scored.scores
        }
        shares = shares_of(self._scored.scores, start, dropped if asked.without_template else None)
        if shares.invalid:
            self._warnings.append(f"{shares.invalid} scores are no numbers, and count as 0.")
        through = range(reasoning.start - start, reasoning.end - start) if reasoning else range(0)
        parts = (shares, range(answer.start - start, answer.end - start), through, asked.max_hops)
        found = trace(*parts)
        inputs, generated = self._inputs(), self._tokens("target", start, answer.end)
        tokens = [*inputs, *self._tokens("target", start, start + len(shares.rows))]
        paths = [
            TracePath(tokens=[tokens[at] for at in each.columns], mass=each.mass) for each in strongest_paths(*parts)
        ]
        return SequenceTrace(
            sequence=self._number,
            from_=_traced(answer),
            through=_traced(reasoning) if reasoning else None,
            inputs=inputs,
            generated=generated,
            **_numbers(found, len(generated)),
            paths=paths,
            dropped=sum(int(each.sum()) for each in dropped.values()) if asked.without_template else None,
            warnings=self._warnings,
        )

    def _spans(self) -> tuple[TokenSpan, TokenSpan | None]:
        """The answer, and the reasoning before it; None where nothing was generated before."""
        asked, start = self._asked, self._sequence.attr_pos_start
        answer = self._find(asked.trace, "trace")
        if asked.through is not None:
            reasoning = self._find(asked.through, "through")
            if reasoning.end > answer.start:
                raise _refused(
                    "through",
                    f"{self._named('through')} has the positions {reasoning.start} to {reasoning.end}, and must end "
                    f"before trace begins, at {answer.start}: an answer rests on what was generated before it.",
                )
            return answer, reasoning
        if answer.start == start:
            return answer, None
        return answer, self._find(TextSelection(start=start, end=answer.start), "through")

    def _find(self, selection: TextSelection | str | None, name: str) -> TokenSpan:
        assert isinstance(selection, TextSelection), "names are looked up before"
        start = self._sequence.attr_pos_start
        end = start + self._scored.scores["target"].shape[1]  # of a partial result, only what is done
        text = SelectableText(self._notes["target"], start, end, "the generated text")
        try:
            return text.find(selection, self._named(name), self._warnings)
        except InputRejected as error:
            raise _refused(name, error.detail) from error

    def _named(self, name: str) -> str:
        return f"{name} (text {self._number + 1})" if self._number else name

    def _inputs(self) -> list[PlacedToken]:
        """The tokens that the scores of the input belong to: of the source, and of the target before the generated."""
        source = self._tokens("source", 0, None) if "source" in self._scored.scores else []
        return source + self._tokens("target", 0, self._sequence.attr_pos_start)

    def _tokens(self, side: str, start: int, end: int | None) -> list[PlacedToken]:
        tokens = list(zip(getattr(self._sequence, side), self._notes[side], strict=True))[start:end]
        return [
            PlacedToken(
                side=side,
                position=position,
                token=token.token,
                token_id=token_id(token),
                **{name: value for name, value in note.items() if name in self._written},
            )
            for position, (token, note) in enumerate(tokens, start)
        ]


def _notes_of(tokens: Iterable[Any]) -> list[Note]:
    """Notes where a result has none."""
    return [{"text": without_marks(each.token)} for each in tokens]


def _check_scores(scored: ScoredSequence, number: int) -> None:
    """Raise `InvalidRequest` for scores that cannot be traced."""
    which = f"Text {number + 1}" if number else "This result"
    if not scored.scores:
        raise InvalidRequest(
            f"{which} has step scores only, and a trace needs the scores of tokens: take another method."
        )
    if any(each.ndim != _MATRIX for each in scored.scores.values()):
        raise InvalidRequest(
            "A trace needs one score for each pair of tokens. Aggregate them to that, with vnorm for example."
        )
    if "target" not in scored.scores:
        raise InvalidRequest(
            f"{which} has no scores between its generated tokens, which a trace follows. Submit the job again with "
            "attribute_target=true."
        )
    if (pairs := sum(each.size for each in scored.scores.values())) > MOST_PAIRS:
        raise InvalidRequest(
            f"{pairs} scores are too many for a trace (at most {MOST_PAIRS}). Aggregate them, for example with "
            "aggregator=sentences."
        )


def _refused(parameter: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, errors=[ProblemItem(parameter=parameter, detail=detail)])


def _traced(span: TokenSpan) -> TracedSpan:
    return TracedSpan(name=span.name, start=span.start, end=span.end, text=span.text)


def _numbers(found: TracedMass, generated: int) -> dict[str, Any]:
    """The numbers of a trace, of which `generated` tokens are written."""
    return {
        "scores": found.scores.tolist(),
        "mass_left": float(found.left.sum()),
        "elsewhere": float(found.elsewhere.sum()),
        "elsewhere_scores": found.elsewhere[:generated].tolist(),
        "reasoning_scores": found.reasoning.tolist(),
        "hops": [
            TraceHop(
                hop=number,
                prompt=float(each.scores.sum()),
                reasoning=float(each.reasoning.sum()),
                elsewhere=float(each.elsewhere.sum()),
                scores=each.scores.tolist(),
                reasoning_scores=each.reasoning.tolist(),
            )
            for number, each in enumerate(found.hops)
        ],
        "unlisted": found.unlisted,
    }
