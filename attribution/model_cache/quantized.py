"""Quantized checkpoints: refused where a package or a device is missing or the numbers wrong; how others are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config, PretrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer

from attribution.model_cache import quantized_tensors
from attribution.model_cache.loading_report import first_line
from attribution.model_cache.model_source import ModelSource
from problems import JobError, ModelUnavailable

# The packages of the extra `quantized`, by method: the names of their modules.
EXTRA = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "compressed-tensors": "compressed_tensors"}
_WIDE_WHILE_READ = {
    "compressed-tensors": CompressedTensorsConfig,
    "fp8": FineGrainedFP8Config,
    "mxfp8": FineGrainedFP8Config,
    "mxfp4": Mxfp4Config,
}


def check(source: ModelSource) -> None:
    """Raise `ModelUnavailable` if the model's configuration says that it is quantized in a way that cannot be read."""
    if source.gguf is None and (found := _refusal(source.path, source.revision)):
        method, reason, remedy = found
        raise ModelUnavailable(
            f"{source.base or source.name!r} is quantized ({method}), and this server cannot load it: "
            f"{reason}. {remedy}"
        )


@lru_cache(maxsize=256)
def _refusal(path: Path, revision: str) -> tuple[str, str, str] | None:  # noqa: ARG001 - part of the key: files change
    """Method of quantization, reason why it cannot be read, and remedy; None if the model may be loaded."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None  # loading the model reports the reason
    if (found := quantized_tensors.settings(config)) is None:
        return None
    method = quantized_tensors.method(found)
    remedy = "Ask the operator for what is missing, or take the model's unquantized weights."
    try:
        if reason := _other_numbers(method, found):
            return method, reason, "Take the model's unquantized weights."
        if not AutoHfQuantizer.supports_quant_method(found):
            return method, "Transformers does not know this method", remedy  # and would load random weights
        quantizer = AutoHfQuantizer.from_config(dict(found), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # a missing package, version or device, or a damaged configuration, has many types
        return method, _reason(method, error), remedy
    return None


def _reason(method: str, error: Exception) -> str:
    told = first_line(error).rstrip(".")
    if method not in EXTRA:
        return told
    if find_spec(EXTRA[method]) is None:
        return f"the package {method} is missing, which `pip install '.[quantized]'` installs"
    # Of another version, or without one that it needs.
    return f"{told} (`pip install '.[quantized]'`)" if isinstance(error, ImportError) else told


def _other_numbers(method: str, found: dict[str, Any]) -> str | None:
    """Why the model would not be the one in the files, or its gradients not those of its scores; None if neither."""
    if _quantizes_activations(method, found):
        return "it quantizes the activations too, a step function whose gradients say nothing of the scores"
    if _mixes_kinds(found):
        return "its layers are quantized in several ways, and Transformers would read all of them in the first"
    if _transforms_activations(found):
        return "it transforms activations before they are quantized, which Transformers leaves out"
    return None


def _quantizes_activations(method: str, found: dict[str, Any]) -> bool:
    """Whether the method's own layers round their inputs to 8 bits.

    In a tiny Llama gradients differed from finite differences by multiples of themselves (LLM.int8 of bitsandbytes, and
    torchao's kinds with dynamic activations). Layers of compressed-tensors and fp8 do so too, but are not used here.
    """
    if method == "bitsandbytes":
        return bool(found.get("load_in_8bit"))
    return method == "torchao" and "activation" in str(found.get("quant_type")).lower()


def _mixes_kinds(found: dict[str, Any]) -> bool:
    """Whether groups of layers of compressed-tensors differ in what their numbers mean.

    Transformers (5.23, `get_dense_scheme` and `get_experts_scheme`) reads all experts in one way, and all else in one.
    """
    kinds: dict[bool, set[str]] = {True: set(), False: set()}
    for group in quantized_tensors.groups(found):
        weights = group.get("weights") or {}
        of_experts = any(each.startswith("re:") and "experts" in each for each in group.get("targets") or ())
        told = [weights.get(each) for each in ("num_bits", "type", "symmetric", "strategy", "group_size")]
        kinds[of_experts].add(json.dumps([*told, group.get("format") or found.get("format")]))
    return any(len(each) > 1 for each in kinds.values())


def _transforms_activations(found: dict[str, Any]) -> bool:
    """Whether forwards of compressed-tensors rotate activations, by other transforms than those within the weights."""
    schemes = ((found.get("transform_config") or {}).get("config_groups") or {}).values()
    return any("weight" not in str(each.get("location")) for scheme in schemes for each in scheme.get("apply") or ())


@contextmanager
def computing(source: ModelSource) -> Iterator[None]:
    """Turn what the first forwards of a quantized network raise into `ModelUnavailable`, which names the method.

    Layers that are not made wide have kernels of their own, which fail with many types on another device or dtype.
    """
    try:
        yield
    except (JobError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        if source.quantization is None:
            raise
        raise ModelUnavailable(
            f"{source.name!r} is quantized ({source.quantization}), and its layers cannot compute on this server: "
            f"{first_line(error).rstrip('.')}. Take the model's unquantized weights."
        ) from error


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
    if method not in {*_WIDE_WHILE_READ, *EXTRA}:
        return [f"The weights are quantized ({method}), and the method's own layers compute with them."]
    told = f"The weights are quantized ({method}) and were made wide: they have the values of the quantized ones"
    return [told + ", and activations are not quantized" * _rounds_activations(found) + "."]


def _rounds_activations(found: dict[str, Any]) -> bool:
    """Whether the method's own layers quantize their inputs (compressed-tensors, fp8)."""
    rounded = (each.get("input_activations") for each in quantized_tensors.groups(found))
    return bool(found.get("activation_scheme")) or any(rounded)
