"""Half precision on a CPU that has no matrix products in it: half-precision weights, computed with in float32.

Without such instructions torch multiplies bfloat16 and float16 matrices by loops that convert each number: on an AVX2
processor a job takes up to a hundred times as long as in float32.
"""

from __future__ import annotations

from fnmatch import fnmatch

import torch
from transformers import PreTrainedModel

HALVES = ("bfloat16", "float16")


def compute_dtype(dtype: str, device: str, policy: str) -> str:
    """The dtype in which a model with weights in `dtype` is computed; `policy` is the setting `cpu_half`."""
    if dtype not in HALVES or not device.startswith("cpu") or policy == "native":
        return dtype
    return dtype if policy == "auto" and is_native(dtype) else "float32"


def is_native(dtype: str) -> bool:
    """Whether torch multiplies matrices of this half-precision dtype by instructions of this processor."""
    name = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}[dtype]
    # What torch's own products ask before they choose a kernel; builds without oneDNN do not have it.
    supported = getattr(torch.ops.mkldnn, name, None)
    return bool(supported is not None and supported())


@torch.no_grad()
def round_weights(network: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round the weights of a float32 network to the values that they have when loaded in this half-precision dtype.

    Some weights stay in float32 whatever the dtype; Transformers names them in each class.
    """
    kept = kept_in_float32(network, dtype)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not any(fnmatch(name, f"*{each}*") for each in kept):
            tensor.copy_(tensor.to(dtype))


def kept_in_float32(network: PreTrainedModel, dtype: torch.dtype) -> set[str]:
    """Parts of the names of weights that Transformers keeps in float32 when it loads the network in this dtype."""
    kept = {*(getattr(network, "_keep_in_fp32_modules_strict", None) or ())}
    if dtype is torch.float16:
        kept |= {*(getattr(network, "_keep_in_fp32_modules", None) or ())}
    return kept


def warning(dtype: str) -> str:
    return (
        f"The weights have their {dtype} values, and all else is computed in float32: this processor has no {dtype} "
        "matrix products, so that float32 is faster."
    )
