"""Value zeroing from its definition (Mohebbi et al., 2023), one layer and one token at a time, by the families' names.

The names are what `attribution.corrections` does without, so this is computed in another way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from tests.first_principles import Plain, zeroed_values

Kind = Literal["own", "source", "encoder"]
# Families without a linear layer for the values alone: their part of the joint layer's output ...
_JOINT: dict[str, tuple[str, slice | list[int]]] = {
    "openai_gpt": ("c_attn", slice(64, 96)),
    "mpt": ("Wqkv", slice(64, 96)),
    "gpt_bigcode": ("c_attn", slice(40, 48)),
    "falcon": ("query_key_value", slice(40, 48)),
    "falcon_alibi": ("query_key_value", slice(40, 48)),
    "longrope": ("qkv_proj", slice(48, 64)),
    # Four parts of queries, values and keys.
    "codegen": ("qkv_proj", [part + value for part in range(0, 96, 24) for value in range(8, 16)]),
}
# ... or their eager attention function; gemma4 shares values among layers.
_EAGER = {"deepseek_v2", "deepseek_v3", "gemma4", "gemma4_seeing", "persimmon", "gptneox_sequential"}
_EYES = ("vision", "visual")
_STAGGERED = 2  # positions that pegasus_x pads in front, in every other layer


@dataclass(frozen=True)
class _Place:
    layer: int
    module: torch.nn.Module
    part: slice | list[int] | None  # of the module's output; None where the attention function is replaced
    call: int  # of the module, where layers share it


def value_zeroing(plain: Plain, family: str, kind: Kind) -> torch.Tensor:
    """Scores [zeroed token, position, layer] of the decoder's own values, the encoder's values that the decoder reads
    (`source`), or the encoder's own (`encoder`).
    """
    network, ids = plain.network, plain.target[:, :-1]  # the last token predicts nothing
    side = (
        network.get_encoder() if kind == "encoder" else network.get_decoder() if plain.is_encoder_decoder else network
    )
    places = list(_places(side, family, is_cross=kind == "source"))
    if family == "mllama":  # layers that read images do not run
        places = [replace(place, layer=index) for index, place in enumerate(places)]
    positions = plain.source.shape[1] if kind == "encoder" else ids.shape[1]
    tokens = ids.shape[1] if kind == "own" else plain.source.shape[1]

    @torch.no_grad()
    def states() -> list[torch.Tensor]:
        if not plain.is_encoder_decoder:
            return list(network(ids, output_hidden_states=True, use_cache=False).hidden_states)
        output = network(plain.source, decoder_input_ids=ids, output_hidden_states=True, use_cache=False)
        if kind != "encoder":
            return list(output.decoder_hidden_states)
        return [*output.encoder_hidden_states[:-1], output.encoder_last_hidden_state]

    clean, distances = states(), torch.full((tokens, positions, len(places)), float("nan"))
    for index, place in enumerate(places):
        for token in range(tokens):
            with _zeroed(plain, place, token, tokens):
                zeroed = states()[place.layer + 1]
            turned = 1 - torch.cosine_similarity(clean[place.layer + 1], zeroed, dim=-1)[0, :positions]
            first = token if kind == "own" else 0
            distances[token, first:, index] = turned[first:]
    distances[distances < 1e-5] = 0
    total = distances.nansum(0, keepdim=True)
    return distances / torch.where(total == 0, 1, total)


def _places(side: torch.nn.Module, family: str, *, is_cross: bool) -> Iterator[_Place]:
    calls: dict[int, int] = {}
    for name, module in side.named_modules(remove_duplicate=False):
        number = re.search(r"\.(\d+)\.", name)
        if number is None or any(each in name for each in ("cross", "encoder_attn", "EncDec")) != is_cross:
            continue
        if any(each in name for each in _EYES):
            continue
        leaf, layer = name.split(".")[-1], int(number[1])
        if family in _EAGER:
            if leaf in {"self_attn", "attention"}:
                yield _Place(layer, module, None, 0)
        elif leaf == _JOINT.get(family, ("", None))[0]:
            yield _Place(layer, module, _JOINT[family][1], 0)
        elif leaf in {"v_proj", "v", "value", "value_proj", "Wv"} and isinstance(module, torch.nn.Linear):
            call = calls[id(module)] = calls.get(id(module), -1) + 1
            yield _Place(layer, module, slice(None), call)


@contextmanager
def _zeroed(plain: Plain, place: _Place, token: int, tokens: int) -> Iterator[None]:
    calls = iter(range(100))

    def hook(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        if next(calls) != place.call:
            return output
        output = output.clone()
        if output.shape[1] == 1 < tokens:  # LED's positions come first
            output[token, :, place.part] = 0
        else:
            staggered = type(plain.network).__name__.startswith("PegasusX") and output.shape[1] % 8
            output[:, token + (_STAGGERED if staggered and output.shape[1] > tokens else 0), place.part] = 0
        return output

    handle = None if place.part is None else place.module.register_forward_hook(hook)
    try:
        with zeroed_values(plain.network, place.module, token) if place.part is None else nullcontext():
            yield
    finally:
        if handle is not None:
            handle.remove()
