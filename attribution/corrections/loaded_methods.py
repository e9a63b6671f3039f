"""Which correction a method gets when Inseq loads it: before, in what Inseq reads, and after, in the loaded method."""

from __future__ import annotations

import torch
from inseq.attr.feat import FeatureAttribution
from inseq.models import HuggingfaceModel

from attribution.corrections import attention_maps, path_pieces, reagent, value_zeroing, vocabulary_neighbours
from attribution.corrections.registry import Ledger


def before_loading(method: str, model: HuggingfaceModel, identity: str, ledger: Ledger) -> None:
    """Prepare what Inseq reads while it loads a method. `identity` names the model in Inseq's caches."""
    if method == "discretized_integrated_gradients":
        vocabulary_neighbours.install()
    if method == "reagent":
        ledger.apply(reagent.WORD_CLASSES)  # without it Inseq cannot load the method
        reagent.seed_word_classes(model.tokenizer, identity)


def after_loading(
    method: FeatureAttribution,
    model: HuggingfaceModel,
    ids: torch.Tensor,
    ledger: Ledger,
    *,
    encoder_has_maps: bool = True,
) -> None:
    """Correct a loaded method for a text whose target has these ids, [1, length].

    `encoder_has_maps`: whether the encoder's attention weights are of all pairs of its tokens.
    """
    if method.method_name == "value_zeroing":
        value_zeroing.correct_value_zeroing(method, model, ledger)
    elif method.method_name == "attention":
        attention_maps.correct_attention(method, model, ledger, encoder_has_maps=encoder_has_maps)
    elif method.method_name == "reagent":
        reagent.correct_added_tokens(method, model.tokenizer, ids, ledger)
        reagent.correct_draws(method, ledger)
    elif method.method_name == "discretized_integrated_gradients":
        path_pieces.correct_path_pieces(method, ledger)
