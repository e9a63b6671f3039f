"""Generation over HTTP: the ids are those of plain `generate`, its arguments are in the record, its length is bounded, and
what cannot work is refused with a reason. Values are compared with plain Transformers.
"""

from __future__ import annotations

import json
import shutil

import pytest
import transformers as t

from attribution.catalogue import generation_catalogue
from attribution.engine import AttributionEngine
from models import AttributionRequest
from problems import InputRejected
from settings import Settings
from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.families import build
from tests.more_families import build as build_more

TEXT = "the quick brown fox"


@pytest.fixture
def model(model_dir, request):
    """Makes a model whose own defaults of generation are these, in a folder with the test's name."""
    made = []

    def with_defaults(family="llama", **defaults):
        original = model_dir / f"generation-{family}"
        if not original.exists():
            build(family, original)
        folder = model_dir / f"{request.node.originalname}-{family}-{len(made)}"
        shutil.copytree(original, folder)
        special = json.loads((folder / "generation_config.json").read_text())
        (folder / "generation_config.json").write_text(json.dumps(special | defaults))
        made.append(folder)
        return folder

    yield with_defaults
    for folder in made:
        shutil.rmtree(folder)


def plain(folder, text, *, seed=0, needs_tokenizer=False, **arguments):
    """The target's ids by plain `generate`."""
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    is_encoder_decoder = t.AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = t.AutoModelForSeq2SeqLM if is_encoder_decoder else t.AutoModelForCausalLM
    network = auto.from_pretrained(folder)
    t.set_seed(seed)
    own = {"tokenizer": tokenizer} if needs_tokenizer else {}
    return network.generate(**tokenizer(text, return_tensors="pt"), **arguments, **own)[0].tolist()


def generated(server, folder, text=TEXT, **body):
    """The ids of a job that generates, and the `info` of its result."""
    result = server.result(server.run(model=folder.name, method="dummy", input_text=text, **body))
    return [token["token_id"] for token in result["sequence_attributions"][0]["target"]], result["info"]


# The record


def test_a_models_own_sampling_is_recorded(server, model):
    """meta-llama/llama-models#176: a chat model samples by default. Its record alone gives the same text again."""
    defaults = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2, 5]}
    chat, greedy = model(**defaults), model(do_sample=False)
    ids, info = generated(server, chat, seed=3)
    assert ids == plain(chat, TEXT, seed=3, max_new_tokens=20)
    assert info["generation_args"] == {}  # what the request says
    used = info["arguments"]["generation_args"]
    assert used.items() >= {**defaults, "top_k": 50, "num_beams": 1, "max_new_tokens": 20}.items()
    again, _ = generated(server, greedy, seed=3, generation_args=used)
    assert again == ids
    explicit, info = generated(server, chat, generation_args={"do_sample": False, "max_new_tokens": 5})
    assert explicit == plain(chat, TEXT, do_sample=False, max_new_tokens=5)
    assert info["arguments"]["generation_args"].items() >= {"do_sample": False, "max_new_tokens": 5}.items()
    assert info["generation_args"] == {"do_sample": False, "max_new_tokens": 5}


def test_the_record_of_several_texts_and_methods(server, model):
    folder = model(max_length=16)
    texts = [TEXT, "the"]
    result = server.result(server.run(model=folder.name, methods=["dummy", "saliency"], input_text=texts))
    lengths = []
    for each, text in enumerate(texts):
        expected = plain(folder, text)
        lengths.append(16 - len(t.AutoTokenizer.from_pretrained(folder)(text).input_ids))
        for one in result["comparison"]:
            target = one["sequence_attributions"][each]["target"]
            assert [token["token_id"] for token in target] == expected
    for one in result["comparison"]:
        assert one["info"]["arguments"]["generation_args"]["max_new_tokens"] == lengths


def test_a_forced_target_has_no_arguments_of_generation(server, model):
    _, info = generated(server, model(do_sample=True), generated_text=f"{TEXT} jumps")
    assert "generation_args" not in info["arguments"]
    assert not info["warnings"]


# The length


def estimate(server, folder, **body):
    answer = server.client.post(
        "/attribution/estimate", json={"model": folder.name, "method": "dummy", "input_text": TEXT, **body}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_default_length_above_the_servers_limit(server, model):
    """huggingface/transformers#25030: a default length of thousands of tokens."""
    folder = model("bloom", max_length=3000)  # bloom has no limit of positions
    found = estimate(server, folder)
    assert found["generation_passes"] == 1024
    assert any("INSEQ_API_MAX_NEW_TOKENS" in each for each in found["warnings"])
    # A stop string ends it early; the limit is the same.
    whole = plain(folder, TEXT, max_new_tokens=6)
    stop = t.AutoTokenizer.from_pretrained(folder).decode(whole[-1:])
    ids, info = generated(server, folder, generation_args={"stop_strings": stop})
    assert ids == plain(folder, TEXT, max_new_tokens=1024, stop_strings=stop, needs_tokenizer=True)
    assert info["arguments"]["generation_args"]["max_new_tokens"] == 1024
    assert any("INSEQ_API_MAX_NEW_TOKENS" in each and "2" in each for each in info["warnings"])
    refusal = server.refusal(model=folder.name, method="dummy", input_text=TEXT, generation_args={"max_length": 3000})
    assert refusal["errors"][0]["pointer"] == "/generation_args/max_length"


def test_beams_above_the_servers_limit(server, model, model_dir, tmp_path):
    """Refused with the limit, from a request and from the model's own defaults, before the queue and in the job."""
    folder = model(num_beams=33)
    body = {"model": folder.name, "method": "dummy", "input_text": TEXT}
    refusal = server.refusal(**body, generation_args={"num_beams": 33})
    assert refusal["errors"][0]["pointer"] == "/generation_args/num_beams"
    assert "at most 32 beams (INSEQ_API_MAX_NUM_BEAMS)" in refusal["detail"]
    refusal = server.refusal(**body, generation_args={"max_new_tokens": 2})
    assert "The model's own generation_config" in refusal["detail"]
    assert "Give num_beams" in refusal["detail"]
    ids, _ = generated(server, folder, generation_args={"num_beams": 32, "max_new_tokens": 3})
    assert ids == plain(folder, TEXT, num_beams=32, max_new_tokens=3)
    # The defaults of a model that is downloaded are known in the job alone.
    engine = AttributionEngine(Settings(data_dir=tmp_path, model_dirs=(str(model_dir),)))
    with pytest.raises(InputRejected, match="at most 32 beams"):
        engine.run(AttributionRequest(**body), device="cpu", report=lambda _: None, should_cancel=lambda: False)


@pytest.mark.parametrize("excess", [0, -3])
def test_a_default_length_shorter_than_the_prompt(server, model, excess):
    """huggingface/transformers#17414: plain `generate` refuses it, and one token is no answer."""
    size = len(t.AutoTokenizer.from_pretrained(model()).encode(TEXT))
    folder = model(max_length=size + excess)
    ids, info = generated(server, folder)
    assert ids == plain(folder, TEXT, max_new_tokens=20)
    (warning,) = info["warnings"]
    assert str(size) in warning
    assert "max_new_tokens" in warning
    found = estimate(server, folder)
    assert found["warnings"] == [warning]
    assert found["generation_passes"] == 20


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_max_length_counts_what_transformers_counts(server, model, family):
    folder = model(family, max_length=12, max_new_tokens=None)
    assert generated(server, folder)[0] == plain(folder, TEXT)
    assert generated(server, folder, generation_args={"max_length": 14})[0] == plain(folder, TEXT, max_length=14)
    own = model(family, max_new_tokens=3)
    ids, info = generated(server, own, generation_args={"max_length": 14})
    assert ids == plain(folder, TEXT, max_length=14)  # the request's length, not the model's own
    assert info["arguments"]["generation_args"]["max_new_tokens"] > 3


# Arguments


ARGUMENTS = {
    "a bias of sequences": {"sequence_bias": [[[20], 30.0], [[30, 31], -5.0]]},
    "tokens suppressed at the beginning": {"begin_suppress_tokens": list(range(160))},
    "a decay of the length": {"exponential_decay_length_penalty": [2, 2.5]},
    "beams that never stop early": {"num_beams": 2, "early_stopping": "never"},
    "penalties": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.2},
    "several forced ends": {"forced_eos_token_id": [40, 41]},
    "every sampling": {"do_sample": True, "top_k": 9, "top_p": 0.8, "typical_p": 0.9, "epsilon_cutoff": 3e-4},
    "other samplings": {"do_sample": True, "min_p": 0.01, "top_h": 0.9, "eta_cutoff": 3e-4, "num_beams": 2},
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "bart"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_do_what_they_do_in_transformers(server, model, name, family):
    arguments = ARGUMENTS[name] | {"max_new_tokens": 8}
    folder = model(family)
    ids, info = generated(server, folder, generation_args=arguments)
    expected = plain(folder, TEXT, **arguments)
    if family == "llama" and expected[-1] == 1:
        expected.pop()  # a last EOS, which is its padding too
    assert ids == expected
    assert info["arguments"]["generation_args"].items() >= arguments.items()


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_stop_strings(server, model, family):
    folder = model(family)
    tokenizer, whole = t.AutoTokenizer.from_pretrained(folder), plain(folder, TEXT, max_new_tokens=12)
    stop = tokenizer.decode(whole[-6:-4])
    assert "\ufffd" not in stop
    for given in (stop, [stop, "not generated"]):
        arguments = {"stop_strings": given, "max_new_tokens": 12}
        ids, _ = generated(server, folder, generation_args=arguments)
        assert ids == plain(folder, TEXT, needs_tokenizer=True, **arguments)
        assert len(ids) < len(whole)
    ids, info = generated(server, model(family, stop_strings=[stop]), generation_args={"max_new_tokens": 12})
    assert len(ids) < len(whole)
    assert info["arguments"]["generation_args"]["stop_strings"] == [stop]


def test_defaults_that_are_not_served_are_left_out(server, model):
    folder = model(
        num_beams=3, num_return_sequences=3, token_healing=True, penalty_alpha=0.6, top_k=4, output_scores=True,
        max_new_tokens=6, cache_implementation="static",
    )  # fmt: skip
    ids, info = generated(server, folder)
    assert ids == plain(model(), TEXT, num_beams=3, max_new_tokens=6)
    assert [each.split()[3] for each in info["warnings"]] == ["token_healing", "penalty_alpha"]


def test_idle_arguments_are_named(server, model):
    _, info = generated(
        server, model(), generation_args={"temperature": 0.7, "length_penalty": 2.0, "max_new_tokens": 2}
    )
    assert any("temperature has no effect" in each for each in info["warnings"])
    assert any("length_penalty has no effect" in each for each in info["warnings"])


def test_a_generate_that_takes_the_ids_by_another_name(server, model_dir):
    """Seamless has a `generate` of its own."""
    folder = model_dir / "seamless"
    if not folder.exists():
        build_more("seamless", folder)
    tokenizer, network = t.AutoTokenizer.from_pretrained(folder), t.AutoModelForSeq2SeqLM.from_pretrained(folder)
    expected = network.generate(**tokenizer(TEXT, return_tensors="pt"), max_new_tokens=5)[0].tolist()
    assert generated(server, folder, generation_args={"max_new_tokens": 5})[0] == expected


# Refusals


def test_every_argument_is_decided():
    """A new version of Transformers may bring arguments that nobody here has looked at."""
    assert generation_catalogue.undecided() == set()


REFUSED = {
    "token_healing": (True, "replaces the last token of the prompt"),
    "watermarking_config": ({"bias": 2.0}, "detector"),
    "logits_processor": ([], "JSON cannot carry"),
    "stopping_criteria": ([], "JSON cannot carry"),
    "negative_prompt_ids": ([[1]], "JSON cannot carry"),
    "assistant_model": ("gpt2", "a job has one model"),
    "is_assistant": (True, "a job has one model"),
    "custom_generate": ("some/repository", "code from the Hub"),
    "penalty_alpha": (0.6, "code from the Hub"),
    "cache_implementation": ("paged", "changes no token"),
    "num_return_sequences": (2, "one sequence"),
    "temperature": (0.0, "strictly positive"),
    "top_p": (1.5, "float > 0 and < 1"),
    "top_k": (-1, "strictly positive"),
    "min_p": (2.0, "[0, 1]"),
    "top_h": (0.0, "(0, 1]"),
    "typical_p": (0.0, "float > 0 and < 1"),
    "epsilon_cutoff": (2.0, "float > 0 and < 1"),
    "repetition_penalty": (0.0, "repetition_penalty has to be a strictly positive float"),
    "no_repeat_ngram_size": (-2, "no_repeat_ngram_size has to be a strictly positive integer"),
    "bad_words_ids": ([], "non-empty"),
    "sequence_bias": ([[[-1], 2.0]], "positive integers"),
    "num_beams": (0, "at least 1"),
    "max_length": (1025, "between 1 and 1024"),
    "min_length": (-1, "at least 0"),
    "min_new_tokens": (9, "at most 3 are generated"),
    "prompt_lookup_num_tokens": (0, "at least 1"),
    "stop_strings": ([""], "holds no text"),
    "early_stopping": ("sometimes", "never"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_queue(server, name):
    value, words = REFUSED[name]
    arguments = {"do_sample": True, "max_new_tokens": 3, name: value}
    refusal = server.refusal(model=LOOKUP, method="dummy", input_text=PROMPT, generation_args=arguments)
    (error,) = refusal["errors"]
    assert error["pointer"] == f"/generation_args/{name}"
    assert words in error["detail"]


@pytest.mark.parametrize("strings", [["x"] * 17, ["x" * 201], []])
def test_too_many_stop_strings(server, strings):
    refusal = server.refusal(model=LOOKUP, method="dummy", input_text=PROMPT, generation_args={"stop_strings": strings})
    assert refusal["errors"][0]["pointer"] == "/generation_args/stop_strings"


def test_contradictions_with_a_models_own_defaults(server, model):
    """Known from the model's files, before the job runs."""
    body = {"model": model(do_sample=True).name, "method": "dummy", "input_text": TEXT}
    refusal = server.refusal(**body, generation_args={"temperature": 0})
    assert "set do_sample to false" in refusal["detail"]
    server.run(**body, generation_args={"temperature": 0, "do_sample": False, "max_new_tokens": 1})
    refusal = server.refusal(**body | {"model": model(do_sample=True, temperature=0.0).name})
    assert "The model's own generation_config" in refusal["detail"]
    assert "Give temperature" in refusal["detail"]


def test_guidance_on_an_encoder_decoder(server):
    body = {"model": PHRASEBOOK, "method": "dummy", "input_text": SENTENCE, "generation_args": {"guidance_scale": 2.0}}
    assert "decoder-only" in server.refusal(**body)["detail"]


def test_a_failure_is_blamed_on_its_cause(server, model):
    """Arguments are to blame only where the model generates without them."""
    body = {"model": PHRASEBOOK, "method": "dummy", "input_text": SENTENCE}
    job = server.wait(server.submit(**body, generation_args={"decoder_start_token_id": 10**6}))
    assert job["error"]["type"] == "/problems/input-rejected"
    assert "these generation_args" in job["error"]["detail"]
    folder = model(forced_eos_token_id=10**6)
    job = server.wait(server.submit(**body | {"model": folder.name}, generation_args={"max_new_tokens": 3}))
    assert "whatever the generation_args" in job["error"]["detail"]
    assert "generated_text" in job["error"]["detail"]
