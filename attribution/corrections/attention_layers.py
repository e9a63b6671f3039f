"""Finds a network's blocks with attention, and where each block's values can be set to zero, from one forward.

Nothing is read from names: a block is a member of the outermost `ModuleList` around an attention, a layer is one call
of a block, and the number of keys tells whether an attention is of the block's own side or of the source.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from attribution.corrections.attention_values import AttentionProducts, Product, mark_projection, projections_of
from problems import UnsupportedByModel

_NDIM = 3  # [rows, positions, width]
_DENSE_NDIM = 4  # [rows, heads, keys, width]; local attention has an axis of chunks or blocks besides


@dataclass(frozen=True)
class Target:
    """Where one attention's values enter: a product of weights and values, or a linear layer that outputs values.

    `call` counts the products, or the calls of the linear layer, within one call of the block.
    """

    call: int
    projection: torch.nn.Module | None = None
    axis: int = 1  # of the positions in the linear layer's output
    offset: int = 0  # of the first position in it, behind padding
    groups: int = 1  # heads of the product that share one head of values, which is repeated for them


@dataclass(frozen=True)
class Layer:
    """One call of a block that has attention."""

    index: int  # among all calls of this stack of blocks
    block: torch.nn.Module
    call: int  # of the block in one forward; more than 0 where layers share a block
    is_last: bool  # the stack's last, whose output the model may still transform
    own: tuple[Target, ...]  # the values of the block's own side
    source: tuple[Target, ...]  # those of the encoder's output


@dataclass(frozen=True)
class _Projected:
    """A call of a linear layer."""

    layer: torch.nn.Module
    shape: tuple[int, ...]  # of the output
    occupied: range | None = None  # positions whose input is not zero; None where it has no axis of positions

    def place_of(self, length: int | None) -> tuple[int, int] | None:
        """The axis of so many positions in the output, and the first of them; None if it is of others."""
        for axis in (1, 0):
            if length == self.shape[axis]:
                return axis, 0
        return (1, self.occupied.start) if self.occupied is not None and length == len(self.occupied) else None


@dataclass
class BlockCall:
    """What was seen in one call of a block."""

    stack: torch.nn.ModuleList
    block: torch.nn.Module
    call: int
    length: int = 0  # positions of its input
    arguments: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    hidden: torch.Tensor | None = None  # its hidden states among the arguments [rows, positions, width]
    given: torch.Tensor | None = None  # a copy of them, as they were before the block
    products: list[tuple[torch.nn.Module, Product]] = field(default_factory=list)  # with the module that it runs in
    projected: list[_Projected] = field(default_factory=list)
    output: Any = None  # its hidden states [rows, positions, width], or a tuple or list that they come first in
    # (module, input, output) of calls after the block and before the next, whose output is of the input's shape.
    followed: list[tuple[torch.nn.Module, torch.Tensor, torch.Tensor]] = field(default_factory=list)


def block_calls(network: torch.nn.Module, forward: Callable[[], Any]) -> tuple[list[BlockCall], Any]:
    """Run `forward`, which runs the network once, and return each call of a block in order, and its output."""
    recorder = _Recorder(network)
    with ExitStack() as stack:
        for module in network.modules():
            stack.callback(module.register_forward_pre_hook(recorder.before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(recorder.after).remove)
        stack.enter_context(AttentionProducts(recorder.on_product, trace=True))
        output = forward()
    return recorder.calls, output


def first_tensor(output: Any) -> torch.Tensor:
    """A block's hidden states: its output, or the first part of it."""
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


def with_copied_states(output: Any) -> Any:
    """A block's output with a copy of its hidden states, which the network may change in place afterwards."""
    states = first_tensor(output).clone()
    return states if isinstance(output, torch.Tensor) else type(output)([states, *output[1:]])


def layers_of(calls: Sequence[BlockCall], *, source: int | None) -> list[Layer]:
    """The calls of blocks that have attention, to their own positions or to `source` others.

    Raises `UnsupportedByModel` where an attention's values cannot be told from the operations.
    """
    by_stack: dict[int, list[BlockCall]] = defaultdict(list)
    for each in calls:
        by_stack[id(each.stack)].append(each)
    found = []
    for each in (each for each in calls if each.products):
        siblings = by_stack[id(each.stack)]
        targets = _targets(each, source)
        found.append(
            Layer(
                index=next(index for index, other in enumerate(siblings) if other is each),
                block=each.block,
                call=each.call,
                is_last=each is siblings[-1],
                own=tuple(target for is_source, target in targets if not is_source),
                source=tuple(target for is_source, target in targets if is_source),
            )
        )
    return found


class _Recorder:
    """Hooks of every module, which follow the calls of blocks and what happens in them."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.calls: list[BlockCall] = []
        self._stacks = {
            id(block): stack for stack in network.modules() if isinstance(stack, torch.nn.ModuleList) for block in stack
        }
        self._open: list[torch.nn.Module] = []
        self._current: BlockCall | None = None
        self._counts: dict[int, int] = defaultdict(int)

    def before(self, module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._open.append(module)
        if self._current is None and id(module) in self._stacks:
            self._current = BlockCall(self._stacks[id(module)], module, self._counts[id(module)])
            self._counts[id(module)] += 1
            hidden = next((each for each in (*arguments, *named.values()) if isinstance(each, torch.Tensor)), None)
            self._current.length = hidden.shape[1] if hidden is not None and hidden.ndim > 1 else 0
            self._current.arguments, self._current.named = arguments, dict(named)
            self._current.hidden, self._current.given = hidden, None if hidden is None else hidden.clone()
            self.calls.append(self._current)

    def after(self, module: torch.nn.Module, arguments: Any, output: Any) -> None:
        self._open.pop()
        current = self._current
        if current is None:
            given = arguments[0] if arguments else None
            if self.calls and isinstance(given, torch.Tensor) and isinstance(output, torch.Tensor):
                self.calls[-1].followed += [(module, given, output)] if given.shape == output.shape else []
            return
        if isinstance(module, torch.nn.Linear) and isinstance(output, torch.Tensor):
            mark_projection(module, output)
            current.projected.append(_Projected(module, tuple(output.shape), _occupied(arguments[0], current.length)))
        if current.block is module and module not in self._open:
            current.output = with_copied_states(output)
            self._current = None

    def on_product(self, product: Product) -> torch.Tensor:
        if self._current is not None:
            self._current.products.append((self._open[-1], product))
        return product.values


def _occupied(given: torch.Tensor, length: int) -> range | None:
    """The positions of a linear layer's input ([rows, positions, width]) that are not zero, where it has other
    positions than the block's input: some families pad within the block.
    """
    if given.ndim != _NDIM or length in given.shape[:2]:
        return None
    places = (given != 0).any(-1).any(0).nonzero()[:, 0].tolist()
    return range(places[0], places[-1] + 1) if places else None


def _targets(called: BlockCall, source: int | None) -> list[tuple[bool, Target]]:
    """(Whether the values are the source's, where they enter) for each attention in a call of a block."""
    attentions: dict[int, list[int]] = defaultdict(list)
    for index, (module, _) in enumerate(called.products):
        attentions[id(module)].append(index)
    found: list[tuple[bool, Target]] = []
    unknown, lengths = [], {called.length, source} - {None}
    for places in attentions.values():
        module, products = called.products[places[0]][0], [called.products[index][1] for index in places]
        if all(each.values.ndim <= _DENSE_NDIM and each.length in lengths for each in products):
            for index, product in zip(places, products, strict=True):
                found.append((product.length != called.length, Target(index, groups=_groups(module, product))))
        elif by_projection := list(_projections(called, products, source)):
            found += by_projection
        else:
            unknown += products
    # A router's weights may be multiplied with something too; a block with an attention that is known has no other.
    if unknown and not found:
        raise UnsupportedByModel(
            f"value_zeroing: {type(called.block).__name__} multiplies attention weights with values of shape "
            f"{list(unknown[0].values.shape)}, in which no value vector of one token was found. Use attention, or a "
            "gradient method."
        )
    return found


def _groups(module: torch.nn.Module, product: Product) -> int:
    """Heads of this product's values that repeat one head: the group size where the module repeats them before it."""
    groups = getattr(module, "num_key_value_groups", 1)
    heads = product.values.shape[1] if product.values.ndim == _DENSE_NDIM else 1
    return groups if isinstance(groups, int) and product.weights.shape[1] == heads and heads % groups == 0 else 1


def _projections(called: BlockCall, products: list[Product], source: int | None) -> Iterator[tuple[bool, Target]]:
    """Yield the linear layers that output the values of an attention over windows, blocks or joined sequences."""
    of_values = {layer for each in products for layer in projections_of(each.values)}
    of_weights = {layer for each in products for layer in projections_of(each.weights)}
    for layer in of_values - of_weights:
        calls = [each for each in called.projected if each.layer is layer]
        for call, projected in enumerate(calls):
            for length in (called.length, source):
                if (place := projected.place_of(length)) is not None:
                    yield length != called.length, Target(call, layer, axis=place[0], offset=place[1])
                    break
