"""Attention weights taken as they come: of each layer, the queries of the steps, and not those of the whole text.

Inseq keeps the weights of all layers at all positions until the forward has ended, three times over, and then reads the
rows of the steps. Where a family's modules have them is seen once, when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from inseq.attr.feat import FeatureAttribution
from inseq.models import HuggingfaceModel

# By what they are in Transformers' outputs. An encoder's own weights have no steps: the result has them whole.
_DECODER, _CROSS = ("decoder_attentions", "attentions"), ("cross_attentions",)


@dataclass(frozen=True)
class Place:
    """A module whose output is a tuple with the weights, [1, heads, queries, keys], at an index."""

    module: torch.nn.Module
    index: int


@dataclass(frozen=True)
class Places:
    """Where a network's weights come from, one place for each layer; None where that is not known."""

    decoder: tuple[Place, ...] | None = None
    cross: tuple[Place, ...] | None = None


def find_places(network: torch.nn.Module, forward: Callable[[], Any]) -> Places:
    """Where the weights in the output of `forward`, which runs the network, were seen first."""
    first: dict[int, Place] = {}
    kept = []  # so that no other tensor is at their address

    def look(module: torch.nn.Module, _: Any, output: Any) -> None:
        for index, each in enumerate(output if type(output) is tuple else ()):
            if isinstance(each, torch.Tensor):
                kept.append(each)
                first.setdefault(id(each), Place(module, index))

    with ExitStack() as stack:
        for module in network.modules():
            stack.callback(module.register_forward_hook(look).remove)
        output = forward()

    def places(names: Sequence[str]) -> tuple[Place, ...] | None:
        weights = next((output[name] for name in names if output.get(name)), ())
        found = tuple(first[id(each)] for each in weights if id(each) in first)
        return found if found and len(found) == len(weights) else None

    return Places(places(_DECODER), places(_CROSS))


@contextmanager
def rows_of_steps(
    method: FeatureAttribution, model: HuggingfaceModel, places: Places, start: int, *, attribute_target: bool
) -> Iterator[None]:
    """Within the block, `attention` keeps the rows of the steps from target position `start`: the same numbers.

    The weights of an encoder-decoder's decoder among themselves are kept whole unless they are attributed.
    """
    wanted = [places.cross] if model.is_encoder_decoder else [places.decoder]
    if model.is_encoder_decoder and attribute_target:
        wanted.append(places.decoder)
    if not all(wanted):
        yield
        return
    build = method._build_multistep_output_from_single_step  # noqa: SLF001 - where Inseq reads the rows

    def cut(module: torch.nn.Module, _: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        index = indices[module]
        return (*output[:index], output[index][:, :, start - 1 :].clone(), *output[index + 1 :])

    def build_steps(single: Any, attr_pos_start: int, attr_pos_end: int) -> list[Any]:
        rows = {name: getattr(single, name) for name in ("source_attributions", "target_attributions")}
        single.source_attributions = single.target_attributions = None
        steps: list[Any] = build(single, attr_pos_start=attr_pos_start, attr_pos_end=attr_pos_end)
        for index, step in enumerate(steps):
            if (source := rows["source_attributions"]) is not None:
                step.source_attributions = source[:, :, index]
            if (target := rows["target_attributions"]) is not None:
                step.target_attributions = target[:, : attr_pos_start + index, index]
        return steps

    indices = {place.module: place.index for each in wanted for place in each or ()}
    with ExitStack() as stack:
        for module in indices:
            # Before Transformers' own hooks, which gather what the module returns.
            stack.callback(module.register_forward_hook(cut, prepend=True).remove)
        method._build_multistep_output_from_single_step = build_steps  # noqa: SLF001
        yield
