"""Quantized checkpoints are made wide: the numbers are those of scale times integer, in a plain model."""

import json

import numpy as np
import pytest
import torch
import transformers as t
from inseq.models import HuggingfaceModel
from safetensors.torch import load_file, save_file

from attribution.model_cache import gradient_check
from tests.test_adapters import ROUNDING, Here, lora, save_adapter
from tests.test_loading import TARGET, TEXT, config, saved
from tests.test_network_state import Fresh, assert_equals_plain

_EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
W8A8 = {
    "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
    "ignore": ["lm_head"], "config_groups": {"group_0": {
        "targets": ["Linear"], "weights": {**_EIGHT_BITS, "strategy": "channel", "dynamic": False},
        "input_activations": {**_EIGHT_BITS, "strategy": "token", "dynamic": True},
    }},
}  # fmt: skip


@pytest.fixture
def here(tmp_path):
    return Here(tmp_path)


def needs(package):
    return pytest.importorskip(package, reason=f"the package {package} of the extra `quantized` is not installed")


def test_compressed_tensors_have_the_values_of_their_integers(server, model_dir):
    """Its layers as they are would round the activations too, to 8 bits, which changes every gradient."""
    needs("compressed_tensors")
    torch.manual_seed(7)
    network = t.LlamaForCausalLM(config()).eval()
    folder, same = model_dir / "compressed-w8a8", model_dir / "compressed-w8a8-same"
    saved(folder, network)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = tensors[name].abs().amax(1, keepdim=True) / 127
        tensors[name] = (tensors[name] / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale
        network.get_parameter(name).data = tensors[name].float() * scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "quantization_config": W8A8}))
    saved(same, network)
    body = {"model": folder.name, "method": "saliency", "input_text": TEXT, "generated_text": TARGET,
            "step_scores": ["probability"]}  # fmt: skip
    result = server.result(server.run(**body), granular=True)
    assert_equals_plain(result, Fresh(same, TEXT, TARGET))
    (warning,) = result["info"]["warnings"]
    assert "compressed-tensors" in warning
    assert "activations are not quantized" in warning


WIDER = {"hidden_size": 64, "intermediate_size": 128}  # torchao's groups have 32 and more weights


def network_of(dtype=torch.float32):
    torch.manual_seed(7)
    return t.LlamaForCausalLM(config(**WIDER)).eval().to(dtype)


def quantize(folder, told, dtype=torch.float32):
    """Write a model and its quantized form, by Transformers; returns the folder of the latter."""
    saved(folder.with_name(f"{folder.name}-base"), network_of(dtype))
    network = t.AutoModelForCausalLM.from_pretrained(
        folder.with_name(f"{folder.name}-base"), quantization_config=told, dtype=dtype
    )
    saved(folder, network)
    return folder


def bnb(**more):
    needs("bitsandbytes")
    return t.BitsAndBytesConfig(**more)


def ao(name, **more):
    return t.TorchAoConfig(getattr(needs("torchao").quantization, name)(**more))


def of_four_bits(tensors, name):
    """Two indices of a table in each byte, the first in its upper half; a scale for each 64 weights."""
    packed, shape = tensors[name].flatten().long(), network_of().get_parameter(name).shape
    codes = tensors[f"{name}.quant_map"][torch.stack([packed >> 4, packed & 15], 1).flatten()]
    return (codes.reshape(-1, 64) * tensors[f"{name}.absmax"][:, None]).reshape(shape)


def of_torchao(tensors, name):
    at = name.replace("weight", "_weight_")
    data, scale = tensors[f"{at}qdata"].float(), tensors[f"{at}scale"]
    return (data.reshape(*scale.shape, -1) * scale[..., None]).reshape(data.shape)


INT4 = torch.int4  # type: ignore[attr-defined]
# How to quantize; the values by definition; whether the method's own layers round their activations.
KINDS = {
    "nf4": (lambda: bnb(load_in_4bit=True, bnb_4bit_quant_type="nf4"), of_four_bits, False),
    "fp4": (lambda: bnb(load_in_4bit=True, bnb_4bit_quant_type="fp4"), of_four_bits, False),
    "ao-int8": (lambda: ao("Int8WeightOnlyConfig", version=2), of_torchao, False),
    "ao-int4": (lambda: ao("IntxWeightOnlyConfig", weight_dtype=INT4), of_torchao, False),
    "ao-fp8": (lambda: ao("Float8WeightOnlyConfig"), of_torchao, False),
}


def run_one(server, name, method="saliency"):
    body = {
        "model": name,
        "method": method,
        "input_text": TEXT,
        "generated_text": TARGET,
        "step_scores": ["probability"],
    }
    return server.result(server.run(**body), granular=True)


def write_values(folder, network, values):
    for name in [each for each in network.state_dict() if each.endswith("_proj.weight")]:
        network.get_parameter(name).data = values(name)
    saved(folder, network)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_checkpoint_has_the_values_of_its_weights(server, model_dir, kind):
    told, values, rounds = KINDS[kind]
    folder = quantize(model_dir / f"quantized-{kind}", told())
    tensors = load_file(folder / "model.safetensors")
    network = network_of()
    write_values(model_dir / f"{folder.name}-same", network, lambda name: values(tensors, name))
    result = run_one(server, folder.name)
    assert_equals_plain(result, Fresh(model_dir / f"{folder.name}-same", TEXT, TARGET))
    if not rounds:  # then plain Transformers' own layers compute the same function
        assert_equals_plain(result, Fresh(folder, TEXT, TARGET))
    info = result["info"]
    method = "torchao" if kind.startswith("ao") else "bitsandbytes"
    assert info["quantization"] == method
    assert info["engine"] == "single_pass"
    assert ("activations are not quantized" in " ".join(info["warnings"])) is rounds
    models = server.client.get("/attribution/models").json()
    (listed,) = [each for each in models["available"] if each["name"] == folder.name]
    assert (listed["quantization"], listed["parameters"]) == (method, network.num_parameters())
    (loaded,) = [each for each in models["loaded"] if each["name"] == folder.name]
    size = sum(each.numel() * 4 for each in (*network.parameters(), *network.buffers()))
    assert (loaded["quantization"], loaded["bytes"]) == (method, size)


@pytest.mark.parametrize("kind", ["nf4", "ao-int4"])
def test_the_dtype_of_the_request_counts(here, kind):
    """bitsandbytes keeps that of the file, and torchao's layers fail in another one."""
    folder = quantize(here.folder / "half", KINDS[kind][0](), torch.bfloat16)
    values, tensors = KINDS[kind][1], load_file(folder / "model.safetensors")
    network = network_of(torch.bfloat16).float()
    # torchao's weights have the dtype that they had before they were quantized.
    rounded = torch.bfloat16 if kind.startswith("ao") else torch.float32
    write_values(here.folder / "same", network, lambda name: values(tensors, name).to(rounded).float())
    found, loaded = here.logits("half")
    assert {each.dtype for each in loaded.network.parameters()} == {torch.float32}
    torch.testing.assert_close(found, here.logits("same")[0], **ROUNDING)


def test_blocks_of_fp8(server, model_dir):
    """Transformers reads them without a package, in float32 with bfloat16 in between: its own forward fails."""
    folder, network, tensors = model_dir / "fp8", network_of(torch.bfloat16), {}
    for name, weight in network.state_dict().items():
        tensors[name] = weight
        if name.endswith("_proj.weight"):
            blocks = weight.float().unflatten(0, (-1, 32)).unflatten(2, (-1, 32))
            scale = blocks.abs().amax((1, 3)) / 448
            tensors[name] = (blocks / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale
    values = lambda name: (  # noqa: E731
        tensors[name].float().unflatten(0, (-1, 32)).unflatten(2, (-1, 32))
        * tensors[f"{name}_scale_inv"][:, None, :, None]
    ).reshape(tensors[name].shape)
    told = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
    write_as(folder, network, tensors, told)
    write_values(model_dir / "fp8-same", network.float(), values)
    result = run_one(server, "fp8")
    assert_equals_plain(result, Fresh(model_dir / "fp8-same", TEXT, TARGET))
    assert "activations are not quantized" in " ".join(result["info"]["warnings"])


def write_as(folder, network, tensors, told):
    saved(folder, network)
    save_file(
        {name: each.contiguous() for name, each in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "quantization_config": told}))


E2M1 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def test_blocks_of_mxfp4(server, model_dir):
    """Experts of gpt-oss: two numbers of 4 bits in each byte, and a power of two for each 32."""
    torch.manual_seed(9)
    size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
            "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.2}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    told = t.GptOssConfig(vocab_size=320, bos_token_id=0, eos_token_id=1, pad_token_id=2, rope_parameters=rope,
                          max_position_embeddings=128, **size)  # fmt: skip
    network = t.GptOssForCausalLM(told).eval()
    tensors = dict(network.state_dict())
    for name in [each for each in tensors if each.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(121, 125, (experts, outputs, inputs // 32), dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        codes = E2M1[torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()]
        values = (codes * 2.0 ** (scales.float() - 127)[..., None]).flatten(2)
        network.get_parameter(name).data = values.transpose(1, 2).contiguous()
    write_as(model_dir / "mxfp4", network, tensors, {"quant_method": "mxfp4"})
    saved(model_dir / "mxfp4-same", network)
    result = run_one(server, "mxfp4")
    assert_equals_plain(result, Fresh(model_dir / "mxfp4-same", TEXT, TARGET))
    (listed,) = [
        each for each in server.client.get("/attribution/models").json()["available"] if each["name"] == "mxfp4"
    ]
    assert listed["parameters"] == network.num_parameters()


def test_an_adapter_of_a_quantized_base(here):
    """QLoRA: the adapter is merged into the wide weights."""
    folder = quantize(here.folder / "base", bnb(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
    tensors, network = load_file(folder / "model.safetensors"), network_of()
    write_values(here.folder / "wide", network, lambda name: of_four_bits(tensors, name))
    save_adapter(here.folder / "adapter", lora(), "base", network, here.folder / "merged")
    torch.testing.assert_close(here.logits("adapter")[0], here.logits("merged")[0], **ROUNDING)


@pytest.mark.parametrize("method", ["integrated_gradients", "deeplift", "occlusion", "attention"])
def test_methods_on_a_quantized_checkpoint(server, model_dir, method):
    """As on the plain model of the same values."""
    if not (folder := model_dir / "methods").exists():
        quantize(folder, bnb(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
        tensors = load_file(folder / "model.safetensors")
        write_values(model_dir / "methods-same", network_of(), lambda name: of_four_bits(tensors, name))
    found, same = (run_one(server, name, method)["sequence_attributions"][0] for name in ("methods", "methods-same"))
    one, other = (np.array(each["target_attributions"], float) for each in (found, same))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.nanmax(np.abs(other)))


def wrapped(network, tokenizer):
    network.requires_grad_(False)
    return HuggingfaceModel.load(
        network.eval(), "dummy", tokenizer=tokenizer, device="cpu", model_kwargs={}, tokenizer_kwargs={}
    )


def test_gradients_are_compared_with_finite_differences(tmp_path):
    """Those of plain weights are slopes; of layers that round their activations they are not."""
    needs("compressed_tensors")
    saved(tmp_path / "plain", network_of())
    tokenizer = t.AutoTokenizer.from_pretrained(tmp_path / "plain")
    plain = network_of()
    assert gradient_check.obstacle(wrapped(plain, tokenizer)) is None
    tensors = dict(plain.state_dict())
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[f"{name}_scale"] = (scale := tensors[name].abs().amax(1, keepdim=True) / 127)
        tensors[name] = (tensors[name] / scale).round().to(torch.int8)
    write_as(tmp_path / "w8a8", plain, tensors, W8A8)
    rounding = t.AutoModelForCausalLM.from_pretrained(tmp_path / "w8a8", attn_implementation="eager")
    assert "the slope of its logits is" in gradient_check.obstacle(wrapped(rounding, tokenizer))
    head = plain.lm_head.register_forward_pre_hook(lambda _, given: (given[0].detach(),))
    assert gradient_check.obstacle(wrapped(plain, tokenizer)) == "no gradient reaches its inputs"
    head.remove()
    # A factor of 1.2 in the backward of one layer.
    plain.model.norm.register_forward_hook(lambda _, __, out: out + 0.2 * (out - out.detach()))
    assert "by its gradient" in gradient_check.obstacle(wrapped(plain, tokenizer))
