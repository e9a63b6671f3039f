"""Makes `attention` work on models that do not return one map of all queries and keys for each layer."""

from __future__ import annotations

from typing import Any

import torch
from inseq.attr.feat import FeatureAttribution
from inseq.data import MultiDimensionalFeatureAttributionStepOutput
from inseq.models import HuggingfaceModel

from attribution.corrections.registry import Ledger, declare
from problems import UnsupportedByModel

ATTENTION_MAPS = declare(
    "attention_maps_only",
    reason="attention fails where a model returns something else beside its layers' maps: states of linear attention, "
    "or the weights of an encoder's local attention, which belong to windows or blocks.",
    remedy="The maps of the layers that have one are returned; what is left out is in info.warnings.",
    proof="test_more_families.py::test_attention",
)
_NDIM = 4  # [rows, heads, queries, keys]
# A map's rows sum to 1, or to less where a sink takes a share; with half precision's rounding.
_MOST = 1.02
# Names in Transformers' output, and in the arguments of Inseq's method.
_DECODER_ONLY = {"attentions": "decoder_self_attentions"}
_BOTH = {
    "encoder_attentions": "encoder_self_attentions",
    "decoder_attentions": "decoder_self_attentions",
    "cross_attentions": "cross_attentions",
}


class _Maps:
    """The `AttentionWeights` of Inseq's method, which may do without the encoder's."""

    def __init__(self, inner: Any, ledger: Ledger, *, encoder_has_maps: bool) -> None:
        self._inner = inner
        self._ledger = ledger
        self._encoder_has_maps = encoder_has_maps
        self.warnings: list[str] = []

    def read(self, model: HuggingfaceModel, output: Any) -> dict[str, torch.Tensor | None]:
        """The maps of a forward's output by Inseq's names, [rows, layers, heads, queries, keys]; None for an encoder
        without any. Raises `UnsupportedByModel` for a model without maps.
        """
        names = _BOTH if model.is_encoder_decoder else _DECODER_ONLY
        given = {name: output.get(name) for name in names}
        maps = {name: [each for each in values or () if _is_map(each)] for name, values in given.items()}
        encoder = maps.get("encoder_attentions", [])
        if not self._encoder_has_maps or any(each.shape[2] != each.shape[3] for each in encoder):
            encoder.clear()  # a window's keys, not the text's
        for name, found in maps.items():
            shapes = {tuple(each.shape) for each in found}
            if len(shapes) > 1 or (not found and name != "encoder_attentions"):
                raise UnsupportedByModel(
                    f"{type(model.model).__name__} returns no attention maps of one shape ({name}), which attention "
                    "reads. Use a gradient method, or occlusion."
                )
        if any(len(given[name] or ()) != len(found) for name, found in maps.items()):
            self._ledger.apply(ATTENTION_MAPS)
            self.warnings = [_left_out(name, given[name] or (), found) for name, found in maps.items()]
            self.warnings = [each for each in self.warnings if each]
        return {
            names[name]: torch.stack([each.to("cpu") for each in found], 1) if found else None
            for name, found in maps.items()
        }

    def attribute(
        self,
        inputs: Any,
        additional_forward_args: Any,
        encoder_self_attentions: torch.Tensor | None = None,
        decoder_self_attentions: torch.Tensor | None = None,
        cross_attentions: torch.Tensor | None = None,
    ) -> MultiDimensionalFeatureAttributionStepOutput:
        """Inseq's, without the encoder's scores where there are none."""
        none = encoder_self_attentions is None and cross_attentions is not None
        output = self._inner.attribute(
            inputs,
            additional_forward_args,
            cross_attentions if none else encoder_self_attentions,
            decoder_self_attentions,
            cross_attentions,
        )
        if none:
            del output.sequence_scores["encoder_self_attentions"]
        return output


def correct_attention(
    method: FeatureAttribution, model: HuggingfaceModel, ledger: Ledger, *, encoder_has_maps: bool
) -> None:
    """Make a loaded `attention` method read the maps alone. The caller restores the model's attributes.

    `encoder_has_maps`: see `attribution.model_cache.attention_outputs`. One text cannot tell, because a window may be
    as long as the text.
    """
    if ledger.enabled:
        method.method = maps = _Maps(method.method, ledger, encoder_has_maps=encoder_has_maps)
        model.get_attentions_dict = lambda output: maps.read(model, output)


def _is_map(given: Any) -> bool:
    """Whether these are attention weights: one number for each query and key, whose rows sum to at most 1."""
    if not isinstance(given, torch.Tensor) or given.ndim != _NDIM or given.is_sparse:
        return False
    return bool(given.min() >= 0) and bool(given.float().sum(-1).max() <= _MOST)


def _left_out(name: str, given: Any, found: list[torch.Tensor]) -> str:
    if len(given) == len(found):
        return ""
    if not found:
        return f"The encoder's attention has no map of all its tokens, so the result has no {_BOTH[name]}."
    layers = [str(index) for index, each in enumerate(given) if not any(each is kept for kept in found)]
    return f"The scores are of layers with an attention map: not of {', '.join(layers)} of {len(given)} ({name})."
