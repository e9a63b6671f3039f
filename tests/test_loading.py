"""Checkpoints that lack weights are refused with what they are; tied heads, and models that read images, load."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from models import AttributionRequest
from settings import Settings
from tests.hub import byte_level_tokenizer
from tests.test_network_state import Fresh, assert_equals_plain

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.25}  # fmt: skip
EYES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14}  # fmt: skip
TEXT, TARGET = "The quick", "The quick fox"


def saved(folder, network, **more):
    """Write a network and a tokenizer into `folder`."""
    tokenizer = byte_level_tokenizer(300, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    network.save_pretrained(folder, **more)
    tokenizer.save_pretrained(folder)


def config(**more):
    return t.LlamaConfig(vocab_size=320, bos_token_id=0, eos_token_id=1, **SIZE | more)


def without(network, name):
    return {"state_dict": {key: value for key, value in network.state_dict().items() if key != name}}


def build_headless(folder):
    saved(folder, t.LlamaModel(config()))


def build_reward_model(folder):
    saved(folder, t.LlamaForSequenceClassification(config(num_labels=1)))


def build_incomplete(folder):
    network = t.LlamaForCausalLM(config())
    saved(folder, network, **without(network, "model.layers.1.mlp.up_proj.weight"))


def build_other_shape(folder):
    network = t.LlamaForCausalLM(config())
    saved(folder, network, state_dict=network.state_dict() | {"lm_head.weight": torch.zeros(310, 32)})


def build_encoder_alone(folder):
    size = {"vocab_size": 320, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    saved(folder, t.T5EncoderModel(t.T5Config(**size)))


def build_encoder_of_sentences(folder):
    ids = {"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1, "cls_token_id": 0, "sep_token_id": 1}
    saved(folder, t.ModernBertModel(t.ModernBertConfig(vocab_size=320, **ids, **{k: SIZE[k] for k in list(SIZE)[:4]})))


def build_adapter_beside_base(folder):
    saved(folder, t.LlamaForCausalLM(config()))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "base", "peft_type": "LORA"}')


LOADED = {
    build_headless: ["without a language model head, such as an embedding model", "LlamaModel", "lm_head.weight"],
    build_reward_model: ["reward model or classifier", "LlamaForSequenceClassification", "lm_head.weight"],
    build_incomplete: ["incomplete as LlamaForCausalLM", "model.layers.1.mlp.up_proj.weight"],
    build_other_shape: ["lm_head.weight has the shape [310, 32]", "[320, 32]"],
    build_encoder_alone: ["t5 model (T5EncoderModel)", "no class that generates text"],
    build_encoder_of_sentences: ["modernbert model", "no class that generates text"],
}  # fmt: skip
SEEN = {
    build_adapter_beside_base: ["PEFT adapter", "beside a base model", "merge_and_unload"],
}


def name_of(build):
    return build.__name__.removeprefix("build_").replace("_", "-")


@pytest.mark.parametrize("build", LOADED, ids=name_of)
def test_what_lacks_weights_is_refused(server, model_dir, build):
    build(model_dir / name_of(build))
    job = server.wait(server.submit(model=name_of(build), method="saliency", input_text=TEXT))
    assert job["error"]["type"] == "/problems/model-unavailable"
    for words in [name_of(build), *LOADED[build]]:
        assert words in job["error"]["detail"]


@pytest.mark.parametrize("build", SEEN, ids=name_of)
def test_what_is_no_model_is_refused_at_once(server, model_dir, build):
    """The folder shows it, so the job is not accepted."""
    build(model_dir / name_of(build))
    answer = server.client.post(
        "/attribution/jobs", json={"model": name_of(build), "method": "saliency", "input_text": TEXT}
    )
    assert answer.status_code == 404
    problem = answer.json()
    assert problem["type"] == "/problems/model-unavailable"
    for words in [name_of(build), *SEEN[build]]:
        assert words in problem["detail"]


def test_a_tied_head_is_not_missing(server, model_dir):
    network = t.LlamaForCausalLM(config(tie_word_embeddings=True))
    saved(model_dir / "tied", network)
    job = {"model": "tied", "method": "saliency", "input_text": TEXT, "generated_text": TARGET}
    result = server.result(server.run(**job, step_scores=["probability"]), granular=True)
    assert_equals_plain(result, Fresh(model_dir / "tied", TEXT, TARGET))
    assert result["info"]["warnings"] == []


def test_a_classifier_with_a_tied_head_is_told(server, model_dir):
    saved(model_dir / "tied-reward", t.LlamaForSequenceClassification(config(num_labels=1, tie_word_embeddings=True)))
    result = server.result(server.run(model="tied-reward", method="saliency", input_text=TEXT, generated_text=TARGET))
    (warning,) = result["info"]["warnings"]
    assert "saved as LlamaForSequenceClassification" in warning
    assert "score.weight" in warning


def test_another_process_gives_the_same_numbers(server, model_dir, tmp_path):
    saved(model_dir / "whole", t.LlamaForCausalLM(config()))
    job = {"model": "whole", "method": "saliency", "input_text": TEXT, "generated_text": TARGET,
           "step_scores": ["probability"]}  # fmt: skip
    theirs = server.result(server.run(**job))["sequence_attributions"][0]["step_scores"]["probability"]
    engine = AttributionEngine(Settings(data_dir=tmp_path, model_dirs=(str(model_dir),)))
    request = engine.check(AttributionRequest(**job))
    parts = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    output = stored_form.decode(next(part.content for part in parts if part.kind == "raw"))
    np.testing.assert_array_equal(output[0].step_scores["probability"], np.float32(theirs))


def qwen_vl():
    words = SIZE | {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1, "rope_parameters": {
        "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}  # fmt: skip
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
    ids = {"image_token_id": 310, "video_token_id": 311, "vision_start_token_id": 312, "vision_end_token_id": 313}
    return t.Qwen2_5_VLForConditionalGeneration(t.Qwen2_5_VLConfig(text_config=words, vision_config=eyes, **ids))


def llava():
    words = SIZE | {"vocab_size": 320, "model_type": "llama", "bos_token_id": 0, "eos_token_id": 1}
    eyes = EYES | {"model_type": "clip_vision_model"}
    return t.LlavaForConditionalGeneration(t.LlavaConfig(text_config=words, vision_config=eyes, image_token_index=310))


def paligemma():
    words = SIZE | {"vocab_size": 320, "model_type": "gemma", "head_dim": 8, "bos_token_id": 0, "eos_token_id": 1}
    eyes = EYES | {"model_type": "siglip_vision_model", "projection_dim": 32}
    return t.PaliGemmaForConditionalGeneration(
        t.PaliGemmaConfig(
            text_config=words, vision_config=eyes, image_token_index=310, projection_dim=32, hidden_size=32
        )
    )


@pytest.mark.parametrize("build", [qwen_vl, llava, paligemma])
def test_a_model_that_reads_images_is_loaded_for_its_text(server, model_dir, build):
    folder = model_dir / build.__name__
    torch.manual_seed(5)
    saved(folder, build())
    for text in (TEXT, f"{TEXT} brown"):  # Qwen's keeps what it knows of the last images
        job = {"model": folder.name, "method": "saliency", "input_text": text, "generated_text": f"{text} fox jumps"}
        result = server.result(server.run(**job, step_scores=["probability"]), granular=True)
        assert_equals_plain(result, Fresh(folder, text, f"{text} fox jumps"))
    arguments = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    plain = Fresh(folder, TEXT, TARGET)
    expected = plain.network.generate(plain.source, attention_mask=torch.ones_like(plain.source), **arguments)[
        0
    ].tolist()
    result = server.result(server.run(model=folder.name, method="dummy", input_text=TEXT, generation_args=arguments))
    assert [token["token_id"] for token in result["sequence_attributions"][0]["target"]] == expected


def save_whole(network, folder):
    saved(folder, network)


def save_sharded(network, folder):
    saved(folder, network, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def save_by_torch(network, folder):
    saved(folder, network)
    (folder / "model.safetensors").unlink()
    torch.save(network.state_dict(), folder / "pytorch_model.bin")


def save_half(network, folder):
    saved(folder, network.bfloat16())


def save_fp8(network, folder):
    """As DeepSeek-V3's: each linear layer of a block in 8 bits, with a scale for each square of 128 values."""
    saved(folder, network)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = tensors[name].abs().max() / 448  # the largest number of float8_e4m3fn
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
        network.get_parameter(name).data = tensors[name].float() * scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    told["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(told))


@pytest.mark.parametrize("save", [save_whole, save_sharded, save_by_torch, save_half, save_fp8])
def test_the_numbers_are_those_of_the_weights(server, model_dir, save):
    """However they are written: as the same weights in one file of float32."""
    torch.manual_seed(7)
    network = t.LlamaForCausalLM(config()).eval()
    folder, same = (model_dir / f"{save.__name__}{end}".replace("_", "-") for end in ("", "-same"))
    save(network, folder)
    saved(same, network.float())
    body = {"model": folder.name, "method": "saliency", "input_text": TEXT, "generated_text": TARGET,
            "step_scores": ["probability"]}  # fmt: skip
    result = server.result(server.run(**body), granular=True)
    assert_equals_plain(result, Fresh(same, TEXT, TARGET))
    told = " ".join(result["info"]["warnings"])
    assert ("quantized (fp8)" in told and "activations are not" in told) if save is save_fp8 else told == ""
