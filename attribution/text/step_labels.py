"""Token labels (tokens with their ids) in linear time; Inseq's take quadratic time.

Inseq searches the list of all pairs for each token's pair, and labels and cleans the whole prefix again at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from inseq.data import EncoderDecoderBatch
from inseq.models import HuggingfaceModel
from inseq.utils.typing import TokenWithId

Pairs = Sequence[tuple[int, int]]  # a target position and a position of its contrast
_NOTHING = torch.empty((1, 0), dtype=torch.long)


def labels(
    tokens: Sequence[str], ids: Sequence[int], contrast: Sequence[str] | None = None, pairs: Pairs | None = None
) -> list[TokenWithId]:
    """The labels of one sequence, equal to Inseq's `join_token_ids`.

    With a `contrast`, a token that differs from its pair is labelled "contrast → token" and has the id -1.
    """
    if contrast is None:
        return [TokenWithId(token, index) for token, index in zip(tokens, ids, strict=False)]
    nearest: dict[int, int] = {}
    for position, other in pairs or []:
        nearest[position] = min(other, nearest.get(position, other))
    found = []
    for position, (token, index) in enumerate(zip(tokens, ids, strict=False)):
        other = nearest.get(position, -1) if pairs else position
        is_other = other != -1 and token != contrast[other]
        found.append(TokenWithId(f"{contrast[other]} → {token}", -1) if is_other else TokenWithId(token, index))
    return found


def named_tokens(tokens: Sequence[str | None], ids: Sequence[int]) -> list[str]:
    """The tokens of ids, named by their id where the model's vocabulary is larger than its tokenizer's."""
    if None not in tokens:
        return [str(each) for each in tokens]
    return [f"<{index}>" if token is None else token for token, index in zip(tokens, ids, strict=True)]


class StepLabels:
    """The labels of one text's steps, made once and shared by them."""

    def __init__(self, batch: Any) -> None:
        self.target = labels(batch.target_tokens[0], batch.target_ids[0].tolist())
        self._source: list[TokenWithId] | None = None
        if isinstance(batch, EncoderDecoderBatch):
            self._source = labels(batch.source_tokens[0], batch.source_ids[0].tolist())

    def enriched(
        self, enrich: Callable[..., Any], model: HuggingfaceModel, output: Any, length: int, *more: Any, **named: Any
    ) -> Any:
        """A step's output with its labels: those of the predicted token by `enrich` (a formatter's
        `enrich_step_output`), those of source and prefix from here. `length` is the prefix's, in tokens.
        """
        # `enrich` reads the length of the prefix to find the contrast's token, so it gets a prefix without content.
        shown = SimpleNamespace(input_tokens=[range(length)], input_ids=_NOTHING)
        prefix = SimpleNamespace(target_tokens=[range(length)], target_ids=_NOTHING, sources=shown, targets=shown)
        output = enrich(model, output, prefix, *more, **named)
        output.source = None if self._source is None else [self._source]
        output.prefix = [self.target[:length]]
        return output


@contextmanager
def labelled_once(model: HuggingfaceModel) -> Iterator[None]:
    """Within the block, the model labels texts by `labels`, cleans equal tokens once, and names ids without a token.

    The caller holds the model's lock. Blocks must not be nested: the inner one would end the outer one's labels.
    """
    clean, convert = model.clean_tokens, model.convert_ids_to_tokens
    known: dict[Any, Any] = {}

    def get_token_with_ids(
        batch: Any,
        contrast_target_tokens: Sequence[Sequence[str]] | None = None,
        contrast_targets_alignments: Sequence[Pairs] | None = None,
    ) -> list[list[TokenWithId]]:
        contrast = None if contrast_target_tokens is None else contrast_target_tokens[0]
        pairs = None if contrast_targets_alignments is None else contrast_targets_alignments[0]
        return [labels(batch.target_tokens[0], batch.target_ids[0].tolist(), contrast, pairs)]

    def clean_tokens(tokens: Any, skip_special_tokens: bool = False, as_targets: bool = False) -> Any:
        if tokens and not isinstance(tokens[0], bytes | str | TokenWithId):
            return [clean_tokens(each, skip_special_tokens, as_targets) for each in tokens]
        return [clean_token(each, skip_special_tokens, as_targets) for each in tokens]

    def clean_token(token: Any, *flags: bool) -> Any:
        is_label = isinstance(token, TokenWithId)
        key = (type(token), token.token if is_label else token, *flags)
        if key not in known:
            (known[key],) = clean([token], *flags)
        # A new object for each position: `readable_tokens` identifies positions by their label objects.
        return TokenWithId(known[key].token, token.id) if is_label else known[key]

    def convert_ids_to_tokens(ids: torch.Tensor, *more: Any, **named: Any) -> Any:
        if ids.ndim > 1:
            return [convert_ids_to_tokens(each, *more, **named) for each in ids]
        return named_tokens(convert(ids, *more, **named), ids.view(-1).tolist())

    model.get_token_with_ids, model.clean_tokens = get_token_with_ids, clean_tokens
    model.convert_ids_to_tokens = convert_ids_to_tokens
    try:
        yield
    finally:
        del model.get_token_with_ids, model.clean_tokens, model.convert_ids_to_tokens
