"""`GET /attribution/models` describes the models on this machine; unknown names get near ones."""

from __future__ import annotations

import pytest
import torch

from attribution.engine import AttributionEngine
from problems import ModelNotAllowed, ModelUnavailable
from settings import Settings
from tests.conftest import LOOKUP, PHRASEBOOK
from tests.test_adapters import base, lora, save_adapter
from tests.test_gguf import TEMPLATE, write
from tests.test_loading import saved


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("listed")
    saved(folder / "plain-llama", base().to(torch.bfloat16))
    (folder / "plain-llama" / "chat_template.jinja").write_text(TEMPLATE)
    saved(folder / "org" / "nested", base())
    save_adapter(folder / "tuned", lora(), "plain-llama")
    save_adapter(folder / "orphan", lora(), "/elsewhere/no-base")
    write(folder / "one" / "model.gguf", chat_template=TEMPLATE)
    for name in ("a", "b"):
        write(folder / "two" / f"{name}.gguf")
    (folder / "notes").mkdir()
    return folder


def engine_of(folder, tmp_path, **more):
    return AttributionEngine(Settings(data_dir=tmp_path, model_dirs=(str(folder),), **more))


def test_the_models_of_a_directory(folder, tmp_path):
    engine = engine_of(folder, tmp_path)
    listed = {each["name"]: each for each in engine.models()["available"]}
    local = {name for name, each in listed.items() if each.get("kind") not in {"bundled", "hub"}}
    assert local == {"plain-llama", "org/nested", "tuned", "orphan", "one", "two/a.gguf", "two/b.gguf"}
    count = base().num_parameters()
    plain = listed["plain-llama"]
    assert plain == {
        "name": "plain-llama", "kind": "directory", "format": "safetensors", "revision": plain["revision"], "base": None,
        "class": "LlamaForCausalLM", "is_encoder_decoder": False, "context_length": 128, "parameters": count, "quantization": None,
        "bytes": {"bfloat16": 2 * count}, "chat_template": True, "loaded": False, "problem": None,
    }  # fmt: skip
    tuned = listed["tuned"]
    added = tuned["parameters"] - count
    assert (tuned["format"], tuned["base"], tuned["class"]) == ("adapter", "plain-llama", "LlamaForCausalLM")
    assert (tuned["bytes"], tuned["chat_template"]) == ({"bfloat16": 2 * count, "float32": 4 * added}, True)
    assert tuned["revision"].startswith(f"{plain['revision']}+local-")
    one = listed["one"]
    assert (one["format"], one["class"], one["context_length"]) == ("gguf", "LlamaForCausalLM", 128)
    assert (one["chat_template"], one["is_encoder_decoder"], set(one["bytes"])) == (True, False, {"F32", "Q8_0"})
    assert listed["two/a.gguf"]["chat_template"] is False
    assert "'no-base'" in listed["orphan"]["problem"]
    assert listed[PHRASEBOOK]["is_encoder_decoder"] is True
    assert (listed[PHRASEBOOK]["kind"], listed[PHRASEBOOK]["context_length"]) == ("bundled", None)


def test_a_loaded_model_is_marked(folder, tmp_path):
    engine = engine_of(folder, tmp_path)
    with engine._models.lease("tuned", device="cpu", dtype="float32"):
        loaded = {each["name"] for each in engine.models()["available"] if each["loaded"]}
    assert loaded == {"tuned"}


def test_the_models_of_the_hub_cache(server, hub_cache):
    listed = {each["name"]: each for each in server.client.get("/attribution/models").json()["available"]}
    hub = listed["distilgpt2"]
    assert (hub["kind"], hub["class"], hub["format"]) == ("hub", "GPT2LMHeadModel", "safetensors")
    assert hub["parameters"] == sum(hub["bytes"].values()) // 4
    assert listed[LOOKUP]["bytes"] == {"float32": 282_432 * 4}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("plain-lama", "'plain-llama'"),
        ("Plain-Llama", "'plain-llama'"),
        ("other/nested", "'org/nested'"),
        ("two/c.gguf", "'two/a.gguf'"),
        ("lookup-gpt", "'lookup-gpt2'"),
    ],
)
def test_an_unknown_name_gets_near_ones(folder, tmp_path, name, near):
    engine = engine_of(folder, tmp_path)
    with pytest.raises(ModelUnavailable, match="Did you mean") as refusal:
        engine._models.sources.resolve(name)
    assert near in str(refusal.value)


def test_only_allowed_models_are_listed_and_suggested(folder, tmp_path):
    engine = engine_of(folder, tmp_path, allowed_models=("tuned", "tw[o]"))
    names = {each["name"] for each in engine.models()["available"]} - set(engine.models()["bundled"])
    assert names == {"tuned", "two/a.gguf", "two/b.gguf"}
    with pytest.raises(ModelNotAllowed) as refusal:
        engine._models.sources.resolve("plain-lama")
    assert "plain-llama" not in str(refusal.value)
    with pytest.raises(ModelNotAllowed, match="Did you mean 'tuned'"):
        engine._models.sources.resolve("tund")


def test_far_names_are_not_suggested(folder, tmp_path):
    with pytest.raises(ModelUnavailable) as refusal:
        engine_of(folder, tmp_path)._models.sources.resolve("quite/another")
    assert "Did you mean" not in str(refusal.value)
