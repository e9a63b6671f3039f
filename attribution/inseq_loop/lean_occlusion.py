"""Inseq compares the columns of an occlusion as Python lists, number by number; here they are compared as tensors."""

from __future__ import annotations

from typing import Any

from inseq.attr.feat import FeatureAttribution
from inseq.data import CoarseFeatureAttributionStepOutput
from inseq.models import HuggingfaceModel


def lean_occlusion(method: FeatureAttribution, model: HuggingfaceModel, *, is_signed: bool) -> None:
    """Have a loaded `occlusion` compare the columns of its scores as tensors; the rest of its step is Inseq's.

    `is_signed`: without its absolute value.
    """

    def attribute_step(main: dict[str, Any], arguments: dict[str, Any]) -> CoarseFeatureAttributionStepOutput:
        if "sliding_window_shapes" not in arguments:
            width = model.get_embedding_layer().embedding_dim
            shapes = tuple((1, width) for _ in main["inputs"])
            # As in Inseq: every step of the run has this same dictionary, so it is filled once.
            arguments["sliding_window_shapes"] = shapes if len(shapes) > 1 else shapes[0]
        scores = method.method.attribute(**main, **arguments)
        for each in scores:
            assert bool((each == each[..., :1]).all()), "A window must cover whole embeddings."
        columns = [(each if is_signed else each.abs())[:, :, 0].to("cpu") for each in scores]
        source, target = (*columns, None)[:2] if model.is_encoder_decoder else (None, columns[0])
        return CoarseFeatureAttributionStepOutput(source_attributions=source, target_attributions=target)

    method.attribute_step = attribute_step
