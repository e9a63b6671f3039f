"""Targets and contrasts that a request gives, as ids or as text.

A text does not always become the tokens that a model generated. Ids are attributed as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from inseq.data import BatchEncoding

from attribution.model_cache.loading import LoadedModel
from attribution.text.encoding import Prompt, check_target_length, encode_target, encode_whole_target, from_ids
from attribution.text.sandbox import TextSandbox
from attribution.text.target_spans import continued_ids
from models import AttributionRequest
from problems import InputRejected


def given_target(
    loaded: LoadedModel,
    request: AttributionRequest,
    index: int,
    prompt: Prompt,
    text: str | None,
    *,
    sandbox: TextSandbox,
    warnings: list[str],
) -> BatchEncoding | None:
    """The target of input number `index` ([1, target_len]); None if the model generates it. Adds to `warnings`.

    `text`: see `read_input`. Raises `InputRejected`.
    """
    if request.choices is not None:
        return _of_choice(loaded, request, prompt, request.choices[0], sandbox=sandbox, warnings=warnings)
    if request.generated_ids is not None:
        return _of_ids(loaded, request, prompt, request.generated_ids[index])
    if text is None:
        return None
    return encode_target(loaded, request, prompt, text, sandbox=sandbox, warnings=warnings)


def _of_choice(
    loaded: LoadedModel,
    request: AttributionRequest,
    prompt: Prompt,
    choice: str,
    *,
    sandbox: TextSandbox,
    warnings: list[str],
) -> BatchEncoding:
    """The input followed by a choice; of an encoder-decoder, the choice as a target ([1, target_len])."""
    if loaded.model.is_encoder_decoder:
        return encode_whole_target(loaded, request, prompt, choice)
    before = prompt.encoding.input_ids[0].tolist()
    ids = continued_ids(loaded, before, choice, "choices[0]", sandbox, warnings)
    return from_ids(
        loaded.model,
        torch.tensor([[*before, *ids]], device=loaded.model.device),
        include_eos_baseline=request.include_eos_baseline,
    )


def encode_ids(loaded: LoadedModel, request: AttributionRequest, ids: Sequence[int], name: str) -> BatchEncoding:
    """Ids of a target, or of its contrast, as an encoding ([1, length]).

    Raises `InputRejected` for an id that the model does not have, and for more of them than it has positions.
    """
    size = int(loaded.network.get_input_embeddings().num_embeddings)
    if unknown := next((each for each in ids if not 0 <= each < size), None):
        raise InputRejected(f"{name}: there is no token {unknown}; this model has ids from 0 to {size - 1}.")
    check_target_length(loaded, len(ids), name)
    return from_ids(
        loaded.model,
        torch.tensor([list(ids)], device=loaded.model.device),
        include_eos_baseline=request.include_eos_baseline,
        keep_first=bool(loaded.model.is_encoder_decoder),
    )


def _of_ids(loaded: LoadedModel, request: AttributionRequest, prompt: Prompt, ids: Sequence[int]) -> BatchEncoding:
    before = (
        [int(loaded.model.bos_token_id)] if loaded.model.is_encoder_decoder else prompt.encoding.input_ids[0].tolist()
    )
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(before, ids, strict=False))))
    if same < len(before):
        what = "the decoder's start token" if loaded.model.is_encoder_decoder else f"the input's {len(before)} tokens"
        raise InputRejected(
            f"generated_ids are all ids of the target, as `target` of a result has them: they begin with {what} "
            f"({before[same]} at position {same})."
        )
    if len(ids) == len(before):
        raise InputRejected("generated_ids have no token behind the input.")
    return encode_ids(loaded, request, ids, "generated_ids")
