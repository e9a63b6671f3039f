"""What a configuration says of quantization, and how many weights the tensors of such a checkpoint hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from attribution.model_cache.gguf_files import Tensor

_PACKED = ("int32", "uint8")
# Ends of the names of tensors that say how to read weights, and are none themselves.
_BESIDE_WEIGHTS = (
    "_scale", "_scales", ".scales", "_scale_inv", "_scale_and_zero", "_zero_point", "qzeros", "g_idx", "weight_shape",
    ".SCB", ".weight_format", "absmax", "quant_map", "bitsandbytes__nf4", "bitsandbytes__fp4",
)  # fmt: skip


def settings(config: PretrainedConfig) -> dict[str, Any] | None:
    """The `quantization_config` of a model or of its text part; None for one that is not quantized."""
    text = config.get_text_config(decoder=True)
    found = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)
    return found if isinstance(found, dict) else None


def method(found: dict[str, Any]) -> str:
    """The name of the method; bitsandbytes wrote none in its first versions."""
    return str(found.get("quant_method") or "bitsandbytes")


def groups(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What compressed-tensors writes of each group of layers; empty for other methods."""
    written = found.get("config_groups")
    return [each for each in written.values() if isinstance(each, dict)] if isinstance(written, dict) else []


def parameters(found: dict[str, Any], tensors: Sequence[Tensor]) -> int:
    """The number of weights that the tensors of a quantized checkpoint hold: several in each number of a packed one.

    The count of a `weight_shape` of compressed-tensors is that of the weights whose shape it is.
    """
    counts = {each.name: each.count for each in tensors}
    bits = _bits(found)
    return sum(_held(each, counts, bits) for each in tensors if not each.name.endswith(_BESIDE_WEIGHTS))


def _held(tensor: Tensor, counts: dict[str, int], bits: int) -> int:
    shape = f"{tensor.name.removesuffix('_packed')}_shape"  # of compressed-tensors, which pads the rows
    if shape in counts:
        return counts[shape]
    is_packed = tensor.dtype in _PACKED or f"{tensor.name}.absmax" in counts
    return tensor.size * 8 // bits if is_packed else tensor.count


def _bits(found: dict[str, Any]) -> int:
    """Of a packed weight; the fewest where groups of weights differ."""
    written = [*((each.get("weights") or {}).get("num_bits") for each in groups(found)), found.get("bits")]
    return min((each for each in written if isinstance(each, int) and each > 0), default=4)
