"""Sets one token's value vectors to zero in the layers of a network, each layer by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from inseq.utils import validate_indices

from attribution.corrections.attention_layers import Layer, Target
from attribution.corrections.attention_values import Product
from problems import InputRejected, UnsupportedByModel

_HEADS_FROM_LAST = 3  # [rows, heads, keys, width]


class ZeroedValues:
    """Hooks for one forward. `leave` is called with a layer's place and its block's output, and returns the output that
    the network goes on with.
    """

    def __init__(
        self, layers: Mapping[int, Layer], kind: str, token: int, units: Any, leave: Callable[[int, Any], Any]
    ) -> None:
        """`kind` is `own` or `source`. `units`: attention heads, of all layers or by layer; None for all heads."""
        self._layers = layers
        self._kind = kind
        self._token = token
        self._units = units
        self._leave = leave
        self._places = {(layer.block, layer.call): place for place, layer in layers.items()}
        self._block_calls = dict.fromkeys((layer.block for layer in layers.values()), 0)
        self._place: int | None = None  # of the layer that runs now
        self._targets: tuple[Target, ...] = ()
        self._products = 0  # of this layer so far
        self._projected: dict[torch.nn.Module, int] = {}  # calls of a linear layer in this layer so far

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Within the block, the hooks are in place. The caller adds `AttentionProducts(self.on_product)`."""
        targets = [target for layer in self._layers.values() for target in getattr(layer, self._kind)]
        with ExitStack() as stack:
            for block in self._block_calls:
                stack.callback(block.register_forward_pre_hook(self._enter).remove)
                stack.callback(block.register_forward_hook(self._exit).remove)
            for layer in {target.projection for target in targets if target.projection is not None}:
                stack.callback(layer.register_forward_hook(self._on_projection).remove)
            yield

    def on_product(self, product: Product) -> torch.Tensor:
        """The values, with the token's set to zero if this product is a target."""
        call, self._products = self._products, self._products + 1
        for target in self._targets:
            if target.projection is None and target.call == call and product.keys is not None:
                return self._zeroed(product.values, product.keys, 0, target.groups)
        return product.values

    def _enter(self, block: torch.nn.Module, _: Any) -> None:
        self._place = self._places.get((block, self._block_calls[block]))
        self._block_calls[block] += 1
        self._products, self._projected = 0, {}
        if self._place is not None:
            layer = self._layers[self._place]
            left_out = isinstance(self._units, dict) and layer.index not in self._units
            self._targets = () if left_out else getattr(layer, self._kind)

    def _exit(self, _: torch.nn.Module, __: Any, output: Any) -> Any:
        place, self._place, self._targets = self._place, None, ()
        return output if place is None else self._leave(place, output)

    def _on_projection(self, layer: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        call = self._projected.get(layer, 0)
        self._projected[layer] = call + 1
        for target in self._targets:
            if target.projection is layer and target.call == call:
                if self._units is not None:
                    raise UnsupportedByModel(
                        "value_zeroing: this model's attention over windows or blocks shows no single heads. "
                        "Leave out the zeroed units."
                    )
                return self._zeroed(output, target.axis - output.ndim, target.offset)
        return output

    def _zeroed(self, values: torch.Tensor, axis: int, offset: int, groups: int = 1) -> torch.Tensor:
        values = values.clone()
        token = values.select(axis, offset + self._token)  # a view, without the axis of keys
        if self._units is None:
            token.zero_()
            return values
        if values.ndim != _HEADS_FROM_LAST + 1 or axis != -2:  # noqa: PLR2004 - [rows, heads, keys, width]
            raise UnsupportedByModel("value_zeroing: this model's attention has no axis of heads. Leave out the units.")
        units = self._units[self._layers[self._place].index] if isinstance(self._units, dict) else self._units  # type: ignore[index]
        by_group = token.view(token.shape[0], -1, groups, token.shape[-1])
        by_group[:, chosen_heads(by_group.shape[1], units)] = 0
        return values


def chosen_heads(heads: int, units: Any) -> torch.Tensor:
    """The indices of the heads of values (each perhaps shared by several heads) that a request's units name, of one
    layer. Raises `InputRejected` for a head that is not there.
    """
    try:
        found: torch.Tensor = validate_indices(torch.empty(1, heads), 1, units)
    except (ValueError, IndexError) as error:
        raise InputRejected(f"attribution_args, zeroed units: {error}") from error
    return found
