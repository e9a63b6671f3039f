"""Quantized checkpoints: refused where a package or a device is missing; how the others are read and made wide."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoConfig, CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config, PretrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer

from attribution.model_cache import quantized_tensors
from attribution.model_cache.model_source import ModelSource
from problems import ModelUnavailable

# The packages of the extra `quantized`, by method: the names of their modules.
EXTRA = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "compressed-tensors": "compressed_tensors"}


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
    if (found := quantized_tensors.settings(config)) is None:
        return None
    method = quantized_tensors.method(found)
    if _quantizes_activations(method, found):
        return method, "it quantizes the activations too, a step function whose gradients say nothing of the scores"
    if not AutoHfQuantizer.supports_quant_method(found):
        return method, "Transformers does not know this method"  # and would load random weights
    try:
        quantizer = AutoHfQuantizer.from_config(dict(found), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # a missing package, version or device has many types
        return method, _reason(method, error)
    return None


def _reason(method: str, error: Exception) -> str:
    if method in EXTRA and find_spec(EXTRA[method]) is None:
        return f"the package {method} is missing, which `pip install '.[quantized]'` installs"
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _quantizes_activations(method: str, found: dict[str, Any]) -> bool:
    """Whether layers round their inputs as well, and nothing here makes the weights wide instead.

    In a tiny Llama gradients differed from finite differences by multiples of themselves (LLM.int8 of bitsandbytes, and
    torchao's kinds with dynamic activations).
    """
    if method == "bitsandbytes":
        return bool(found.get("load_in_8bit"))
    return method == "torchao" and "DynamicActivation" in json.dumps(found, default=str)


_WIDE_WHILE_READ = {
    "compressed-tensors": CompressedTensorsConfig,
    "fp8": FineGrainedFP8Config,
    "mxfp8": FineGrainedFP8Config,
    "mxfp4": Mxfp4Config,
}


def reading_options(config: PretrainedConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained`: quantized weights are read on the CPU, and made wide while they are read where
    Transformers can. Otherwise `quantized_weights` does it.
    """
    if (found := quantized_tensors.settings(config)) is None:
        return {}
    wide = _WIDE_WHILE_READ.get(quantized_tensors.method(found))
    return {"device_map": {"": "cpu"}} | ({} if wide is None else {"quantization_config": wide(dequantize=True)})


def warnings(config: PretrainedConfig) -> list[str]:
    """What every result says of weights that were made wide, and of activations that are not quantized."""
    if (found := quantized_tensors.settings(config)) is None:
        return []
    method = quantized_tensors.method(found)
    if method not in {*_WIDE_WHILE_READ, "bitsandbytes", "torchao"}:
        return [f"The weights are quantized ({method}), and its own layers compute with them."]
    told = f"The weights are quantized ({method}) and were made wide: they have the values of the quantized ones"
    return [told + ", and activations are not quantized" * _rounds_activations(found) + "."]


def _rounds_activations(found: dict[str, Any]) -> bool:
    """Whether the method's own layers quantize their inputs."""
    groups = (found.get("config_groups") or {}).values()
    return bool(
        found.get("load_in_8bit")
        or found.get("activation_scheme")
        or any(isinstance(each, dict) and each.get("input_activations") for each in groups)
        or "DynamicActivation" in str(found.get("quant_type"))
    )
