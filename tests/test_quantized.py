"""Quantized checkpoints are made wide: the numbers are those of scale times integer, in a plain model."""

import json

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from tests.test_loading import TARGET, TEXT, config, saved
from tests.test_network_state import Fresh, assert_equals_plain

pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is not installed")

_EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
W8A8 = {
    "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
    "ignore": ["lm_head"], "config_groups": {"group_0": {
        "targets": ["Linear"], "weights": {**_EIGHT_BITS, "strategy": "channel", "dynamic": False},
        "input_activations": {**_EIGHT_BITS, "strategy": "token", "dynamic": True},
    }},
}  # fmt: skip


def test_compressed_tensors_have_the_values_of_their_integers(server, model_dir):
    """Its layers as they are would round the activations too, to 8 bits, which changes every gradient."""
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
