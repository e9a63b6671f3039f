"""Makes the weights of a loaded quantized network wide, in the dtype of the request.

Quantized layers are not used to compute: some round their activations to 8 bits, a step function whose gradients say
nothing of it; bitsandbytes ignores the dtype that is asked for, and packs its weights anew within a forward.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from inspect import signature

import torch
from transformers import PreTrainedModel
from transformers.utils.quantization_config import QuantizationMethod

from attribution.model_cache.half_precision import kept_in_float32
from problems import ModelUnavailable


def check_all_read(name: str, network: PreTrainedModel, unexpected: Iterable[str]) -> None:
    """Raise `ModelUnavailable` if a tensor that says how to read a layer's weights was not read (`weight_g_idx`).

    `unexpected`: the names of the tensors that Transformers left out.
    """
    modules = dict(network.named_modules())
    for each in sorted(unexpected):
        module, _, tensor = each.rpartition(".")
        if module in modules and tensor.lstrip("_").startswith("weight_"):
            raise ModelUnavailable(
                f"{name!r} is quantized, and Transformers does not read its {each}: the numbers would be of another "
                "model. Take the model's unquantized weights."
            )


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
        network.is_loaded_in_4bit = False  # which Inseq and peft ask for
    elif quantizer is not None and method == QuantizationMethod.TORCHAO:
        _replace_torchao(network, dtype)
        quantizer.remove_quantization_config(network)
    elif quantizer is not None:
        return
    kept = kept_in_float32(network, dtype)
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point():
            wanted = torch.float32 if any(fnmatch(name, f"*{each}*") for each in kept) else dtype
            parameter.data = parameter.data.to(wanted)


def _replace_torchao(network: PreTrainedModel, dtype: torch.dtype) -> None:
    from torchao.utils import TorchAOBaseTensor  # of the extra `quantized`

    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if isinstance(weight.data, TorchAOBaseTensor):
                values = _of_torchao(weight.data).to(dtype)
                module.register_parameter(name, torch.nn.Parameter(values, requires_grad=False))


def _of_torchao(weight: torch.Tensor) -> torch.Tensor:
    """The values of a tensor of torchao in float32, by which its layers multiply their inputs."""
    kind: type[torch.Tensor] = type(weight)
    if kind.dequantize is torch.Tensor.dequantize:
        raise NotImplementedError(f"torchao has no values of an {kind.__name__}")
    if "output_dtype" in signature(kind.dequantize).parameters:
        values = weight.dequantize(output_dtype=torch.float32)  # type: ignore[call-arg]
    else:
        values = weight.to(torch.float32).dequantize()
    smoothing = getattr(weight, "act_pre_scale", None)  # the factors of AWQ and SmoothQuant on a layer's inputs
    return values.float() if smoothing is None else values.float() * smoothing.float()
