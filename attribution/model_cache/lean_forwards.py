"""Forwards that skip what Inseq's loop discards: logits of all positions but the last, and the key-value cache.

Whether that leaves a model's last logits as they are is tested when the model is loaded: the head of ProphetNet gets
several predictions of each position, so the last of its second axis is no position.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from inseq.models import HuggingfaceModel

from attribution.corrections.embeddings import ordinary_ids

# Relative to the largest logit, by dtype: the head rounds one position otherwise than many.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_TOLERANCE = 0.02


@contextmanager
def lean_forwards(model: HuggingfaceModel) -> Iterator[None]:
    """Within the block, forwards keep no key-value cache, and the head computes only the last logits."""

    def before_forward(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        named.setdefault("use_cache", False)
        return arguments, named

    def before_head(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (arguments[0][:, -1:], *arguments[1:])

    with ExitStack() as stack:
        network = model.model
        stack.callback(network.register_forward_pre_hook(before_forward, with_kwargs=True).remove)
        if (head := network.get_output_embeddings()) is not None:
            stack.callback(head.register_forward_pre_hook(before_head).remove)
        yield


@torch.no_grad()
def are_exact(model: HuggingfaceModel) -> bool:
    """Whether lean forwards give the last logits of the model itself, for two texts in one batch."""
    ids = ordinary_ids(model, 10).reshape(2, -1)
    inputs = {"inputs_embeds": model.embed_ids(ids), "attention_mask": torch.ones_like(ids)}
    if model.is_encoder_decoder:
        decoder = ids[:, :3]
        inputs |= {
            "decoder_inputs_embeds": model.embed_ids(decoder, as_targets=True),
            "decoder_attention_mask": torch.ones_like(decoder),
        }
    expected = model.model(**inputs).logits[:, -1].float()
    try:
        with lean_forwards(model):
            found = model.model(**inputs).logits[:, -1].float()
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    if found.shape != expected.shape:
        return False
    limit = _TOLERANCE.get(model.model.dtype, _HALF_TOLERANCE) * float(expected.abs().max())
    return bool(((found - expected).abs() <= limit).all())
