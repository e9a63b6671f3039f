"""A trace as HTML, for the HTML view and for notebooks: coloured text from the answer back to the input, hops, paths.

Safe for hostile tokens, as `attribution_reading.reading_html` is, whose classes it uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from attribution_reading import reading_html
from attribution_reading.read_sequence import Block, ReadSequence, ReadToken, Row
from attribution_reading.reading_html import plain
from attribution_schema.trace_result import PlacedToken, SequenceTrace, TracedSpan, TraceHop, TracePath

_STRONGEST = 3  # tokens that are named for each hop


@dataclass(frozen=True)
class TracePart:
    """A part of the text and the shares of its tokens: the answer (without shares), the reasoning, or the input."""

    blocks: Sequence[Block]
    scores: Mapping[Row, float]
    of: str = ""  # what a share is

    @property
    def largest(self) -> float:
        """The largest share, at which the scale of this part ends."""
        return max(self.scores.values(), default=0.0)


def trace_parts(trace: SequenceTrace, read: ReadSequence) -> list[TracePart]:
    """The parts of a trace, from the answer back to the input. `read` is its text, see `read_trace`."""
    found = [TracePart([_block("Answer", trace.from_, read)], {})]
    if trace.through:
        start = trace.through.start
        reached = {("target", start + at): score for at, score in enumerate(trace.reasoning_scores)}
        found.append(TracePart([_block("Reasoning", trace.through, read)], reached, "reached each token"))
    scores = {(token.side, token.position): score for token, score in zip(trace.inputs, trace.scores, strict=True)}
    return [*found, TracePart(list(_input_blocks(read)), scores, "came to each token")]


def read_trace(trace: SequenceTrace) -> ReadSequence:
    """The text of a trace up to the end of the answer, as a reader sees it."""
    sides: dict[str, list[ReadToken]] = {"source": [], "target": []}
    for token in (*trace.inputs, *trace.generated):
        sides[token.side].append(_read_token(token))
    start = trace.generated[0].position
    return ReadSequence(sides, {}, start, start + len(trace.generated))


def trace_html(trace: SequenceTrace) -> str:
    """The trace of one text. Its tokens have readable texts."""
    read = read_trace(trace)
    parts = "".join(_coloured(each, read) for each in trace_parts(trace, read))
    said = "".join(f'<p class="muted">{plain(each)}</p>' for each in sentences(trace))
    return f'<div class="trace">{parts}{said}</div>{_hops(trace)}{_paths(trace.paths)}'


def sentences(trace: SequenceTrace) -> list[str]:
    """Where the mass came to rest, and what was left out, in words."""
    found = [f"{percent(sum(trace.scores))} of the answer came to the input"]
    found += [f"{percent(trace.elsewhere)} ended on other generated tokens"] if trace.elsewhere else []
    found += [f"{percent(trace.mass_left)} is left on the reasoning for further hops"] if trace.mass_left else []
    dropped = [f"{trace.dropped} special and template tokens got no share."] if trace.dropped is not None else []
    return [f"{'; '.join(found)}.", *dropped, *trace.warnings]


def percent(share: float) -> str:
    """A share as a percentage with three digits at most."""
    return f"{share:.1%}" if share >= 0.0005 or not share else "< 0.1%"  # noqa: PLR2004


def strongest(tokens: Sequence[PlacedToken], scores: Sequence[float], most: int) -> list[tuple[PlacedToken, float]]:
    """The tokens with the largest scores above 0, in order."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[:most]
    return [(tokens[index], scores[index]) for index in order if scores[index] > 0]


def _read_token(token: PlacedToken) -> ReadToken:
    return ReadToken(
        text=token.token if token.text is None else token.text,
        continues=bool(token.continues),
        contrast=token.contrast,
        is_template=bool(token.template or token.special),
        turn=token.turn,
        role=token.role,
    )


def _input_blocks(read: ReadSequence) -> Iterable[Block]:
    """The blocks of the input, in reading order: a turn that the generated text ends is cut before it."""
    if read.tokens["source"]:
        yield Block("Source", "source", 0, read.tokens["source"])
    for block in read.blocks():
        kept = block.tokens[: max(0, read.start - block.start)]
        if kept:
            yield replace(block, tokens=kept, label="Target" if read.tokens["source"] else block.label)


def _block(label: str, span: TracedSpan, read: ReadSequence) -> Block:
    return Block(label, "target", span.start, read.tokens["target"][span.start : span.end])


def _coloured(part: TracePart, read: ReadSequence) -> str:
    """The text of a part, coloured up to its largest share, under its scale."""
    texts = "".join(reading_html.text_block(each, read, part.scores, part.largest) for each in part.blocks)
    scale = reading_html.legend(part.largest, is_signed=False, of=part.of) if part.scores else ""
    return f'{scale}<div class="texts">{texts}</div>'


def _hops(trace: SequenceTrace) -> str:
    others = any(each.elsewhere for each in trace.hops)
    head = ["hop", "to the input", "to the reasoning", *(["elsewhere"] if others else []), "strongest tokens"]
    rows = "".join(_hop(each, trace, others=others) for each in trace.hops)
    cells = "".join(f'<th scope="col">{each}</th>' for each in head)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Hops"><table class="hops">'
        f"<thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _hop(hop: TraceHop, trace: SequenceTrace, *, others: bool) -> str:
    numbers = [hop.prompt, hop.reasoning, *([hop.elsewhere] if others else [])]
    cells = "".join(f'<td class="number">{percent(each)}</td>' for each in numbers)
    named = ", ".join(
        f"{_named(token)} {percent(score)}" for token, score in strongest(trace.inputs, hop.scores, _STRONGEST)
    )
    return f'<tr><th scope="row">{hop.hop}</th>{cells}<td>{named}</td></tr>'


def _paths(paths: Sequence[TracePath]) -> str:
    if not paths:
        return ""
    rows = "".join(
        f'<li><span class="number">{percent(path.mass)}</span> {" → ".join(map(_named, path.tokens))}</li>'
        for path in paths
    )
    return f'<section class="paths"><h2>Strongest paths</h2><ol>{rows}</ol></section>'


def _named(token: PlacedToken) -> str:
    return f"<bdi>{reading_html.shown_text(_read_token(token))}</bdi><small>@{token.position}</small>"
