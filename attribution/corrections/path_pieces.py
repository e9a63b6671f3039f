"""Corrects `internal_batch_size` of discretized integrated gradients, with which Inseq fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from inseq.attr.feat import FeatureAttribution

from attribution.corrections.registry import Ledger, declare

PATH_PIECES = declare(
    "discretized_path_pieces",
    reason="With internal_batch_size, discretized_integrated_gradients fails with KeyError: 'method': Captum's "
    "batching asks for a quadrature rule, and this method has none.",
    remedy="The gradients at the points of its path are computed in pieces of internal_batch_size rows.",
    proof="test_corrections_methods.py::test_discretized_paths_in_pieces",
)


def correct_path_pieces(method: FeatureAttribution, ledger: Ledger) -> None:
    """Have a loaded discretized integrated gradients take `internal_batch_size`."""
    captum_method = method.method
    attribute, gradients = captum_method.attribute, captum_method.gradient_func

    @wraps(attribute)  # whose signature is read
    def corrected(*args: Any, internal_batch_size: int | None = None, **more: Any) -> Any:
        if internal_batch_size is None or not ledger.apply(PATH_PIECES):
            return attribute(*args, internal_batch_size=internal_batch_size, **more)
        captum_method.gradient_func = _in_pieces(gradients, internal_batch_size)
        try:
            return attribute(*args, **more)
        finally:
            captum_method.gradient_func = gradients

    captum_method.attribute = corrected


def _in_pieces(gradients: Callable[..., tuple[torch.Tensor, ...]], size: int) -> Callable[..., Any]:
    """Captum's gradient function, which takes tensors with a row for each point, called on `size` rows at a time."""

    def found(
        forward_fn: Any, inputs: tuple[torch.Tensor, ...], target_ind: Any = None, additional_forward_args: Any = None
    ) -> tuple[torch.Tensor, ...]:
        rows = inputs[0].shape[0]

        def piece(value: Any, first: int) -> Any:
            return (
                value[first : first + size] if isinstance(value, torch.Tensor) and value.shape[:1] == (rows,) else value
            )

        pieces = [
            gradients(
                forward_fn=forward_fn,
                inputs=tuple(piece(each, first) for each in inputs),
                target_ind=piece(target_ind, first),
                additional_forward_args=None
                if additional_forward_args is None
                else tuple(piece(each, first) for each in additional_forward_args),
            )
            for first in range(0, rows, size)
        ]
        return tuple(torch.cat(each) for each in zip(*pieces, strict=True))

    return found
