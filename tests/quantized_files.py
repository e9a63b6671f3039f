"""Writes small Llama models as quantized checkpoints of many kinds, and says what their weights are by definition."""

from __future__ import annotations

import json
from functools import partial

import torch
import transformers as t
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file
from torchao import quantization as torchao

from tests.test_loading import config, saved

WIDER = {"hidden_size": 64, "intermediate_size": 128}  # torchao's groups have 32 and more weights
E2M1 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
NF4 = t.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def network_of(dtype=torch.float32, **more):
    torch.manual_seed(7)
    return t.LlamaForCausalLM(config(**WIDER | more)).eval().to(dtype)


def of_layers(network):
    """The names and weights of what is quantized here."""
    return {name: each for name, each in network.state_dict().items() if name.endswith("_proj.weight")}


def quantize(folder, told, dtype=torch.float32):
    """Write a model in its quantized form, by Transformers; returns the tensors in the file."""
    plain = folder.with_name(f"{folder.name}-base")
    saved(plain, network_of(dtype))
    saved(folder, t.AutoModelForCausalLM.from_pretrained(plain, quantization_config=told, dtype=dtype))
    return load_file(folder / "model.safetensors")


def write_as(folder, network, tensors, told):
    """Write a model with these tensors instead of its own."""
    saved(folder, network)
    tensors = {name: each.contiguous() for name, each in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "quantization_config": told}))


def write_plain(folder, values, network=None):
    """Write the ordinary model that has these values."""
    network = network_of() if network is None else network.float()
    for name, each in values.items():
        network.get_parameter(name).data = each.float()
    saved(folder, network)


# Each writes a checkpoint of a model in `dtype`, and returns the values of its weights, in float32 but where said.


def write_bitsandbytes(folder, dtype=torch.float32, **more):
    """Two indices of a table in each byte, the first in its upper half; a scale for each 64 weights."""
    tensors = quantize(folder, t.BitsAndBytesConfig(load_in_4bit=True, **more), dtype)
    values = {}
    for name, weight in of_layers(network_of()).items():
        packed, scale = tensors[name].flatten().long(), tensors[f"{name}.absmax"]
        if f"{name}.nested_absmax" in tensors:  # the scales are quantized too, 256 at a time
            kind = bytes(tensors[f"{name}.quant_state.bitsandbytes__nf4"].tolist())
            scale = tensors[f"{name}.nested_quant_map"][scale.long()]
            scale = scale * tensors[f"{name}.nested_absmax"].repeat_interleave(256)[: len(scale)]
            scale = scale + json.loads(kind)["nested_offset"]
        codes = tensors[f"{name}.quant_map"][torch.stack([packed >> 4, packed & 15], 1).flatten()]
        values[name] = (codes.reshape(-1, 64) * scale[:, None]).reshape(weight.shape)
    return values


def write_torchao(folder, dtype=torch.float32, *, told):
    tensors = quantize(folder, t.TorchAoConfig(told), dtype)
    values = {}
    for name in of_layers(network_of()):
        at = name.replace("weight", "_weight_")
        data, scale = tensors[f"{at}qdata"].float(), tensors[f"{at}scale"].float()
        values[name] = (data.reshape(*scale.shape, -1) * scale[..., None]).reshape(data.shape)
    return values


def of_compressed_tensors(kind, weights, activations=None):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {"quant_method": "compressed-tensors", "format": kind, "quantization_status": "compressed",
            "ignore": ["lm_head"], "config_groups": {"group_0": group}}  # fmt: skip


def write_packed(folder, dtype=torch.float32, *, bits, group=None, symmetric=True, **size):
    """Rows of integers with `bits` bits, without gaps, padded to 32; scale and zero point for each row or group.

    The package multiplies in the dtype of the scales.
    """
    network = network_of(dtype, **size)
    tensors, values = dict(network.state_dict()), {}
    for name, weight in of_layers(network).items():
        parts = weight.float().reshape(len(weight), -1, group or weight.shape[1])
        most, low, high = 2 ** (bits - 1), parts.amin(-1), parts.amax(-1)
        scale = (parts.abs().amax(-1) / (most - 1) if symmetric else (high - low) / (2 * most - 1)).to(dtype)
        zero = torch.zeros_like(low) if symmetric else (-most - low / scale.float()).round().clamp(-most, most - 1)
        number = (parts / scale.float()[..., None] + zero[..., None]).round().clamp(-most, most - 1)
        values[name] = ((number - zero[..., None]) * scale.float()[..., None]).reshape(weight.shape).to(dtype)
        del tensors[name]
        packed = pack_to_int32(number.reshape(weight.shape).to(torch.int8), bits)
        tensors |= {f"{name}_packed": packed, f"{name}_scale": scale, f"{name}_shape": torch.tensor(weight.shape)}
        if not symmetric:
            tensors[f"{name}_zero_point"] = pack_to_int32(zero.to(torch.int8), bits, packed_dim=0)
    strategy = {"strategy": "group" if group else "channel", "group_size": group}
    told = {"num_bits": bits, "type": "int", "symmetric": symmetric, **strategy}
    write_as(folder, network, tensors, of_compressed_tensors("pack-quantized", told))
    return values


def write_w8a8(folder, dtype=torch.float32):
    """Rows of 8-bit integers with a scale; the package's own layers would round their inputs to 8 bits as well."""
    network = network_of(dtype)
    tensors, values = dict(network.state_dict()), {}
    for name, weight in of_layers(network).items():
        scale = (weight.float().abs().amax(1, keepdim=True) / 127).to(dtype)
        tensors[name] = (weight.float() / scale.float()).round().clamp(-127, 127).to(torch.int8)
        tensors[f"{name}_scale"] = scale
        values[name] = (tensors[name].float() * scale.float()).to(dtype)
    told = {"num_bits": 8, "type": "int", "symmetric": True}
    weights, activations = {**told, "strategy": "channel"}, {**told, "strategy": "token", "dynamic": True}
    write_as(folder, network, tensors, of_compressed_tensors("int-quantized", weights, activations))
    return values


def write_nvfp4(folder, dtype=torch.float32):
    """Two numbers of 4 bits in each byte, the first in its lower half, and a scale of 8 bits for each 16.

    The package multiplies in bfloat16.
    """
    network = network_of(dtype)
    tensors, values, whole = dict(network.state_dict()), {}, torch.tensor([3000.0])
    for name, weight in of_layers(network).items():
        codes = torch.randint(0, 16, weight.shape, dtype=torch.uint8)
        scale = (torch.rand(len(weight), weight.shape[1] // 16) * 200 + 1).to(torch.float8_e4m3fn)
        del tensors[name]
        tensors |= {f"{name}_packed": codes[:, ::2] | codes[:, 1::2] << 4, f"{name}_scale": scale}
        tensors[f"{name}_global_scale"] = whole.clone()
        values[name] = E2M1[codes.long()] * (scale.float() / whole).repeat_interleave(16, 1)
    told = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
    write_as(folder, network, tensors, of_compressed_tensors("nvfp4-pack-quantized", told))
    return {name: each.bfloat16() for name, each in values.items()}


def write_fp8(folder, dtype=torch.float32):
    """Numbers of 8 bits, and a scale for each square of 32 x 32."""
    network = network_of(dtype)
    tensors, values = dict(network.state_dict()), {}
    for name, weight in of_layers(network).items():
        blocks = weight.float().unflatten(0, (-1, 32)).unflatten(2, (-1, 32))
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448  # the largest number of float8_e4m3fn
        number = (blocks / scale).to(torch.float8_e4m3fn)
        tensors |= {name: number.reshape(weight.shape), f"{name}_scale_inv": scale[:, 0, :, 0]}
        values[name] = (number.float() * scale).reshape(weight.shape)
    told = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
    write_as(folder, network, tensors, told)
    return values


def experts():
    """A small gpt-oss."""
    torch.manual_seed(9)
    size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
            "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.2}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    told = t.GptOssConfig(vocab_size=320, bos_token_id=0, eos_token_id=1, pad_token_id=2, rope_parameters=rope,
                          max_position_embeddings=128, **size)  # fmt: skip
    return t.GptOssForCausalLM(told).eval()


def write_mxfp4(folder, dtype=torch.float32):
    """Experts of gpt-oss: two numbers of 4 bits in each byte, and a power of two for each 32."""
    network = experts().to(dtype)
    tensors, values = dict(network.state_dict()), {}
    for name in [each for each in tensors if each.endswith(("gate_up_proj", "down_proj"))]:
        count, inputs, outputs = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (count, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(121, 125, (count, outputs, inputs // 32), dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        codes = E2M1[torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()]
        values[name] = (codes * 2.0 ** (scales.float() - 127)[..., None]).flatten(2).transpose(1, 2)
    write_as(folder, network, tensors, {"quant_method": "mxfp4"})
    return values


INT4 = torch.int4  # type: ignore[attr-defined]
KINDS = {
    "nf4": partial(write_bitsandbytes, bnb_4bit_quant_type="nf4"),
    "nf4-nested": partial(write_bitsandbytes, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": partial(write_bitsandbytes, bnb_4bit_quant_type="fp4"),
    "ao-int8": partial(write_torchao, told=torchao.Int8WeightOnlyConfig(version=2)),
    "ao-int4": partial(write_torchao, told=torchao.IntxWeightOnlyConfig(weight_dtype=INT4)),
    "ao-fp8": partial(write_torchao, told=torchao.Float8WeightOnlyConfig()),
    "w4": partial(write_packed, bits=4, group=32, symmetric=False),
    "w3": partial(write_packed, bits=3, intermediate_size=100),
    "w8a8": write_w8a8,
    "nvfp4": write_nvfp4,
    "fp8": write_fp8,
    "mxfp4": write_mxfp4,
}
