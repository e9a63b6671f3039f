"""Merges a PEFT adapter into a loaded base model, as peft's own `merge_and_unload` does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from attribution.model_cache.adapters import CONFIG
from problems import ModelUnavailable

if TYPE_CHECKING:
    from peft import PeftConfig

_NAMED = 5  # tensors in a message
_ADAPTER = "default"


def merge(name: str, network: PreTrainedModel, folder: Path) -> list[str]:
    """Change `network` into the model that base and adapter are together, and return warnings about it.

    The adapter of `folder` is merged into the weights, or stays active where its type cannot be merged. Raises
    `ModelUnavailable` where adapter and base do not fit.
    """
    from peft import PeftConfig, PeftModel  # takes a second, and only adapters need it
    from peft.utils import load_peft_weights

    if not any((folder / f"adapter_model.{suffix}").exists() for suffix in ("safetensors", "bin")):
        raise ModelUnavailable(
            f"{name!r} is a PEFT adapter without its weights: adapter_model.safetensors is missing. Copy it there."
        )
    config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    try:
        weights = load_peft_weights(str(folder), device="cpu")
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{name!r}: the adapter's weights cannot be read: {error}") from error
    _resize(name, network, weights)
    try:
        model = PeftModel(network, config, _ADAPTER)
        report = model.load_adapter(str(folder), _ADAPTER, torch_device="cpu")
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise _misfit(name, network, str(error).strip().splitlines()[-1].strip()) from error
    except ValueError as error:  # no layer has the names that the configuration gives
        raise _misfit(name, network, str(error)) from error
    if report.missing_keys:
        raise _misfit(name, network, f"the adapter lacks {_listed(report.missing_keys)}")
    if report.unexpected_keys:
        raise _misfit(name, network, f"the base has no layer for {_listed(report.unexpected_keys)}")
    try:
        merged = model.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError, TypeError):
        # Such as LoRA on layers without a weight matrix: the network then computes the adapter's part by itself.
        return [
            f"The adapter of {name!r} ({_kind(config)}) cannot be merged into the weights, and is computed beside them."
        ]
    if merged is not network:
        raise ModelUnavailable(f"{name!r}: peft made another model of the base. Serve the merged model.")
    return []


def _resize(name: str, network: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Give the embedding as many rows as in the adapter, which has the whole embedding if it has more tokens."""
    places = {id(module): place for place, module in network.named_modules()}
    modules = [network.get_input_embeddings(), network.get_output_embeddings()]
    rows = [
        next((len(each) for key, each in weights.items() if key.endswith(f"{places[id(module)]}.weight")), None)
        for module in modules
        if module is not None and id(module) in places
    ]
    found = {each for each in rows if each is not None}
    if not found or found == {len(modules[0].weight)}:
        return
    network.resize_token_embeddings(max(found), mean_resizing=False)
    head = network.get_output_embeddings()
    is_tied = head is None or head.weight is network.get_input_embeddings().weight
    if not is_tied and None in rows:
        raise ModelUnavailable(
            f"{name!r}: the adapter has an embedding of {max(found)} tokens, but no language model head for them. Save "
            "it with `save_embedding_layers=True`."
        )


def _kind(config: PeftConfig) -> str:
    kind: Any = config.peft_type
    return str(getattr(kind, "value", kind))


def _misfit(name: str, network: PreTrainedModel, reason: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{name!r}: the adapter does not fit its base model ({type(network).__name__}): {reason.rstrip('.')}. Check "
        f"the base model that its {CONFIG} names."
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
