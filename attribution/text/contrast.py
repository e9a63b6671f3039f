"""The contrasts of one text of several: their ids, and the target's tokens paired with theirs.

Inseq silently aligns unpaired tokens from the right. Here every attributed token has a pair, or the job is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from inseq.data import BatchEncoding
from inseq.models import HuggingfaceModel

from attribution.corrections.positions_and_padding import CONTRAST_POSITIONS
from attribution.corrections.registry import Ledger
from attribution.model_cache.loading import LoadedModel
from attribution.text import continuation
from attribution.text.encoding import Prompt, Text, encode_reply, from_ids
from attribution.text.given_target import encode_ids
from attribution.text.languages import check_target_language
from attribution.text.sandbox import TextSandbox
from models import Arguments, AttributionRequest
from problems import InputRejected

Pairs = list[tuple[int, int]]  # a position of the target, and one of its contrast
Encodings = Mapping[str, BatchEncoding]  # of contrasts that are not encoded as Inseq would: [1, length] each
_IDS = "\0ids "  # how the text that stands for a contrast of ids begins


@dataclass(frozen=True)
class ContrastReader:
    """Reads the contrasts of one text; adds to `ledger` and `warnings`."""

    request: AttributionRequest
    loaded: LoadedModel
    text: Text
    ledger: Ledger
    warnings: list[str]
    sandbox: TextSandbox
    encodings: dict[str, BatchEncoding] = field(default_factory=dict)  # see `Encodings`
    paired: dict[int, int] = field(default_factory=dict)  # see `Text.contrast_ids`; of the contrast in Inseq's labels

    def arguments(self, index: int) -> dict[str, Arguments]:
        """The `attributed_fn_args` and `step_scores_args` for text number `index`.

        Raises `InputRejected` if there is not one contrast per text, or its tokens do not pair up with the target's.
        """
        return {name: self._arguments(name, index) for name in ("attributed_fn_args", "step_scores_args")}

    def _arguments(self, name: str, index: int) -> Arguments:
        request = self.request
        arguments = dict(getattr(request, name))
        if request.skip_special_tokens:
            # Contrastive functions encode the contrast themselves, and must do it in the same way.
            arguments["skip_special_tokens"] = True
        for key in ("contrast_targets", "contrast_sources"):
            value = arguments.get(key)
            if isinstance(value, list):
                if len(value) != request.count:
                    raise InputRejected(f"{name}.{key} needs one text per input ({request.count}).")
                arguments[key] = value[index]
        if (ids := arguments.pop("contrast_ids", None)) is not None:
            if len(ids) != request.count:
                raise InputRejected(f"{name}.contrast_ids needs one list of ids per input ({request.count}).")
            arguments["contrast_targets"] = self._of_ids(f"{name}.contrast_ids", ids[index])
        alignments = arguments.get("contrast_targets_alignments")
        if alignments is not None and len(alignments) != request.count:
            raise InputRejected(f"{name}.contrast_targets_alignments needs one list per input ({request.count}).")
        if contrast := arguments.get("contrast_targets"):
            given = None if alignments is None else [(pair[0], pair[1]) for pair in alignments[index]]
            arguments["contrast_targets_alignments"] = self._paired_with(name, arguments, contrast, given)
        return arguments

    def _paired_with(self, name: str, arguments: Arguments, contrast: str, given: Pairs | None) -> list[Pairs] | None:
        """The contrast's pairs with the target; `given` are those of the request."""
        ids, first = self._read(contrast)
        if not arguments.get("contrast_sources") and self._is_target(ids, given):
            raise InputRejected(
                f"{name}: the contrast is the target itself: no attributed token, and none before it, differs. Give a "
                "contrast with another token."
            )
        pairs = self._pairs(name, len(ids), given)
        if not self.paired:
            self.paired.update(self._nearest(ids, given))
        if given is not None:
            runs_contrast = name == "step_scores_args" or arguments.get("contrast_force_inputs")
            self._check_context(f"{name}.contrast_targets_alignments", given, max(first, int(bool(runs_contrast))))
        return pairs

    def _read(self, contrast: str) -> tuple[list[int], int]:
        """The ids of a contrast, and the position of the first that can be compared: behind messages the
        reply's, in a decoder the one behind its start token, otherwise 0.
        """
        model, prompt = self.loaded.model, self.text.prompt
        if contrast.startswith(_IDS) and contrast in self.encodings:
            return self.encodings[contrast].input_ids[0].tolist(), int(model.is_encoder_decoder)
        if model.is_encoder_decoder:
            check_target_language(model.tokenizer)
        if self.request.conversations is None or model.is_encoder_decoder:
            encoded = model.encode(
                [contrast],
                as_targets=model.is_encoder_decoder,
                add_special_tokens=not self.request.skip_special_tokens,
            )
            return encoded.input_ids[0].tolist(), int(model.is_encoder_decoder)
        is_reply = contrast.startswith(prompt.text) or not _begins_as(self.loaded, prompt, contrast)
        if contrast not in self.encodings:
            self.encodings[contrast] = self._reply(contrast) if is_reply else self._other_conversation(contrast)
        first = prompt.encoding.input_ids.shape[1] if is_reply else 0
        return self.encodings[contrast].input_ids[0].tolist(), int(first)

    def _nearest(self, ids: list[int], given: Pairs | None) -> dict[int, int]:
        """The contrast's id for each target position that has a pair: as in the labels, its first one."""
        ours = int(self.text.target.input_ids.shape[1])
        pairs = zip(range(ours), range(len(ids)), strict=False) if given is None else given
        return {position: ids[other] for position, other in sorted(pairs, reverse=True)}

    def _is_target(self, ids: list[int], given: Pairs | None) -> bool:
        """Whether each attributed token, and all before it, are those of the contrast."""
        ours = self.text.target.input_ids[0].tolist()
        if given is None:
            return len(ids) == len(ours) and ids[: self.text.end] == ours[: self.text.end]
        pairs = [pair for pair in given if pair[0] in range(self.text.first, self.text.end)]
        return all(ours[: mine + 1] == ids[: theirs + 1] for mine, theirs in pairs)

    def _of_ids(self, name: str, ids: list[int]) -> str:
        """The text that stands for a contrast of these ids, wherever Inseq encodes it."""
        contrast = _IDS + " ".join(map(str, ids))
        self.encodings[contrast] = encode_ids(self.loaded, self.request, ids, name)
        return contrast

    def _reply(self, contrast: str) -> BatchEncoding:
        prompt = self.text.prompt
        return encode_reply(
            self.loaded,
            self.request,
            prompt,
            contrast.removeprefix(prompt.text),
            name="contrast_targets",
            sandbox=self.sandbox,
            warnings=self.warnings,
        )

    def _other_conversation(self, contrast: str) -> BatchEncoding:
        """A whole text with the template's special tokens in it: the tokenizer adds none."""
        model = self.loaded.model
        ids = model.tokenizer(contrast, add_special_tokens=False, verbose=False, return_tensors="pt").input_ids
        return from_ids(model, ids.to(model.device), include_eos_baseline=self.request.include_eos_baseline)

    def _pairs(self, name: str, theirs: int, given: Pairs | None) -> list[Pairs] | None:
        text = self.text
        ours = text.target.input_ids.shape[1]
        if given is None:
            if theirs != ours:
                raise InputRejected(
                    f"The contrast has {theirs} tokens and the target {ours}; Inseq would silently align them from "
                    "the right. Give contrast_targets_alignments: for each input a list of pairs of [target position, "
                    f"contrast position], one for each position from {text.first} to {text.end - 1}."
                )
            if text.end < ours and not self.ledger.apply(CONTRAST_POSITIONS):
                return None
            return [[(position, position) for position in range(ours)]]
        where = f"{name}.contrast_targets_alignments"
        for pair in given:
            if not (0 <= pair[0] < ours and 0 <= pair[1] < theirs):
                raise InputRejected(
                    f"{where}: {list(pair)} is no pair of a target position (0 to {ours - 1}) and a contrast position "
                    f"(0 to {theirs - 1})."
                )
        missing = sorted(set(range(text.first, text.end)) - {pair[0] for pair in given})
        if missing:
            raise InputRejected(
                f"{where} has no pair for target position {', '.join(map(str, missing))}; Inseq would guess from the "
                f"right. Every position from {text.first} to {text.end - 1} needs one."
            )
        return [given]

    def _check_context(self, where: str, given: Pairs, first: int) -> None:
        """Raise `InputRejected` if an attributed position has a pair before the contrast's `first` one."""
        attributed = range(self.text.first, self.text.end)
        early = next((pair for pair in given if pair[0] in attributed and pair[1] < first), None)
        if early is None:
            return
        if first > 1:
            raise InputRejected(
                f"{where}: {list(early)} pairs with a token of the conversation. Behind messages contrast_targets is "
                f"the assistant's reply alone, whose positions begin at {first}, behind the conversation. For another "
                "conversation give its whole rendered text, with the template's special tokens."
            )
        if self.loaded.model.is_encoder_decoder:
            raise InputRejected(f"{where}: contrast position 0 is the decoder's start token; its text begins at 1.")
        bos = self.loaded.model.tokenizer.bos_token
        raise InputRejected(
            f"{where}: {list(early)}: contrast position 0 has nothing before it, so the model gives it no probability. "
            f"Begin contrast_targets with context{f', at least {bos!r}' if bos else ', such as a line break'}, and "
            "count the positions with it."
        )


def _begins_as(loaded: LoadedModel, prompt: Prompt, contrast: str) -> bool:
    """Whether a contrast begins with the special token with which the rendered conversation begins, or else with all
    that the template writes before the first message.
    """
    tokenizer, ids = loaded.model.tokenizer, prompt.encoding.input_ids[0].tolist()
    if ids[0] in tokenizer.added_tokens_decoder:
        return contrast.startswith(continuation.spelled(tokenizer, ids[:1]))
    marks = prompt.from_template or [False]
    opening = continuation.spelled(tokenizer, ids[: marks.index(False) if False in marks else 0])
    return bool(opening.strip()) and contrast.startswith(opening)


@contextmanager
def encoded_as(model: HuggingfaceModel, encodings: Encodings) -> Iterator[None]:
    """Within the block, Inseq's step functions get these encodings for their contrasts, one row for each text asked."""
    if not encodings:
        yield
        return
    encode: Callable[..., BatchEncoding] = model.encode

    def known_or_encoded(texts: str | list[str], *more: Any, **named: Any) -> BatchEncoding:
        rows = [texts] if isinstance(texts, str) else list(texts)
        if len(set(rows)) != 1 or rows[0] not in encodings:
            return encode(texts, *more, **named)
        return _repeated(encodings[rows[0]], len(rows))

    model.encode = known_or_encoded
    try:
        yield
    finally:
        del model.encode


def _repeated(encoding: BatchEncoding, rows: int) -> BatchEncoding:
    def repeated(ids: torch.Tensor) -> torch.Tensor:
        return ids.repeat(rows, 1)

    return BatchEncoding(
        input_ids=repeated(encoding.input_ids),
        attention_mask=repeated(encoding.attention_mask),
        input_tokens=[list(encoding.input_tokens[0]) for _ in range(rows)],
        baseline_ids=repeated(encoding.baseline_ids),
    )
