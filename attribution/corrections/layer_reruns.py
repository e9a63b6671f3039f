"""Runs one layer again by itself, with one token's value vectors set to zero for one position at a time.

Behind its attention, a transformer block computes each position by itself. So a cell (token, position) needs the
block's input at the position and the attention's result there without the token's value: cells of any tokens and
positions go into one batch, and a causal layer needs half of the pairs only. Whether a layer is such a block is
checked in each batch: cells without a zeroed value must come out as in the clean forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import Cache

from attribution.corrections.attention_layers import BlockCall, Layer, Target, first_tensor
from attribution.corrections.attention_values import AttentionProducts, Product
from attribution.corrections.zeroed_values import chosen_heads

_NONE = -1  # in place of a token: nothing is zeroed
_HEADS_NDIM = 4  # [rows, heads, positions, width]; 3 where rows and heads are one axis
# By which a position's vector may differ from the clean one, relative to its length.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
_HALF_TOLERANCE = 0.02

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Finish = Callable[[torch.Tensor], torch.Tensor]


class NotRerunnable(Exception):
    """The layer cannot be run by itself, or not on cells."""


@dataclass(frozen=True)
class Rerun:
    """What running one layer again takes: its call in the clean forward, what its output is compared with, and what is
    set to zero.
    """

    call: BlockCall
    clean: torch.Tensor  # [1, positions, width]
    finish: Finish  # from the block's hidden states to what is compared
    target: Target  # the attention whose values are set to zero
    kept: Target | None  # the attention before it, of the block's own side, whose values are kept
    units: Any = None  # the heads whose values are set to zero; None for all


@dataclass(frozen=True)
class _Zeroed:
    """Weights [heads, positions, tokens] and values [heads, tokens, width] of one product of the clean forward, and the
    heads whose values are set to zero.
    """

    weights: torch.Tensor
    values: torch.Tensor
    heads: torch.Tensor


@dataclass
class _Cells:
    """A batch of cells, [rows, positions] each."""

    tokens: torch.Tensor
    positions: torch.Tensor


@torch.no_grad()
def distances(
    rerun: Rerun,
    tokens: int,
    distance: Distance,
    *,
    is_causal: bool,
    rows_at_once: int,
    before_batch: Callable[[float], None],
) -> torch.Tensor:
    """The distance of the layer's output from the clean one with each token zeroed: [positions, tokens], float32.

    NaN at positions before the token if `is_causal`. `before_batch` is called with the part that is done and may raise.
    Raises `NotRerunnable`, also where the layer mixes positions in another way than by attention.
    """
    positions, device = rerun.clean.shape[1], rerun.clean.device
    given = _first(rerun.call)
    if tuple(given.shape[:2]) != (1, positions):
        raise NotRerunnable
    products = {rerun.target.call: _zeroed(rerun, positions, tokens)}
    if rerun.kept is not None:
        products[rerun.kept.call] = _checked(rerun.call, rerun.kept, positions, positions)
    found = torch.full((positions, tokens), float("nan"), device=device)
    grid = _grid(positions, tokens, is_causal=is_causal, device=device)
    rows = grid.tokens.shape[0]
    for first in range(0, rows, rows_at_once):
        before_batch(first / rows)
        chosen = slice(first, first + rows_at_once)
        cells = _Cells(grid.tokens[chosen], grid.positions[chosen])
        states = rerun.finish(_run(rerun.call, given, cells, products)).float()
        clean = rerun.clean[0, cells.positions].float()
        if states.shape != clean.shape:
            raise NotRerunnable
        is_clean = cells.tokens == _NONE
        _compare(states[is_clean], clean[is_clean], rerun.clean.dtype)
        zeroed = ~is_clean
        found[cells.positions[zeroed], cells.tokens[zeroed]] = distance(clean[zeroed], states[zeroed])
    return found


def _grid(positions: int, tokens: int, *, is_causal: bool, device: torch.device) -> _Cells:
    """All cells by position, and one without a token for each position; the last row is filled up with the latter.

    Neighbours in a row are of one position, so that a layer that mixes neighbours does not look clean.
    """
    of_each = [torch.arange(_NONE, position + 1 if is_causal else tokens) for position in range(positions)]
    of_token = torch.cat(of_each)
    of_position = torch.repeat_interleave(torch.arange(positions), torch.tensor([len(each) for each in of_each]))
    rest = -len(of_token) % positions
    of_token = torch.cat([of_token, torch.full((rest,), _NONE)])
    of_position = torch.cat([of_position, torch.zeros(rest, dtype=torch.long)])
    return _Cells(*(each.reshape(-1, positions).to(device) for each in (of_token, of_position)))


def _run(call: BlockCall, given: torch.Tensor, cells: _Cells, products: dict[int, _Zeroed]) -> torch.Tensor:
    """The block's hidden states for these cells: [rows, positions, width]."""
    rows = cells.tokens.shape[0]
    packed, is_given = given[0, cells.positions], iter([True])

    def of_rows(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if value is call.hidden and next(is_given, False):
                return packed
            return value.expand(rows, *value.shape[1:]) if value.ndim > 1 and value.shape[0] == 1 else value
        if isinstance(value, Cache):
            raise NotRerunnable
        if type(value) in (tuple, list):
            return type(value)(of_rows(each) for each in value)
        return {key: of_rows(each) for key, each in value.items()} if type(value) is dict else value

    attention = _Attention(cells, products)
    with AttentionProducts(lambda product: product.values, on_result=attention.result):
        try:
            output = call.block(*of_rows(call.arguments), **of_rows(call.named))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise NotRerunnable from error
    if attention.left:
        raise NotRerunnable
    return first_tensor(output)


@dataclass
class _Attention:
    """Computes the products of one call of a block for cells, from the clean forward's weights and values."""

    cells: _Cells
    products: dict[int, _Zeroed]  # by their number in a call of the block
    left: set[int] = field(init=False)
    calls: int = 0

    def __post_init__(self) -> None:
        self.left = set(self.products)

    def result(self, _: Product, result: torch.Tensor) -> torch.Tensor:
        """The product's result for the cells, in the shape of `result`."""
        number, self.calls = self.calls, self.calls + 1
        if number not in self.products:
            return result
        self.left.discard(number)
        clean, (rows, positions) = self.products[number], self.cells.tokens.shape
        weights, values = clean.weights, clean.values
        heads, width = values.shape[0], values.shape[-1]
        split, joined = (rows, heads, positions, width), (rows * heads, positions, width)
        if tuple(result.shape) != (split if result.ndim == _HEADS_NDIM else joined):
            raise NotRerunnable
        tokens = self.cells.tokens.flatten()
        weights = weights[:, self.cells.positions.flatten()]  # a copy: [heads, cells, keys]
        (zeroed,) = (tokens != _NONE).nonzero(as_tuple=True)
        weights[clean.heads[:, None], zeroed, tokens[zeroed]] = 0
        found = (weights @ values).reshape(heads, rows, positions, width).transpose(0, 1)
        return found.reshape(result.shape).to(result.dtype)


def _checked(call: BlockCall, target: Target, positions: int, tokens: int) -> _Zeroed:
    """The product of weights and values that a target is, if its weights are [1, heads, positions, tokens]; without
    heads to set to zero.
    """
    if target.projection is not None:
        raise NotRerunnable
    product = call.products[target.call][1]
    weights, values = product.weights, product.values
    if product.is_fused or product.keys != -2 or weights.ndim < _HEADS_NDIM - 1:  # noqa: PLR2004 - last but one
        raise NotRerunnable
    if weights.shape[:-2] != values.shape[:-2] or tuple(weights.shape[-2:]) != (positions, tokens):
        raise NotRerunnable
    nothing = torch.empty(0, dtype=torch.long, device=values.device)
    return _Zeroed(weights.flatten(0, -3), values.flatten(0, -3), nothing)


def _zeroed(rerun: Rerun, positions: int, tokens: int) -> _Zeroed:
    """The product whose values are set to zero, in the heads that the request names."""
    found, target = _checked(rerun.call, rerun.target, positions, tokens), rerun.target
    heads = torch.arange(len(found.values))
    if rerun.units is not None:
        if rerun.call.products[target.call][1].values.ndim != _HEADS_NDIM:
            raise NotRerunnable
        groups = heads.reshape(-1, target.groups)
        heads = groups[chosen_heads(len(groups), rerun.units)].flatten()
    return replace(found, heads=heads.to(found.values.device))


def _compare(states: torch.Tensor, clean: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise `NotRerunnable` unless these vectors ([cells, width]) are the clean ones up to rounding."""
    limit = _TOLERANCE.get(dtype, _HALF_TOLERANCE) * clean.norm(dim=-1)
    if not bool(((states - clean).norm(dim=-1) <= limit).all()):
        raise NotRerunnable


def _first(call: BlockCall) -> torch.Tensor:
    if call.hidden is None or call.given is None:
        raise NotRerunnable
    return call.given


def attentions(layer: Layer, kind: str) -> tuple[Target, Target | None]:
    """The attention of a kind (`own` or `source`) in a layer, and the layer's own one before it where the kind is
    `source`. Raises `NotRerunnable` where there are several, or its own is behind the other: its weights would change
    with the zeroed values, at all positions.
    """
    if len(layer.own) > 1 or len(layer.source) > 1 or (kind == "source" and not layer.own):
        raise NotRerunnable
    if kind == "own":
        return layer.own[0], None
    if layer.own[0].call > layer.source[0].call:
        raise NotRerunnable
    return layer.source[0], layer.own[0]


def finishing(call: BlockCall, clean: torch.Tensor, last: torch.Tensor) -> Finish:
    """What the network makes of its last block's output (`clean`) to get its last hidden state: nothing, or one module.

    Raises `NotRerunnable` where it is neither.
    """
    if clean.shape == last.shape and torch.equal(clean, last):
        return lambda states: states
    for module, given, output in call.followed:
        if given.shape == clean.shape and torch.equal(given, clean) and torch.equal(output[:, : last.shape[1]], last):
            found: Finish = module
            return found
    raise NotRerunnable
