"""The spans of a target that a request attributes as wholes, and the texts that might stand in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from attribution.model_cache.loading import LoadedModel
from attribution.text import continuation
from attribution.text.encoding import Text, check_target_length, from_ids
from attribution.text.readable_tokens import CONTRAST
from attribution.text.sandbox import TextSandbox
from attribution.text.spans import SelectableText, TokenSpan, TracePlan
from attribution_schema.spans import Span
from models import AttributionRequest
from problems import InputRejected

MOST_HOPS = 64  # of a trace by spans


@dataclass(frozen=True)
class Alternative:
    """A text that might stand in the place of a span."""

    span: int  # the number of that span
    words: str
    text: Text  # the text up to the span with these words behind it, as the one span of that text


@dataclass(frozen=True)
class SpanReader:
    """Reads the spans of texts; adds to `warnings`."""

    request: AttributionRequest
    loaded: LoadedModel
    sandbox: TextSandbox
    warnings: list[str]

    def read(self, text: Text, notes: Sequence[Mapping[str, Any]]) -> tuple[Text, list[Alternative]]:
        """The text with its spans, and their alternatives in the order of the spans.

        notes: of the target's tokens. Raises `InputRejected` for a span that is not there.
        """
        before = 1 if self.loaded.model.is_encoder_decoder else int(text.source.input_ids.shape[1])
        while self.loaded.model.is_encoder_decoder and before < len(notes) - 1 and notes[before].get("special"):
            before += 1  # the token of a language
        what = "the generated text" if not self.request.has_target else "generated_text"
        selectable = SelectableText(notes, before, int(text.target.input_ids.shape[1]), what)
        spans, wanted = list[TokenSpan](), list[tuple[int, str, str]]()
        for where, selection in self._selections():
            span = selectable.find(selection, where, self.warnings)
            if selection.contrast is not None:
                span = replace(span, name=f"{selection.contrast.strip()}{CONTRAST}{span.name}")
                wanted.append((len(spans), f"{where}.contrast", selection.contrast))
            spans.append(span)
        if self.request.trace is not None:
            return self._traced(text, spans), []
        text = replace(
            text, spans=tuple(spans), first=min(each.start for each in spans), end=max(each.end for each in spans)
        )
        return text, [self._alternative(text, *each) for each in wanted]

    def _traced(self, text: Text, spans: Sequence[TokenSpan]) -> Text:
        """The text with a span for each hop of a trace."""
        trace = self.request.trace
        assert trace is not None
        if self.loaded.model.is_encoder_decoder and not self.request.attribute_target:
            raise InputRejected("A trace leads through the target of an encoder-decoder model: set attribute_target.")
        named = {each.name: each for each in spans}
        first, answer = int(text.first), named[trace.from_]
        through = TokenSpan("all before", first, answer.start, "")
        if trace.through is not None:
            through = named[trace.through]
        if through.end > answer.start:
            raise InputRejected(f"trace: {through.name!r} must end before {answer.name!r} begins.")
        most = len(through) if trace.hops == "all" else min(trace.hops, len(through))
        plan = TracePlan(range(answer.start, answer.end), range(through.start, through.end), min(most, MOST_HOPS))
        hops = tuple(TokenSpan(f"hop {hop}", answer.start, answer.end, answer.text) for hop in range(plan.hops + 1))
        start = min(answer.start, through.start if len(through) else answer.start)
        return replace(text, spans=hops, trace=plan, first=start, end=answer.end)

    def _selections(self) -> list[tuple[str, Span]]:
        """Each span with its place in the request; of choices, the first as a whole against each other one."""
        if self.request.choices is None:
            return [(f"spans[{index}]", each) for index, each in enumerate(self.request.spans or ())]
        first, *others = self.request.choices
        name = first.strip() or first
        if not others:
            return [("choices[0]", Span(name=name))]
        return [(f"choices[{index}]", Span(name=name, contrast=each)) for index, each in enumerate(others, 1)]

    def _alternative(self, text: Text, span: int, where: str, words: str) -> Alternative:
        start = text.spans[span].start
        before = text.target.input_ids[0, :start].tolist()
        ids = continued_ids(self.loaded, before, words, where, self.sandbox, self.warnings)
        if ids == text.target.input_ids[0, start : text.spans[span].end].tolist():
            raise InputRejected(f"{where}: {words!r} is the span itself, token for token. Give another text.")
        target = from_ids(
            self.loaded.model,
            torch.tensor([[*before, *ids]], device=text.target.input_ids.device),
            include_eos_baseline=self.request.include_eos_baseline,
            keep_first=bool(self.loaded.model.is_encoder_decoder),
        )
        end = start + len(ids)
        only = TokenSpan(words, start, end, words)
        return Alternative(span, words, replace(text, target=target, first=start, end=end, spans=(only,)))


def continued_ids(
    loaded: LoadedModel, before: Sequence[int], words: str, name: str, sandbox: TextSandbox, warnings: list[str]
) -> list[int]:
    """The ids of words that stand behind the ids of a target. Adds to `warnings`.

    `name`: the request's field, for messages. Raises `InputRejected` for words without tokens, and too many of them.
    """
    tokenizer, known = loaded.model.tokenizer, list(before)
    if loaded.model.is_encoder_decoder:
        sandbox.check_texts([{"text_target": words, "add_special_tokens": False}], {})
        ids = list(tokenizer(text_target=words, add_special_tokens=False, verbose=False).input_ids)
    else:
        # The tokenizer writes some special tokens at the beginning by itself.
        special = set(tokenizer.all_special_ids)
        while known and known[0] in special:
            known.pop(0)
        spelled = continuation.spelled(tokenizer, known)
        texts = continuation.texts_to_tokenize(spelled, words)
        sandbox.check_texts([{"text": each, "add_special_tokens": False} for each in texts], {})
        found = continuation.continued(tokenizer, spelled, known, words, name)
        warnings.extend(found.warnings)
        ids = found.ids
    if not ids:
        raise InputRejected(f"{name} has no tokens.")
    check_target_length(loaded, len(before) + len(ids), name)
    return ids
