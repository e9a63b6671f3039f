"""Traces that a notebook shows as coloured text: the schema's traces, with `show()` and `frame()`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attribution_client.extras import needs_extra
from attribution_client.labels import readable
from attribution_client.results import Shown, fragment, head_of, title_of
from attribution_reading.trace_html import percent, sentences, strongest, trace_html
from attribution_schema import trace_result as schema

if TYPE_CHECKING:
    import pandas as pd

_NAMED = 5  # tokens in the text of a trace


class TraceResult(schema.TraceResult):
    """The traces of a result, one for each text. Notebooks show them as coloured text, hops and paths."""

    def show(self, sequence: int | None = None) -> Shown:
        """The traces, or that of one text: answer, reasoning and input as coloured text, then the hops and paths.

        Raises `IndexError` for a text that is not there.
        """
        chosen = self.traces if sequence is None else [self.traces[sequence]]
        parts, lines = [head_of(self.info)], [f"trace of {title_of(self.info)}"]
        for trace in chosen:
            parts.append(trace_html(trace))
            lines += [f"  from {trace.from_.name!r}: {readable(each)}" for each in sentences(trace)]
            best = strongest(trace.inputs, trace.scores, _NAMED)
            lines.append(f"    {', '.join(f'{token.text or token.token!r} {percent(score)}' for token, score in best)}")
        return Shown(fragment("".join(parts)), "\n".join(lines))

    def _repr_html_(self) -> str:
        return self.show().html

    def __repr__(self) -> str:
        count = len(self.traces)
        return f"<trace of {title_of(self.info)}: {count} text{'s' if count > 1 else ''}; show() draws it>"

    def frame(self) -> pd.DataFrame:
        """The traces as a pandas table: a row for each token of the input.

        Columns: sequence, side, position, token, text, score, and `hop_0`, `hop_1` and so on, the shares that single
        hops bring. Raises `ImportError` without the extra `plots`.
        """
        with needs_extra("plots"):
            import pandas as pd
        hops = range(max((len(trace.hops) for trace in self.traces), default=0))
        return pd.DataFrame(
            [
                {
                    "sequence": trace.sequence,
                    "side": token.side,
                    "position": token.position,
                    "token": token.token,
                    "text": token.text,
                    "score": trace.scores[index],
                    **{f"hop_{hop}": trace.hops[hop].scores[index] if hop < len(trace.hops) else 0.0 for hop in hops},
                }
                for trace in self.traces
                for index, token in enumerate(trace.inputs)
            ]
        )
