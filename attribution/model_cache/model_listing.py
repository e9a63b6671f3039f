"""Describes the models on this machine that a request may use, without loading them."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from attribution.model_cache.cache import ModelCache
from attribution.model_cache.loading import position_limit
from attribution.model_cache.model_source import ModelSource
from problems import ServiceError


def available(models: ModelCache) -> list[dict[str, Any]]:
    """The bundled models, those of the model directories, and those of the local hub cache, as plain data.

    What cannot be loaded, such as an adapter without its base, is listed with the reason as its `problem`.
    """
    in_memory = {(each["name"], each["revision"]) for each in models.loaded_models()}
    names = dict.fromkeys([*models.sources.listed_names(), *models.sources.cached_names()])
    return [entry for name in names if (entry := _entry(models, name, in_memory)) is not None]


def _entry(models: ModelCache, name: str, in_memory: set[tuple[str, str]]) -> dict[str, Any] | None:
    """None for a name of which no weights are on this machine."""
    try:
        source = models.sources.on_this_machine(name)
    except ServiceError as error:
        return {"name": name, "problem": str(error), "loaded": False}
    if source is None:
        return None
    return {
        "name": name,
        "kind": source.kind,
        "format": source.form,
        "revision": source.revision,
        "base": source.base,
        **_architecture(source),
        "parameters": source.parameters or None,
        "quantization": source.quantization,
        "bytes": source.bytes_by_dtype,
        "chat_template": source.has_chat_template,
        "loaded": (source.name, source.revision) in in_memory,
        "problem": None,
    }


def _architecture(source: ModelSource) -> dict[str, Any]:
    """The class, whether it is an encoder-decoder, and the context length in tokens; None for what is not known."""
    if (config := source.config) is not None:
        return {
            "class": next(iter(config.architectures or ()), None) or _class(config.model_type),
            "is_encoder_decoder": bool(config.is_encoder_decoder),
            "context_length": position_limit(config),
        }
    if (header := source.gguf_header) is not None:
        return {
            "class": (found := _class(header.architecture)),
            "is_encoder_decoder": None if found is None else "ConditionalGeneration" in found,
            "context_length": header.context_length,
        }
    return {"class": None, "is_encoder_decoder": None, "context_length": None}


def _class(model_type: str) -> str | None:
    """Transformers' class that generates text for a type of model, by the names of the types."""
    tables = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    return next((str(table[model_type]) for table in tables if model_type in table), None)
