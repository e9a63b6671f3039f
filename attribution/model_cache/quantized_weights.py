"""Makes the weights of a loaded quantized network wide, in the dtype of the request.

Quantized layers are not used to compute: some round their activations to 8 bits, a step function whose gradients say
nothing of it; bitsandbytes ignores the dtype that is asked for, and packs its weights anew within a forward.
"""

from __future__ import annotations

from fnmatch import fnmatch

import torch
from transformers import PreTrainedModel
from transformers.utils.quantization_config import QuantizationMethod

from attribution.model_cache.half_precision import kept_in_float32


@torch.no_grad()
def make_wide(network: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace the quantized weights of bitsandbytes and torchao by their values, and cast all weights to `dtype`.

    Other methods are made wide while they are read (`quantized.reading_options`), or stay as they are.
    """
    quantizer = getattr(network, "hf_quantizer", None)
    method = None if quantizer is None else quantizer.quantization_config.quant_method
    if method == QuantizationMethod.BITS_AND_BYTES:
        for module in network.modules():
            if (state := getattr(getattr(module, "weight", None), "quant_state", None)) is not None:
                state.dtype = dtype  # else the values are rounded to the dtype before quantization
        network.dequantize(dtype)
    elif quantizer is not None and method == QuantizationMethod.TORCHAO:
        _replace_torchao(network)
        quantizer.remove_quantization_config(network)
    elif quantizer is not None:
        return
    kept = kept_in_float32(network, dtype)
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point():
            wanted = torch.float32 if any(fnmatch(name, f"*{each}*") for each in kept) else dtype
            parameter.data = parameter.data.to(wanted)


def _replace_torchao(network: PreTrainedModel) -> None:
    from torchao.utils import TorchAOBaseTensor  # of the extra `quantized`

    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            values = weight.data
            if isinstance(values, TorchAOBaseTensor):
                module.register_parameter(name, torch.nn.Parameter(values.dequantize(), requires_grad=False))
