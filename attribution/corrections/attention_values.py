"""Finds where a network's attentions multiply their weights with value vectors, from the operations that it runs.

An attention is a softmax whose result is multiplied with another tensor: the values. This holds for grouped, latent and
cross-attention, with sinks or soft caps, whatever the modules and variables are called. Names play no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# Attributes that we set on tensors: the weights' axis of keys, counted from the last, and the projections that a tensor
# was computed from.
_KEYS, _PROJECTIONS = "_attention_keys", "_projections"
_SOFTMAXES = {"softmax", "_softmax", "special_softmax"}
_PRODUCTS = {"matmul", "__matmul__", "bmm", "einsum"}
_FUSED = "scaled_dot_product_attention"
_RESHAPING = {"view", "reshape", "pad", "as_strided", "flatten"}  # after these, weights may have no axis of keys
_SWAPPING = {"transpose", "swapaxes", "permute"}  # after these, their keys are in another axis
# After these, attention weights are still attention weights, with their keys in the same axis.
_KEEPING = {
    "dropout", "to", "type", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clone", "detach",
    "__getitem__", "mul", "mul_", "masked_fill", "nan_to_num", "expand", *_RESHAPING,
}  # fmt: skip


@dataclass(frozen=True)
class Product:
    """Weights times values: both tensors, and the values' axis of keys, counted from the last (negative); None where
    the weights were reshaped and their keys are no axis any more.
    """

    weights: torch.Tensor  # of a fused attention: its queries
    values: torch.Tensor
    keys: int | None
    is_fused: bool = False

    @property
    def length(self) -> int | None:
        """How many keys the weights are of."""
        return None if self.keys is None else int(self.values.shape[self.keys])


class AttentionProducts(TorchFunctionMode):
    """Within this context, `on_product` is called before each product of weights and values of this thread.

    What it returns takes the place of the values; what `on_result` returns, that of the product. With `trace`, tensors
    know the linear layers they were computed from (see `projections_of`), if `mark_projection` is called with each
    layer's output.
    """

    def __init__(
        self,
        on_product: Callable[[Product], torch.Tensor],
        *,
        on_result: Callable[[Product, torch.Tensor], torch.Tensor] | None = None,
        trace: bool = False,
    ) -> None:
        super().__init__()
        self._on_product = on_product
        self._on_result = on_result
        self._product: Product | None = None  # that is being computed
        self._trace = trace

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        name = getattr(function, "__name__", "")
        if name in _PRODUCTS or name == _FUSED:
            self._product = None
            arguments, named = self._with_values(name, tuple(arguments), named)
        result = function(*arguments, **named)
        if self._product is not None:
            product, self._product = self._product, None
            result = result if self._on_result is None else self._on_result(product, result)
        if name in _SOFTMAXES:
            _mark_weights(result, arguments, named)
        elif name in _KEEPING or name in _SWAPPING:
            _pass_on(name, arguments, named, result)
        if self._trace:
            _trace(arguments, named, result)
        return result

    def _with_values(
        self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a product, with the values that `on_product` returns."""
        if name == _FUSED:
            given = dict(zip(("query", "key", "value"), arguments, strict=False)) | named
            values = self._values(Product(given["query"], given["value"], -2, is_fused=True))
            return (
                ((*arguments[:2], values, *arguments[3:]), named)
                if "value" not in named
                else (arguments, named | {"value": values})
            )
        before, operands = _operands(name, arguments)
        place = next((index for index, each in enumerate(operands) if hasattr(each, _KEYS)), None)
        if place is None or len(operands) != 2 or not isinstance(operands[1 - place], torch.Tensor):  # noqa: PLR2004
            return arguments, named
        keys = getattr(operands[place], _KEYS)
        axis = None if keys is None else _axis_of_values(*before, place=place, keys=keys)
        if axis is None and keys is not None:
            return arguments, named
        operands[1 - place] = self._values(Product(operands[place], operands[1 - place], axis))
        return (*before, *operands), named

    def _values(self, product: Product) -> torch.Tensor:
        self._product = product
        return self._on_product(product)


def _operands(name: str, arguments: tuple[Any, ...]) -> tuple[tuple[str, ...], list[Any]]:
    """The equation of an einsum, nothing for others, and the operands."""
    if name != "einsum":
        return (), list(arguments)
    equation, *operands = arguments
    joined = len(operands) == 1 and isinstance(operands[0], list | tuple)
    return (equation,), list(operands[0] if joined else operands)


def _axis_of_values(equation: str = "", *, place: int, keys: int) -> int | None:
    """The values' axis of keys, where the weights at `place` have theirs at `keys`; None if it is no such product."""
    if not equation:
        return -2 if place == 0 and keys == -1 else None
    letters = [each.strip() for each in equation.partition("->")[0].split(",")]
    letter, values = letters[place][keys], letters[1 - place]
    return values.index(letter) - len(values) if letter in values else None


def mark_projection(layer: torch.nn.Module, output: torch.Tensor) -> None:
    """Note that a tensor is a linear layer's output."""
    setattr(output, _PROJECTIONS, frozenset([layer]))


def projections_of(tensor: torch.Tensor) -> frozenset[torch.nn.Module]:
    """The linear layers whose outputs a tensor was computed from, without others in between."""
    found: frozenset[torch.nn.Module] = getattr(tensor, _PROJECTIONS, frozenset())
    return found


def _mark_weights(result: torch.Tensor, arguments: Sequence[Any], named: dict[str, Any]) -> None:
    axis = named.get("dim", arguments[1] if len(arguments) > 1 else -1)
    if isinstance(axis, int):
        setattr(result, _KEYS, axis if axis < 0 else axis - result.ndim)


def _pass_on(name: str, arguments: Sequence[Any], named: dict[str, Any], result: Any) -> None:
    """Mark the result as weights where an operand is, and their keys are still one axis of it."""
    weights = next((each for each in arguments[:2] if isinstance(each, torch.Tensor) and hasattr(each, _KEYS)), None)
    if weights is None or not isinstance(result, torch.Tensor) or result is weights:
        return
    setattr(result, _KEYS, _keys_after(name, arguments, named, weights, result))


def _keys_after(
    name: str, arguments: Sequence[Any], named: dict[str, Any], weights: torch.Tensor, result: torch.Tensor
) -> int | None:
    """The axis of keys in what an operation made of weights; None where they are no single axis."""
    keys: int | None = getattr(weights, _KEYS)
    if keys is None:
        return None
    if name in _SWAPPING:
        axes = [each % weights.ndim for each in _flat((*arguments[1:], *named.values()))]
        order = list(range(weights.ndim))
        if name == "permute":
            order = axes
        else:
            order[axes[0]], order[axes[1]] = order[axes[1]], order[axes[0]]
        return order.index(weights.ndim + keys) - weights.ndim
    if result.ndim < -keys or (name in _RESHAPING and result.shape[keys] != weights.shape[keys]):
        return None
    return keys


def _trace(arguments: Sequence[Any], named: dict[str, Any], result: Any) -> None:
    tensors = [each for each in _flat((*arguments, *named.values())) if isinstance(each, torch.Tensor)]
    found = frozenset[torch.nn.Module]().union(*(projections_of(each) for each in tensors))
    if found:
        for each in _flat((result,)):
            if isinstance(each, torch.Tensor):
                setattr(each, _PROJECTIONS, found)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for each in values:
        if isinstance(each, list | tuple):
            yield from each
        else:
            yield each
