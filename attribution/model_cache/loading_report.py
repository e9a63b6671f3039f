"""Refuses checkpoints that do not have all weights of the model they are loaded as.

Transformers fills missing weights with random numbers, which differ at each load. Its report does not count tied
weights, nor those that a class computes itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from problems import ModelUnavailable

_NAMED = 5  # tensors in a message


def check(name: str, network: PreTrainedModel, architecture: str | None, report: Mapping[str, Any]) -> list[str]:
    """Warnings about the weights of a loaded network, from Transformers' report (`output_loading_info`).

    `architecture`: the class that the checkpoint's configuration names. Raises `ModelUnavailable` where weights are
    missing, or have other shapes than the configuration says.
    """
    kind = type(network).__name__
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if mismatched := report["mismatched_keys"]:
        key, found, wanted = min(mismatched)
        raise ModelUnavailable(
            f"{name!r} could not be loaded: its tensor {key} has the shape {list(found)}, but {list(wanted)} by its "
            f"config.json{_and_more(len(mismatched) - 1)}. Take config.json and weights from one model."
        )
    if missing:
        raise ModelUnavailable(f"{name!r} {_what_it_is(network, architecture, missing, unexpected)}")
    reads_images = architecture in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
    if unexpected and architecture != kind and not reads_images:  # the rest is what sees: the text does not need it
        warning = (
            f"{name!r} was saved as {architecture}: {kind} does not use its {_listed(unexpected)}. The scores are "
            "those of a language model whose head is its embedding."
        )
        return [warning]
    return []


def first_line(error: BaseException) -> str:
    """What an error of a library says, without details that say nothing to a user."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _what_it_is(network: PreTrainedModel, architecture: str | None, missing: list[str], unexpected: list[str]) -> str:
    head = network.get_output_embeddings()
    prefixes = tuple(f"{each}." for each, module in network.named_modules() if module is head)
    saved_as = f"saved as {architecture}" if architecture else "its config.json names no architecture"
    random = "which Transformers would fill with random numbers"
    if any(not each.startswith(prefixes) for each in missing):
        others = f" It holds others: {_listed(unexpected)}." if unexpected else ""
        return (
            f"is incomplete as {type(network).__name__} ({saved_as}): it lacks {_listed(missing)}, {random}.{others} "
            "Download it again, or take the model that it was made from."
        )
    kind = "has no language model head"
    if architecture and architecture.endswith(("Classification", "RewardModel")):
        kind = "is a reward model or classifier, without a language model head"
    elif not unexpected:
        kind = "is a model without a language model head, such as an embedding model"
    return f"{kind} ({saved_as}): it lacks {_listed(missing)}, {random}. Take the language model that it was made from."


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return f"{', '.join(names[:_NAMED])}{_and_more(len(names) - _NAMED)}"


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
