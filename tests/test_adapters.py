"""PEFT adapters: a folder of one, and `base+adapter`, give the numbers of the merged model; what cannot is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as t
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    get_peft_model,
)

from attribution.model_cache.cache import ModelCache
from problems import ModelNotAllowed, ModelUnavailable
from settings import Settings
from tests.hub import byte_level_tokenizer
from tests.test_loading import TARGET, TEXT, config, saved

JOB = {"method": "saliency", "input_text": TEXT, "generated_text": TARGET, "step_scores": ["probability"]}


def base(**more):
    torch.manual_seed(3)
    return t.LlamaForCausalLM(config(**more))


def lora(**more):
    return LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", **more
    )


def save_adapter(folder, kind, named, network=None, merged=None):
    """Save a random adapter of `kind`, whose configuration names the base `named`, and the merged model."""
    torch.manual_seed(4)
    model = get_peft_model(base() if network is None else network, kind)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.2).add_("ia3" in name or "norm" in name)
    model.save_pretrained(folder, save_embedding_layers=network is not None)
    saved_as = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(saved_as | {"base_model_name_or_path": named}))
    if merged is not None:
        saved(merged, model.merge_and_unload())


@pytest.fixture(scope="module")
def adapters(model_dir):
    """A base model, LoRA adapters of it, and the merged model as an ordinary folder."""
    saved(model_dir / "peft-base", base())
    save_adapter(model_dir / "peft-lora", lora(), "peft-base", merged=model_dir / "peft-merged")
    save_adapter(model_dir / "peft-elsewhere", lora(), "/home/ann/models/peft-base")
    save_adapter(model_dir / "peft-orphan", lora(), "/home/ann/secrets/no-such-base")
    save_adapter(model_dir / "peft-org-orphan", lora(), "org/no-such-base")
    return model_dir


def numbers(result):
    (sequence,) = result["sequence_attributions"]
    return np.array(sequence["target_attributions"], float), sequence["step_scores"]["probability"]


# Both merge W + BA in float32, in which a merged weight may round otherwise by one unit (6e-8), and the few layers between
# a weight and a number multiply that by less than a hundred.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


def assert_equal(found, expected):
    for one, other in zip(numbers(found), numbers(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=ROUNDING["rtol"], atol=1e-9)


@pytest.mark.parametrize("name", ["peft-lora", "peft-base+peft-lora", "peft-elsewhere", "peft-base+peft-orphan"])
def test_an_adapter_has_the_numbers_of_the_merged_model(server, adapters, name):
    result, merged, alone = (
        server.result(server.run(model=each, **JOB), granular=True) for each in (name, "peft-merged", "peft-base")
    )
    assert_equal(result, merged)
    assert not np.allclose(numbers(result)[1], numbers(alone)[1], rtol=1e-2)
    info = result["info"]
    base_revision, _, adapter_revision = info["model_revision"].partition("+")
    assert base_revision == alone["info"]["model_revision"]
    assert adapter_revision.startswith("local-")
    said = " ".join(info["warnings"])
    assert ("peft-base" in said) is (name not in {"peft-lora", "peft-base+peft-lora"}), said
    assert "/home" not in said


def test_a_changed_base_or_adapter_is_another_model(model_dir, tmp_path):
    for name in ("one", "two"):
        save_adapter(tmp_path / name, lora(), "peft")
    saved(tmp_path / "peft", base())
    cache = ModelCache(Settings(data_dir=tmp_path / "data", model_dirs=(str(tmp_path),)))
    revisions = [cache.sources.revision(each) for each in ("one", "two", "peft+one")]
    saved(tmp_path / "peft", base(rms_norm_eps=1e-3))
    revisions.append(cache.sources.revision("one"))
    assert revisions[2] == revisions[0]
    assert len(set(revisions)) == 3


REFUSED = {
    "peft-orphan": ["PEFT adapter", "'no-such-base'", "BASE+peft-orphan", "merge_and_unload"],
    "peft-org-orphan": ["PEFT adapter", "'org/no-such-base'", "Hugging Face cache"],
    "peft-lora+peft-base": ["no PEFT adapter", "BASE+ADAPTER"],
    "peft-base+peft-merged": ["'peft-merged' is no PEFT adapter"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_without_its_base_is_refused_at_once(server, adapters, name):
    answer = server.client.post("/attribution/jobs", json={"model": name, **JOB})
    assert answer.status_code == 404, answer.text
    assert answer.json()["type"] == "/problems/model-unavailable"
    assert "/home" not in answer.text
    for words in REFUSED[name]:
        assert words in answer.json()["detail"]


class Here:
    """A model directory in this process."""

    def __init__(self, folder):
        self.folder = folder
        self.cache = ModelCache(Settings(data_dir=folder / "data", model_dirs=(str(folder),)))

    def logits(self, name):
        ids = torch.arange(10, 16)[None]
        with self.cache.lease(name, device="cpu", dtype="float32") as loaded, torch.no_grad():
            return loaded.network(ids).logits, loaded


@pytest.fixture
def here(tmp_path):
    return Here(tmp_path)


@pytest.mark.parametrize(
    "kind",
    [
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
        LNTuningConfig(task_type="CAUSAL_LM"),
        lora(modules_to_save=["lm_head"]),
        lora(use_dora=True),
    ],
    ids=["ia3", "ln_tuning", "modules_to_save", "dora"],
)
def test_other_types_of_adapters(here, kind):
    saved(here.folder / "base", base())
    save_adapter(here.folder / "adapter", kind, "base", merged=here.folder / "merged")
    found, loaded = here.logits("adapter")
    torch.testing.assert_close(found, here.logits("merged")[0], **ROUNDING)
    assert not torch.allclose(found, here.logits("base")[0], atol=1e-2)
    assert loaded.warnings == []


def test_an_adapter_with_more_tokens_than_its_base(here):
    """Its tokenizer and its embedding are the adapter's."""
    saved(here.folder / "base", base(tie_word_embeddings=True))
    network = base(tie_word_embeddings=True)
    network.resize_token_embeddings(326)
    save_adapter(here.folder / "adapter", lora(), "base", network, here.folder / "merged")
    tokenizer = byte_level_tokenizer(300, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(here.folder / "adapter")
    found, loaded = here.logits("adapter")
    assert found.shape[-1] == 326
    torch.testing.assert_close(found, here.logits("merged")[0], **ROUNDING)
    assert "<new>" in loaded.model.tokenizer.get_vocab()


def unfit(folder):
    save_adapter(folder, lora(), "base", base(intermediate_size=64))


def foreign(folder):
    config = t.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=320)
    save_adapter(
        folder, LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM"), "base", t.GPT2LMHeadModel(config)
    )


def partial(folder):
    save_adapter(folder, lora(), "base", base(num_hidden_layers=1))


def prompts(folder):
    save_adapter(folder, PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "base")


def classifier(folder):
    kind = LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS")
    save_adapter(folder, kind, "base", t.LlamaForSequenceClassification(config()))


def damaged(folder):
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{")


def of_an_adapter(folder):
    save_adapter(folder.with_name("first"), lora(), "base")
    save_adapter(folder, lora(), "first")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (unfit, ["does not fit", "LlamaForCausalLM", "down_proj"]),
        (foreign, ["does not fit", "c_attn"]),
        (partial, ["does not fit", "lacks", "layers.1"]),
        (prompts, ["PREFIX_TUNING", "virtual tokens"]),
        (classifier, ["SEQ_CLS"]),
        (damaged, ["cannot be read"]),
        (of_an_adapter, ["'first'", "an adapter itself"]),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_does_not_fit_is_refused(here, build, words):
    saved(here.folder / "base", base())
    build(here.folder / "adapter")
    with pytest.raises(ModelUnavailable) as refusal:
        here.logits("adapter")
    for each in ["'adapter'", *words]:
        assert each in str(refusal.value)


def test_an_adapter_that_cannot_be_merged_stays_active(here):
    saved(here.folder / "base", base())
    save_adapter(
        here.folder / "adapter", AdaptionPromptConfig(adapter_len=4, adapter_layers=1, task_type="CAUSAL_LM"), "base"
    )
    network = t.AutoModelForCausalLM.from_pretrained(here.folder / "base", attn_implementation="eager")
    plain = PeftModel.from_pretrained(network, here.folder / "adapter").eval()
    found, loaded = here.logits("adapter")
    with torch.no_grad():
        torch.testing.assert_close(found, plain(torch.arange(10, 16)[None]).logits)
    assert not torch.allclose(found, here.logits("base")[0], atol=1e-3)
    (warning,) = loaded.warnings
    assert "ADAPTION_PROMPT" in warning
    assert "computed beside" in warning


def test_an_adapter_of_the_hub_cache(server, hub_cache, model_dir):
    """Its base is found by its name there, or by its place in another cache; the allow list holds for both."""
    commit = "c" * 40
    base_folder = next((hub_cache / "hub" / "models--distilgpt2" / "snapshots").iterdir())
    kind = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    network = t.AutoModelForCausalLM.from_pretrained(base_folder)
    folder = hub_cache / "hub" / "models--org--tuned"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    save_adapter(snapshot, kind, "distilgpt2", network, model_dir / "tuned-merged")
    t.AutoTokenizer.from_pretrained(base_folder).save_pretrained(model_dir / "tuned-merged")
    place = f"/home/ann/.cache/huggingface/hub/models--distilgpt2/snapshots/{base_folder.name}"
    save_adapter(model_dir / "tuned-elsewhere", kind, place, t.AutoModelForCausalLM.from_pretrained(base_folder))
    merged = server.result(server.run(model="tuned-merged", **JOB), granular=True)
    for name in ("org/tuned", f"distilgpt2+org/tuned@{commit}", "tuned-elsewhere"):
        found = server.result(server.run(model=name, **JOB), granular=True)
        assert_equal(found, merged)
        assert found["info"]["model_revision"].startswith(f"{base_folder.name}+")


def test_the_allow_list_holds_for_base_and_adapter(tmp_path):
    saved(tmp_path / "base", base())
    save_adapter(tmp_path / "adapter", lora(), "base")

    def found(name, *allowed):
        settings = Settings(data_dir=tmp_path / "data", model_dirs=(str(tmp_path),), allowed_models=allowed)
        return ModelCache(settings).sources.on_this_machine(name).name

    assert found("adapter", "adapter") == "adapter"  # the operator put it there
    assert found("base+adapter", "base+*") == "base+adapter"
    assert found("base+adapter", "base", "adapter") == "base+adapter"
    for allowed in (("base",), ("adapter",), ("other+adapter",)):
        with pytest.raises(ModelNotAllowed):
            found("base+adapter", *allowed)
