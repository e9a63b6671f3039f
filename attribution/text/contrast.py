"""The arguments of contrastive functions for one text of several, with the target's tokens paired with the contrast's.

Inseq silently aligns unpaired tokens from the right. Here every attributed token has a pair, or the job is refused.
"""

from __future__ import annotations

from typing import Any

from attribution.corrections.positions_and_padding import CONTRAST_POSITIONS
from attribution.corrections.registry import Ledger
from attribution.model_cache.loading import LoadedModel
from attribution.text.encoding import Text
from attribution.text.languages import check_target_language
from models import AttributionRequest
from problems import InputRejected


def contrast_arguments(
    request: AttributionRequest, loaded: LoadedModel, index: int, text: Text, ledger: Ledger
) -> dict[str, dict[str, Any]]:
    """The `attributed_fn_args` and `step_scores_args` for text number `index`.

    Raises `InputRejected` if there is not one contrast per text, or its tokens do not pair up with the target's.
    """
    chosen = {}
    for name in ("attributed_fn_args", "step_scores_args"):
        arguments = dict(getattr(request, name))
        if request.skip_special_tokens:
            # Contrastive functions encode the contrast themselves, and must do it in the same way.
            arguments["skip_special_tokens"] = True
        for key in ("contrast_targets", "contrast_sources"):
            value = arguments.get(key)
            if isinstance(value, list):
                if len(value) != request.count:
                    raise InputRejected(f"{name}.{key} needs one text per input ({request.count}).")
                arguments[key] = value[index]
        alignments = arguments.get("contrast_targets_alignments")
        if alignments is not None and len(alignments) != request.count:
            raise InputRejected(f"{name}.contrast_targets_alignments needs one list per input ({request.count}).")
        if arguments.get("contrast_targets"):
            length = _contrast_length(request, loaded, arguments["contrast_targets"])
            given = None if alignments is None else [(pair[0], pair[1]) for pair in alignments[index]]
            arguments["contrast_targets_alignments"] = _pairs(name, text, length, given, ledger)
        chosen[name] = arguments
    return chosen


def _contrast_length(request: AttributionRequest, loaded: LoadedModel, contrast: str) -> int:
    model = loaded.model
    if model.is_encoder_decoder:
        check_target_language(model.tokenizer)
    encoded = model.encode(
        [contrast], as_targets=model.is_encoder_decoder, add_special_tokens=not request.skip_special_tokens
    )
    return int(encoded.input_ids.shape[1])


def _pairs(
    name: str, text: Text, theirs: int, given: list[tuple[int, int]] | None, ledger: Ledger
) -> list[list[tuple[int, int]]] | None:
    ours = text.target.input_ids.shape[1]
    if given is None:
        if theirs != ours:
            raise InputRejected(
                f"contrast_targets has {theirs} tokens and the target {ours}; Inseq would silently align them from "
                "the right. Give contrast_targets_alignments: for each input a list of pairs of [target position, "
                f"contrast position], one for each position from {text.first} to {text.end - 1}."
            )
        if text.end < ours and not ledger.apply(CONTRAST_POSITIONS):
            return None
        return [[(position, position) for position in range(ours)]]
    where = f"{name}.contrast_targets_alignments"
    for pair in given:
        if not (0 <= pair[0] < ours and 0 <= pair[1] < theirs):
            raise InputRejected(
                f"{where}: {list(pair)} is no pair of a target position (0 to {ours - 1}) and a contrast position "
                f"(0 to {theirs - 1})."
            )
    missing = sorted(set(range(text.first, text.end)) - {pair[0] for pair in given})
    if missing:
        raise InputRejected(
            f"{where} has no pair for target position {', '.join(map(str, missing))}; Inseq would guess from the "
            f"right. Every position from {text.first} to {text.end - 1} needs one."
        )
    return [given]
