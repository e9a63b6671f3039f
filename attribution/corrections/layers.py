"""Corrects layer methods: the forward must use the ids that the method passes, and the layer must be in the encoder."""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import LayerDeepLift, LayerGradientXActivation, LayerIntegratedGradients
from inseq.attr.feat import FeatureAttribution
from inseq.models import HuggingfaceModel

from attribution.corrections.embeddings import embedding_of
from attribution.corrections.registry import Ledger, declare
from problems import InputRejected

LAYER_INPUT = declare(
    "layer_methods_follow_their_input",
    reason="layer_integrated_gradients and layer_deeplift return zeros everywhere: the forward ignores the ids that "
    "the method passes, so the baseline equals the input.",
    remedy="The forward runs on the ids that the method passes.",
    proof="test_corrections_methods.py::test_layer_methods",
)
LAYER_OF_ENCODER = declare(
    "layer_methods_hook_the_encoder",
    reason="On most encoder-decoder models the layer methods fail: they hook the shared embedding, which is never "
    "called, instead of the encoder's.",
    remedy="The layer is the encoder's own embedding.",
    proof="test_corrections_methods.py::test_layer_methods",
)

_HANDLES = "_text_embedding_handles"
_NDIM = 3  # [1, tokens, width]
_METHODS = {
    "layer_integrated_gradients": LayerIntegratedGradients,
    "layer_deeplift": LayerDeepLift,
    "layer_gradient_x_activation": LayerGradientXActivation,
}


class ForwardOnPassedIds(torch.nn.Module):
    """Inseq's model as a function of ids: the first argument replaces the ids among the other arguments."""

    def __init__(self, model: HuggingfaceModel) -> None:
        super().__init__()
        self.inner = model
        # (ids, input_ids, ...) for decoder-only models, (ids, decoder_embeds, encoder_ids, ...) for the others.
        self._position = 2 if model.is_encoder_decoder else 1

    def forward(self, ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
        rest = list(arguments)
        rest[self._position - 1] = ids
        value: torch.Tensor = self.inner(ids, *rest)
        return value


def layer_of(model: HuggingfaceModel) -> torch.nn.Module:
    """The embedding module that the model calls on source ids."""
    if model.is_encoder_decoder:
        return embedding_of(model.get_encoder())
    embedding: torch.nn.Module = model.get_embedding_layer()
    return embedding


def check_layer(model: HuggingfaceModel, layer: torch.nn.Module, name: str, ids: torch.Tensor) -> None:
    """Raise `InputRejected` unless a layer outputs one vector for each source token (`ids`: [1, length])."""
    outputs: list[Any] = []
    handle = layer.register_forward_hook(lambda _module, _arguments, output: outputs.append(output))
    inputs = {"input_ids": ids}
    if model.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.new_full((1, 1), int(model.bos_token_id))
    try:
        with torch.no_grad():
            model.model(**inputs, use_cache=False)
    finally:
        handle.remove()
    inside = not model.is_encoder_decoder or any(layer is each for each in model.get_encoder().modules())
    if not (inside and len(outputs) == 1 and isinstance(outputs[0], torch.Tensor) and outputs[0].ndim == _NDIM) or (
        outputs[0].shape[:2] != ids.shape
    ):
        raise InputRejected(
            f"attribution_args.target_layer: {name!r} does not output one vector for each input token"
            f"{' in the encoder' if model.is_encoder_decoder else ''}, so its scores would belong to no token. Use a "
            "block, or a layer in a block that returns a tensor."
        )


def correct_layer_method(method: FeatureAttribution, model: HuggingfaceModel, ledger: Ledger) -> None:
    """Rebuild a loaded layer method: its forward uses the passed ids, its layer is the encoder's if there is one."""
    layer, forward = method.target_layer, method.attribution_model
    if layer is model.get_embedding_layer() is not layer_of(model) and ledger.apply(LAYER_OF_ENCODER):
        layer = TextEmbedding(model.get_encoder())
    # Gradient times activation runs the input only, so a forward that ignores the passed ids does no harm.
    if method.use_baselines and ledger.apply(LAYER_INPUT):
        forward = ForwardOnPassedIds(model)
    method.target_layer = layer
    method.method = _METHODS[method.method_name](forward, layer, multiply_by_inputs=method.method.multiplies_by_inputs)


class TextEmbedding(torch.nn.Identity):
    """Stands for an encoder's embedding of the text, in an encoder that also embeds padding by itself (LED).

    The encoder's embedding is then called twice in a forward, and a method that hooks it would take the padding's
    vectors for the text's.
    """

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self._is_called = False
        for handle in vars(encoder).pop(_HANDLES, ()):  # of the text before
            handle.remove()
        handles = (
            encoder.register_forward_pre_hook(self._begin),
            embedding_of(encoder).register_forward_hook(self._embedded),
        )
        vars(encoder)[_HANDLES] = handles

    def _begin(self, _: torch.nn.Module, __: Any) -> None:
        self._is_called = False

    def _embedded(self, _: torch.nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        if self._is_called:
            return output
        self._is_called = True
        text: torch.Tensor = self(output)
        return text
