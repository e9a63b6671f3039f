"""What a configuration says of quantization, and how many weights the tensors of such a checkpoint hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PretrainedConfig

from attribution.model_cache.gguf_files import Tensor

_PACKED = ("int32", "uint8")
_BESIDE_WEIGHTS = (
    ".SCB", ".weight_format", ".absmax", ".quant_map", "absmax", "nested_quant_map", "bitsandbytes__nf4",
    "bitsandbytes__fp4", "_scale", "_scale_inv", "_scales", ".scales", "_zero_point", "qzeros", "g_idx", "weight_shape",
    "_scale_and_zero", "activation_scale",
)  # fmt: skip


def settings(config: PretrainedConfig) -> dict[str, Any] | None:
    """The `quantization_config` of a model or of its text part; None for one that is not quantized."""
    text = config.get_text_config(decoder=True)
    found = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)
    return found if isinstance(found, dict) else None


def method(found: dict[str, Any]) -> str:
    """The name of the method; bitsandbytes wrote none in its first versions."""
    return str(found.get("quant_method") or "bitsandbytes")


def parameters(found: dict[str, Any], tensors: Iterable[Tensor]) -> int:
    """The number of weights that the tensors of a quantized checkpoint hold: several in each number of a packed one."""
    tensors = tuple(tensors)
    names, bits = {each.name for each in tensors}, _bits(found)
    count = 0
    for each in tensors:
        if not each.name.endswith(_BESIDE_WEIGHTS):
            is_packed = each.dtype in _PACKED or f"{each.name}.absmax" in names
            count += each.size * 8 // bits if is_packed else each.count
    return count


def _bits(found: dict[str, Any]) -> int:
    """Of a packed weight; the fewest where groups of weights differ."""
    groups = (found.get("config_groups") or {}).values()
    weights = [(each.get("weights") or {}).get("num_bits") for each in groups if isinstance(each, dict)]
    rest = found.get("bits") or (8 if found.get("load_in_8bit") else 4)
    return int(min((each for each in weights if each), default=rest))
