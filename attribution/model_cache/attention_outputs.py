"""Keeps only the attention rows of attributed steps while the forward runs.

Inseq stores the weights of all layers at all positions until the forward ends, in three copies, and then reads the rows
of the steps. Which modules of a family output the weights is found once, when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from inseq.attr.feat import FeatureAttribution
from inseq.models import HuggingfaceModel

# Names in Transformers' outputs. An encoder's self-attention has no steps; the result contains it whole.
_DECODER, _CROSS = ("decoder_attentions", "attentions"), ("cross_attentions",)


@dataclass(frozen=True)
class AttentionOutput:
    """A module whose output is a tuple that has attention weights ([1, heads, queries, keys]) at `index`."""

    module: torch.nn.Module
    index: int


@dataclass(frozen=True)
class AttentionOutputs:
    """The modules that output a network's attention weights, one for each layer; None if they are unknown."""

    decoder: tuple[AttentionOutput, ...] | None = None
    cross: tuple[AttentionOutput, ...] | None = None
    encoder_has_maps: bool = True  # its weights are of all pairs of tokens, and not of windows or blocks


def find_attention_outputs(network: torch.nn.Module, forward: Callable[[], Any]) -> AttentionOutputs:
    """Run `forward`, which runs the network, and find the module that first returned each tensor of weights."""
    first: dict[int, AttentionOutput] = {}
    kept = []  # keeps the tensors alive, so that `id` stays unique

    def look(module: torch.nn.Module, _: Any, output: Any) -> None:
        for index, each in enumerate(output if type(output) is tuple else ()):
            if isinstance(each, torch.Tensor):
                kept.append(each)
                first.setdefault(id(each), AttentionOutput(module, index))

    with ExitStack() as stack:
        for module in network.modules():
            stack.callback(module.register_forward_hook(look).remove)
        output = forward()

    def outputs(names: Sequence[str]) -> tuple[AttentionOutput, ...] | None:
        weights = next((output[name] for name in names if output.get(name)), ())
        found = tuple(first[id(each)] for each in weights if id(each) in first)
        return found if found and len(found) == len(weights) else None

    encoder = output.get("encoder_attentions") or ()
    has_maps = all(isinstance(each, torch.Tensor) and each.shape[-2] == each.shape[-1] for each in encoder)
    return AttentionOutputs(outputs(_DECODER), outputs(_CROSS), has_maps)


@contextmanager
def keep_attributed_rows(
    method: FeatureAttribution, model: HuggingfaceModel, found: AttentionOutputs, start: int, *, attribute_target: bool
) -> Iterator[None]:
    """Make the `attention` method keep only the rows of steps from target position `start` within the block.

    The scores do not change. An encoder-decoder's decoder self-attention is kept whole unless it is attributed. Does
    nothing where the modules are unknown.
    """
    wanted = [found.cross] if model.is_encoder_decoder else [found.decoder]
    if model.is_encoder_decoder and attribute_target:
        wanted.append(found.decoder)
    if not all(wanted):
        yield
        return
    build = method._build_multistep_output_from_single_step  # noqa: SLF001 - where Inseq reads the rows

    def cut(module: torch.nn.Module, _: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        index = indices[module]
        are_cut.add(module)
        return (*output[:index], output[index][:, :, start - 1 :].clone(), *output[index + 1 :])

    def build_steps(single: Any, attr_pos_start: int, attr_pos_end: int) -> list[Any]:
        if not are_cut:  # BigBird makes new attention modules in a forward
            return list(build(single, attr_pos_start=attr_pos_start, attr_pos_end=attr_pos_end))
        rows = {name: getattr(single, name) for name in ("source_attributions", "target_attributions")}
        single.source_attributions = single.target_attributions = None
        steps: list[Any] = build(single, attr_pos_start=attr_pos_start, attr_pos_end=attr_pos_end)
        for index, step in enumerate(steps):
            if (source := rows["source_attributions"]) is not None:
                step.source_attributions = source[:, :, index]
            if (target := rows["target_attributions"]) is not None:
                step.target_attributions = target[:, : attr_pos_start + index, index]
        return steps

    are_cut = set[torch.nn.Module]()
    indices = {output.module: output.index for each in wanted for output in each or ()}
    with ExitStack() as stack:
        for module in indices:
            # Before Transformers' own hooks, which collect the module's output.
            stack.callback(module.register_forward_hook(cut, prepend=True).remove)
        method._build_multistep_output_from_single_step = build_steps  # noqa: SLF001
        yield
