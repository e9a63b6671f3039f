"""Quantized checkpoints whose numbers would be wrong, or that cannot be read, are refused with the reason."""

import json
import random
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as t
from inseq.models import HuggingfaceModel
from safetensors.torch import load_file, save_file
from torchao.quantization import Int8Tensor
from transformers.quantizers import (
    quantizer_bnb_4bit,
    quantizer_compressed_tensors,
    quantizer_torchao,
)

from attribution.model_cache import gradient_check, quantized
from problems import ModelUnavailable, OutOfMemory, UnsupportedByModel
from tests.quantized_files import KINDS, network_of, of_compressed_tensors
from tests.test_adapters import Here
from tests.test_loading import TEXT, config, saved


def told_of_torchao(name):
    return {"quant_type": {"default": {"_type": name, "_version": 2, "_data": {}}}}


def groups(*weights, **more):
    told = of_compressed_tensors("pack-quantized", weights[0])
    layers = {f"group_{place}": {"targets": [f"re:.*{place}.*"], "weights": each} for place, each in enumerate(weights)}
    return told | {"config_groups": layers} | more


INTEGERS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}
ONLINE = {"config_groups": {"R4": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "input"}]}}}
ACTIVATIONS, MISSING = "quantizes the activations too", "Ask the operator"
UNREADABLE = {
    "gptq": ({"bits": 4, "group_size": 128, "desc_act": False}, "optimum"),
    "awq": ({"bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}, "gptqmodel"),
    "exl3": ({"bits": 4}, "does not know this method"),
    "bitsandbytes": ({"load_in_8bit": True}, ACTIVATIONS),
    "torchao": (told_of_torchao("Int8DynamicActivationInt8WeightConfig"), ACTIVATIONS),
    "torchao-static": (told_of_torchao("Int8StaticActivationInt8WeightConfig"), ACTIVATIONS),
    "compressed-tensors": (groups(INTEGERS, {**INTEGERS, "num_bits": 8}), "quantized in several ways"),
    "compressed-tensors-online": (groups(INTEGERS, transform_config=ONLINE), "transforms activations"),
    "compressed-tensors-damaged": (groups(INTEGERS, transform_config=[1], config_groups=[2]), "has no attribute"),
    "": ({"bits": "few"}, "quant_method"),  # says nothing of the method
}


def write_configured(folder, told):
    saved(folder, t.LlamaForCausalLM(config()))
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "quantization_config": told}))


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_refused_at_once(server, model_dir, kind):
    more, reason = UNREADABLE[kind]
    name, method = f"unreadable-{kind}", kind.removesuffix("-static").removesuffix("-online").removesuffix("-damaged")
    write_configured(model_dir / name, ({"quant_method": method} if method else {}) | more)
    answer = server.client.post("/attribution/jobs", json={"model": name, "method": "saliency", "input_text": TEXT})
    assert answer.status_code == 404, answer.text
    assert answer.json()["type"] == "/problems/model-unavailable"
    detail = answer.json()["detail"]
    for words in (repr(name), f"quantized ({method or 'bitsandbytes'})", reason, "unquantized weights"):
        assert words in detail
    assert (MISSING in detail) is (kind in {"gptq", "awq", "exl3", "", "compressed-tensors-damaged"})
    assert name in {each["name"] for each in server.client.get("/attribution/models").json()["available"]}


def test_groups_of_one_kind_are_read(tmp_path):
    """Also experts of another kind than the layers beside them: Transformers tells these two apart."""
    written = groups(INTEGERS, dict(INTEGERS))
    written["config_groups"]["experts"] = {"targets": ["re:.*experts.*"], "weights": {**INTEGERS, "num_bits": 8}}
    write_configured(tmp_path / "one", written)
    assert Here(tmp_path).cache.sources.resolve("one").quantization == "compressed-tensors"


PACKAGES = {
    "bitsandbytes": (quantizer_bnb_4bit, "is_bitsandbytes_available", {"load_in_4bit": True}),
    "torchao": (quantizer_torchao, "is_torchao_available", told_of_torchao("Int8WeightOnlyConfig")),
    "compressed-tensors": (quantizer_compressed_tensors, "is_compressed_tensors_available", groups(INTEGERS)),
}


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("method", PACKAGES)
def test_a_missing_package_is_named_with_the_extra(tmp_path, monkeypatch, method, installed):
    """Also where it is there, but cannot be imported, or is too old."""
    module, available, told = PACKAGES[method]
    write_configured(tmp_path / "one", {"quant_method": method, **told})
    monkeypatch.setattr(module, available, lambda *_: False)
    monkeypatch.setattr(quantized, "find_spec", find_spec if installed else lambda _: None)
    with pytest.raises(ModelUnavailable) as raised:
        Here(tmp_path).cache.sources.resolve("one")
    detail = str(raised.value)
    assert "pip install '.[quantized]'" in detail
    assert f"quantized ({method})" in detail
    assert (f"the package {method} is missing" in detail) is not installed


def test_tensors_that_transformers_leaves_out_are_refused(server, model_dir):
    """The group of each column, where the columns were reordered before they were quantized."""
    folder = model_dir / "reordered"
    KINDS["w4"](folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight_g_idx"] = torch.randperm(64).int() // 32
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    job = server.wait(server.submit(model=folder.name, method="saliency", input_text=TEXT))
    assert job["error"]["type"] == "/problems/model-unavailable"
    assert "does not read its model.layers.0.mlp.up_proj.weight_g_idx" in job["error"]["detail"]


def test_a_kind_of_torchao_without_values_is_refused(tmp_path, monkeypatch):
    """As those in 4 bits that are packed for one GPU."""
    KINDS["ao-int8"](tmp_path / "one")
    monkeypatch.setattr(Int8Tensor, "dequantize", torch.Tensor.dequantize)
    with pytest.raises(ModelUnavailable) as raised, Here(tmp_path).cache.lease("one", device="cpu", dtype="float32"):
        pass
    assert "(quantized by torchao) could not be loaded: torchao has no values of an Int8Tensor" in str(raised.value)


OTHERS = [
    (lambda _: "the slope is another", UnsupportedByModel, "(bitsandbytes), and its gradients are not those of its"),
    (lambda _: 1 / 0, ModelUnavailable, "(bitsandbytes), and its layers cannot compute on this server: division by"),
]


@pytest.mark.parametrize(("obstacle", "kind", "words"), OTHERS, ids=["slope", "kernel"])
def test_a_probe_that_fails_refuses_the_model(tmp_path, monkeypatch, obstacle, kind, words):
    KINDS["nf4"](tmp_path / "one")
    monkeypatch.setattr(gradient_check, "obstacle", obstacle)
    cache = Here(tmp_path).cache
    with pytest.raises(kind) as raised, cache.lease("one", device="cpu", dtype="float32"):
        pass
    assert words in str(raised.value)
    assert cache.loaded_models() == []


def test_only_quantized_models_are_named_as_such():
    for method, raised, seen in (
        (None, RuntimeError("kernel"), RuntimeError),
        ("gptq", RuntimeError("kernel"), ModelUnavailable),
        ("gptq", OutOfMemory("no room"), OutOfMemory),
    ):
        with pytest.raises(seen), quantized.computing(SimpleNamespace(name="one", quantization=method)):
            raise raised


# The probe


def wrapped(network, tokenizer):
    network.requires_grad_(False)
    return HuggingfaceModel.load(
        network.eval(), "dummy", tokenizer=tokenizer, device="cpu", model_kwargs={}, tokenizer_kwargs={}
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    saved(folder, network_of())
    return t.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [0.05, 0.25, 1.0])  # of the weights: the largest make a strongly bent function
def test_gradients_of_plain_weights_are_slopes(tokenizer, dtype, spread):
    network = network_of(initializer_range=spread, num_hidden_layers=4).to(dtype)
    assert gradient_check.obstacle(wrapped(network, tokenizer)) is None


def test_gradients_through_rounded_activations_are_not(tmp_path, tokenizer):
    KINDS["w8a8"](tmp_path / "one")
    network = t.AutoModelForCausalLM.from_pretrained(tmp_path / "one", attn_implementation="eager")
    assert "the slope of its logits is" in gradient_check.obstacle(wrapped(network, tokenizer))


def scaled_backward(_, __, out):
    return out + 0.2 * (out - out.detach())  # the gradient is 1.2 times the slope


WRONG = {
    "detached": (lambda _, __, out: out.detach(), "no gradient reaches its inputs"),
    "scaled": (scaled_backward, "by its gradient"),
    "infinite": (lambda _, __, out: out + (out - out.detach()) * torch.inf, "zero or not a number"),
    "zero": (lambda _, __, out: out.detach() + 0 * out, "zero or not a number"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_gradients_are_found(tokenizer, kind):
    network = network_of()
    hook, words = WRONG[kind]
    network.model.norm.register_forward_hook(hook)
    assert words in gradient_check.obstacle(wrapped(network, tokenizer))


def test_the_probe_leaves_nothing_behind(tokenizer):
    network = network_of()
    model = wrapped(network, tokenizer)
    before = {name: each.clone() for name, each in network.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002 - the global one
    assert gradient_check.obstacle(model) is None
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]  # noqa: NPY002
    assert all(torch.equal(each, before[name]) for name, each in network.state_dict().items())
    assert all(each.grad is None and not each.requires_grad for each in network.parameters())
    assert not any(each.training or each._forward_hooks or each._forward_pre_hooks for each in network.modules())
    assert torch.is_grad_enabled()
