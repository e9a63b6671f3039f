"""Quantized checkpoints have the numbers of their weights by definition, in the dtype of the request."""

import numpy as np
import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from attribution.model_cache import quantized_weights
from attribution.model_cache.cache import ModelCache
from settings import Settings
from tests.quantized_files import KINDS, NF4, experts, network_of, quantize, write_plain
from tests.test_adapters import ROUNDING, Here, lora, save_adapter
from tests.test_loading import TARGET, TEXT
from tests.test_network_state import Fresh, assert_equals_plain

METHODS = {"nf4": "bitsandbytes", "ao-int8": "torchao", "w8a8": "compressed-tensors", "fp8": "fp8", "mxfp4": "mxfp4"}


@pytest.mark.parametrize(
    ("kind", "written"),
    [*((kind, "bfloat16") for kind in KINDS), *((kind, "float32") for kind in ("nf4", "ao-int8", "w4"))],
)
def test_the_weights_have_their_values_and_the_dtype_of_the_request(tmp_path, kind, written):
    values = KINDS[kind](tmp_path / "one", getattr(torch, written))
    cache = ModelCache(Settings(data_dir=tmp_path / "data", model_dirs=(str(tmp_path),), cpu_half="native"))
    for dtype in (torch.float32, torch.bfloat16):
        with cache.lease("one", device="cpu", dtype=str(dtype).removeprefix("torch.")) as loaded:
            assert {(type(each.data), each.dtype) for each in loaded.network.parameters()} == {(torch.Tensor, dtype)}
            assert not getattr(loaded.network, "is_loaded_in_4bit", False)
            found = {name: loaded.network.get_parameter(name) for name in values}
            assert [name for name, each in values.items() if not torch.equal(found[name], each.to(dtype))] == []
            assert loaded.source.parameters == loaded.network.num_parameters()


def run_one(server, name, method="saliency"):
    body = {"model": name, "method": method, "input_text": TEXT, "generated_text": TARGET,
            "step_scores": ["probability"]}  # fmt: skip
    return server.result(server.run(**body), granular=True)


@pytest.mark.parametrize("kind", METHODS)
def test_the_scores_are_those_of_the_values(server, model_dir, kind):
    name, method = f"quantized-{kind}", METHODS[kind]
    network = experts() if kind == "mxfp4" else network_of()
    write_plain(model_dir / f"{name}-same", KINDS[kind](model_dir / name), network)
    result = run_one(server, name)
    assert_equals_plain(result, Fresh(model_dir / f"{name}-same", TEXT, TARGET))
    info = result["info"]
    assert (info["quantization"], info["engine"]) == (method, "single_pass")
    (warning,) = info["warnings"]
    assert warning.startswith(f"The weights are quantized ({method}) and were made wide")
    assert ("activations are not quantized" in warning) is (kind in {"w8a8", "fp8"})
    models = server.client.get("/attribution/models").json()
    (listed,) = [each for each in models["available"] if each["name"] == name]
    assert (listed["quantization"], listed["parameters"]) == (method, network.num_parameters())
    (loaded,) = [each for each in models["loaded"] if each["name"] == name]
    size = sum(each.numel() * 4 for each in (*network.parameters(), *network.buffers()))
    assert (loaded["quantization"], loaded["bytes"]) == (method, size)


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_methods_on_a_quantized_checkpoint(server, model_dir, method):
    """As on the plain model of the same values."""
    if not (model_dir / "methods").exists():
        write_plain(model_dir / "methods-same", KINDS["nf4"](model_dir / "methods"))
    found, same = (run_one(server, name, method)["sequence_attributions"][0] for name in ("methods", "methods-same"))
    one, other = (np.array(each["target_attributions"], float) for each in (found, same))
    np.testing.assert_array_equal(one, other)


def test_an_adapter_of_a_quantized_base(tmp_path):
    """QLoRA: the adapter is merged into the wide weights."""
    here, network = Here(tmp_path), network_of()
    write_plain(tmp_path / "wide", KINDS["nf4"](tmp_path / "base"), network)
    save_adapter(tmp_path / "adapter", lora(), "base", network, tmp_path / "merged")
    torch.testing.assert_close(here.logits("adapter")[0], here.logits("merged")[0], **ROUNDING)


def test_factors_on_the_inputs_of_a_layer_of_torchao():
    """Those of AWQ and SmoothQuant belong to the wide weights."""
    layer, inputs = torch.nn.Sequential(torch.nn.Linear(64, 8)), torch.randn(3, 64)
    quantize_(layer, Int8WeightOnlyConfig(version=2))
    layer[0].weight.act_pre_scale = torch.rand(64) + 0.5
    with torch.no_grad():
        wide = inputs @ quantized_weights._of_torchao(layer[0].weight.data).T + layer[0].bias
        torch.testing.assert_close(wide, layer(inputs), **ROUNDING)


def test_memory_while_a_file_is_read(tmp_path):
    """Of the wide weights, and of the file beside them."""
    quantize(tmp_path / "one", NF4)
    source = Here(tmp_path).cache.sources.on_this_machine("one")
    assert source.bytes_while_read == (tmp_path / "one" / "model.safetensors").stat().st_size
