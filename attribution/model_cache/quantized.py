"""Quantized checkpoints: refused where a package or a device is missing; compressed-tensors weights are made wide."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, CompressedTensorsConfig, PretrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer

from attribution.model_cache.model_source import ModelSource
from problems import ModelUnavailable


def check(source: ModelSource) -> None:
    """Raise `ModelUnavailable` if the model's configuration says that it is quantized in a way that cannot be read."""
    if source.gguf is None and (found := _refusal(source.path, source.revision)):
        method, reason = found
        raise ModelUnavailable(
            f"{source.base or source.name!r} is quantized ({method}), and this server cannot load it: "
            f"{reason.rstrip('.')}. Ask the operator for what is missing, or take the model's unquantized weights."
        )


@lru_cache(maxsize=256)
def _refusal(path: Path, revision: str) -> tuple[str, str] | None:  # noqa: ARG001 - part of the key: files change
    """The method of quantization and the reason why it cannot be read; None if the model may be loaded."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None  # loading the model reports the reason
    text = config.get_text_config(decoder=True)
    found: dict[str, Any] | None = getattr(config, "quantization_config", None) or getattr(
        text, "quantization_config", None
    )
    if not isinstance(found, dict):
        return None
    method = str(found.get("quant_method") or "bitsandbytes")  # which wrote no method in its first versions
    if _quantizes_activations(method, found):
        return method, "it quantizes the activations too, a step function whose gradients say nothing of the scores"
    if not AutoHfQuantizer.supports_quant_method(found):
        return method, "Transformers does not know this method"  # and would load random weights
    try:
        quantizer = AutoHfQuantizer.from_config(dict(found), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # a missing package, version or device has many types
        return method, str(error).strip().partition("\n")[0] or type(error).__name__
    return None


def _quantizes_activations(method: str, found: dict[str, Any]) -> bool:
    """Whether layers round their inputs as well, and nothing here makes the weights wide instead.

    In a tiny Llama gradients differed from finite differences by multiples of themselves (LLM.int8 of bitsandbytes, and
    torchao's kinds with dynamic activations).
    """
    if method == "bitsandbytes":
        return bool(found.get("load_in_8bit"))
    return method == "torchao" and "DynamicActivation" in json.dumps(found, default=str)


def reading_options(config: PretrainedConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained` that make compressed-tensors weights wide while they are read.

    Otherwise its layers quantize activations too: a step function, whose gradients say nothing of the model.
    """
    if _method(config) != "compressed-tensors":
        return {}
    return {"quantization_config": CompressedTensorsConfig(run_compressed=False)}


def warnings(config: PretrainedConfig) -> list[str]:
    """What every result says of weights that were made wide, and of activations that are not quantized."""
    if not reading_options(config):
        return []
    told = (
        "The weights are quantized (compressed-tensors) and were made wide: they have the values that the quantized "
        "ones stand for, and activations are not quantized."
    )
    return [told]


def _method(config: PretrainedConfig) -> str | None:
    found = getattr(config, "quantization_config", None)
    return found.get("quant_method") if isinstance(found, dict) else None
