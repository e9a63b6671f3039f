"""Refuses quantized checkpoints for which this server lacks a package or a device, as Transformers itself checks it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig
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
    if not AutoHfQuantizer.supports_quant_method(found):
        return method, "Transformers does not know this method"  # and would load random weights
    try:
        quantizer = AutoHfQuantizer.from_config(dict(found), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # a missing package, version or device has many types
        return method, str(error).strip().partition("\n")[0] or type(error).__name__
    return None
