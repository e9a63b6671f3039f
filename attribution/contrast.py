"""Contrastive functions' arguments for one text of several, and whether their tokens pair up with its own.

Inseq aligns a contrast of another length from the right, without a word; here such a contrast needs explicit pairs.
"""

from __future__ import annotations

from typing import Any

from inseq.data import BatchEncoding
from inseq.models import HuggingfaceModel

from models import AttributionRequest
from problems import InputRejected


def contrast_arguments(
    request: AttributionRequest, model: HuggingfaceModel, index: int, target: BatchEncoding
) -> dict[str, dict[str, Any]]:
    """The arguments of the attributed function and the step scores as they apply to text number `index`.

    Raises `InputRejected` where there is not one contrast per text, or its tokens do not pair up with the target's.
    """
    chosen = {}
    for name in ("attributed_fn_args", "step_scores_args"):
        arguments = dict(getattr(request, name))
        if request.skip_special_tokens:
            # Contrastive functions encode texts of their own, in the same way.
            arguments.setdefault("skip_special_tokens", True)
        for key in ("contrast_targets", "contrast_sources"):
            value = arguments.get(key)
            if isinstance(value, list):
                if len(value) != len(request.inputs):
                    raise InputRejected(f"{name}.{key} needs one text per input ({len(request.inputs)}).")
                arguments[key] = value[index]
        alignments = arguments.get("contrast_targets_alignments")
        if alignments is not None:
            if len(alignments) != len(request.inputs):
                raise InputRejected(f"{name}.contrast_targets_alignments needs one list per input.")
            arguments["contrast_targets_alignments"] = [alignments[index]]
        elif arguments.get("contrast_targets"):
            _check_pairs(request, model, arguments["contrast_targets"], target)
        chosen[name] = arguments
    return chosen


def _check_pairs(request: AttributionRequest, model: HuggingfaceModel, contrast: str, target: BatchEncoding) -> None:
    encoded = model.encode(
        [contrast], as_targets=model.is_encoder_decoder, add_special_tokens=not request.skip_special_tokens
    )
    theirs, ours = encoded.input_ids.shape[1], target.input_ids.shape[1]
    if theirs != ours:
        raise InputRejected(
            f"contrast_targets has {theirs} tokens and the target {ours}; Inseq would align them from the right "
            "without a word. Give contrast_targets_alignments, pairs of [target position, contrast position]."
        )
