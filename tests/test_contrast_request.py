"""The job behind a click on a candidate: its numbers are those of a job written by hand, on every kind of input."""

from __future__ import annotations

import pytest
import torch
import transformers

from attribution_client import AttributionClient, AttributionRequest, contrast_request
from tests import chat_models, families
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE

CHAT = "chat-qwen2"
MESSAGES = [{"role": "user", "content": "The quick brown"}]


@pytest.fixture(scope="module")
def client(server, model_dir):
    if not (model_dir / CHAT).exists():
        chat_models.build(CHAT, model_dir / CHAT)
    if not (model_dir / "gpt2").exists():
        families.build("gpt2", model_dir / "gpt2")
    with AttributionClient(server.url) as client:
        yield client


def finished(client, **body):
    job = client.wait(client.submit(AttributionRequest(**body)))
    assert job.status == "completed", job.error
    return job, client.results(job, decode_tokens=True)


def candidate(sequence, position):
    """The likeliest token that does not stand at the position."""
    step = sequence.candidates[position - sequence.attr_pos_start]
    return next(each for each in step if not each.chosen)


# For each kind of input: the finished job, and how the same contrast is written by hand as text.
TEXT = {"model": LOOKUP, "method": "input_x_gradient", "input_text": PROMPT}
CHATS = {"model": CHAT, "method": "saliency", "messages": MESSAGES, "generated_text": " fox jumps over"}
TRANSLATION = {"model": PHRASEBOOK, "method": "saliency", "input_text": ["a dog", SENTENCE],
               "attribution_args": {"abs": False}}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "sequence", "step"),
    [(TEXT, 0, 0), (CHATS, 0, 1), (TRANSLATION, 1, 2), (TEXT | {"engine": "inseq", "seed": 3}, 0, 1)],
    ids=["text", "chat", "encoder-decoder", "inseq"],
)
def test_it_is_the_job_that_one_would_write(client, body, sequence, step):
    job, result = finished(client, **body)
    scored = result.sequence_attributions[sequence]
    position = scored.attr_pos_start + step
    # The tokenizer would join most candidates of a random model with their neighbours; this one stands by itself.
    other = scored.target[position - 1] if body is CHATS else candidate(scored, position)
    asked = contrast_request(job, result, position, other.token_id, sequence=sequence)
    told = {"name": "n", "notes": "x", "tags": {"a": "b"}, "webhook": "http://a.b/", "webhook_events": ["failed"]}
    named = job.model_copy(update={"request": job.request.model_copy(update=told)})
    again = contrast_request(named, result, position, other.token_id, sequence=sequence)
    assert again == asked.model_copy(update={"tags": {"a": "b"}})  # neither name, notes nor webhook
    mine, found = finished(client, **asked.model_dump(exclude_defaults=True))
    assert mine.request.engine == job.request.engine
    assert mine.request.attribution_args == job.request.attribution_args
    (ours,) = found.sequence_attributions
    assert (ours.attr_pos_start, ours.attr_pos_end) == (position, position + 1)
    assert ours.target[position].token == f"{other.token} → {scored.target[position].token}"
    assert [each.token_id for each in ours.target[:position]] == [each.token_id for each in scored.target[:position]]

    # By hand, in text: the target, and the target with the other token.
    texts = [each.text for each in scored.target]
    before = 1 if body is TRANSLATION else 0
    start = scored.attr_pos_start if body is CHATS else before  # the reply alone
    target = "".join(texts[start:]).removesuffix("</s>").lstrip()
    contrast = "".join([*texts[start:position], other.text, *texts[position + 1 :]]).removesuffix("</s>").lstrip()
    if body is CHATS:
        target, contrast = (f" {each}" for each in (target, contrast))
    given = {name: value for name, value in body.items() if name not in {"generated_text", "input_text"}}
    if body is not CHATS:
        given["input_text"] = job.request.inputs[sequence]
    _, written = finished(
        client, **given, generated_text=target, attributed_fn="contrast_prob_diff",
        attributed_fn_args={"contrast_targets": contrast}, attr_pos_start=position, attr_pos_end=position + 1,
    )  # fmt: skip
    (theirs,) = written.sequence_attributions
    assert ours.source_attributions == theirs.source_attributions
    assert ours.target_attributions == theirs.target_attributions
    assert [(each.token, each.token_id) for each in ours.target] == [
        (each.token, each.token_id) for each in theirs.target
    ]


def test_the_difference_is_that_of_the_two_probabilities(client):
    """On tokens of a sampled text that the tokenizer would not make of it: ids are attributed as they are."""
    job, result = finished(
        client, model="gpt2", method="integrated_gradients", input_text="The quick brown", n_steps=4, candidates=20,
        generation_args={"do_sample": True, "temperature": 2.0, "max_new_tokens": 6}, seed=1,
    )  # fmt: skip
    (scored,) = result.sequence_attributions
    position = scored.attr_pos_end - 1
    step = scored.candidates[-1]
    (own,) = (each for each in step if each.chosen)
    other = next(each for each in step if not each.chosen)
    asked = contrast_request(job, result, position, other)
    _, found = finished(client, **asked.model_dump(exclude_defaults=True) | {
        "step_scores": ["contrast_prob_diff", "probability"],
        "step_scores_args": asked.attributed_fn_args,
    })  # fmt: skip
    (ours,) = found.sequence_attributions
    assert ours.step_scores["contrast_prob_diff"] == pytest.approx([own.probability - other.probability], abs=1e-6)
    assert ours.step_scores["probability"] == pytest.approx([own.probability], rel=1e-4)
    # A contrast job's own token has no id; its candidates have it, so a click goes on from there.
    assert ours.target[position].token_id == -1
    again = contrast_request(job, found, position, other.token_id)
    assert again.generated_ids == asked.generated_ids
    assert again.attributed_fn_args == asked.attributed_fn_args


def test_a_comparison_asks_by_one_of_its_methods(client):
    job = client.wait(client.submit(AttributionRequest(
        model=LOOKUP, methods=["lime", "saliency"], input_text=PROMPT,
        attribution_args={"lime": {"n_samples": 4}, "saliency": {"abs": False}},
    )))  # fmt: skip
    result = client.comparison(job)
    assert job.request.methods == ["lime", "saliency"]
    one = result.comparison[1]
    (scored,) = one.sequence_attributions
    start = scored.attr_pos_start
    asked = contrast_request(job, one, start, candidate(scored, start))
    assert asked == contrast_request(job, client.results(job, method="saliency"), start, candidate(scored, start))
    assert (asked.method, asked.methods, asked.attribution_args) == ("saliency", None, {"abs": False})


def test_what_cannot_be_asked(client):
    job, result = finished(client, **TEXT)
    (scored,) = result.sequence_attributions
    start = scored.attr_pos_start
    with pytest.raises(ValueError, match="was not attributed"):
        contrast_request(job, result, start - 1, 5)
    with pytest.raises(ValueError, match="is the token that stands"):
        contrast_request(job, result, start, scored.target[start].token_id)
    merged = client.results(job, aggregator=["spans", "scores"], aggregator_args={"target_spans": [[0, 2]]})
    spans = finished(client, **TEXT, spans=[{"characters": [0, 2]}])
    with pytest.raises(ValueError, match="spans as wholes: ask by `choices`"):
        contrast_request(*spans, spans[1].sequence_attributions[0].attr_pos_start, 5)
    with pytest.raises(ValueError, match="merged tokens"):
        contrast_request(job, merged, merged.sequence_attributions[0].attr_pos_start, 5)


def test_ids_are_checked(server, client):
    ids = [token["token_id"] for token in server.result(server.run(**TEXT))["sequence_attributions"][0]["target"]]
    wrong = [
        ("", "give either generated_text or generated_ids", {"generated_ids": [ids], "generated_text": f"{PROMPT} tea."}),
        ("", "generated_ids needs one list per input: 1 inputs, 2 lists", {"generated_ids": [ids, ids]}),
        ("/generation_args", "", {"generated_ids": [ids], "generation_args": {"max_new_tokens": 3}}),
        ("/attributed_fn_args/contrast_ids", "Give either contrast_targets or contrast_ids.", {
            "generated_ids": [ids], "attributed_fn": "contrast_prob",
            "attributed_fn_args": {"contrast_ids": [ids], "contrast_targets": PROMPT},
        }),
        (f"/generated_ids/0/{len(ids)}", "greater than or equal to 0", {"generated_ids": [[*ids, -1]]}),
    ]  # fmt: skip
    for pointer, detail, more in wrong:
        (item,) = server.refusal(**TEXT, **more)["errors"]
        assert item["pointer"] == pointer, item
        assert detail in item["detail"], item
    fails = {
        "begin with the input's 10 tokens": {"generated_ids": [ids[1:]]},
        "no token behind the input": {"generated_ids": [ids[:10]]},
        "there is no token 99999": {"generated_ids": [[*ids, 99999]]},
        "contrast_ids: there is no token 77777": {
            "generated_ids": [ids], "attributed_fn": "contrast_prob",
            "attributed_fn_args": {"contrast_ids": [[*ids[:-1], 77777]]},
        },
        "The contrast has 9 tokens": {
            "generated_ids": [ids], "attributed_fn": "contrast_prob",
            "attributed_fn_args": {"contrast_ids": [ids[:9]]},
        },
        "needs one list of ids per input": {
            "generated_ids": [ids], "attributed_fn": "contrast_prob",
            "attributed_fn_args": {"contrast_ids": [ids, ids]},
        },
    }  # fmt: skip
    for told, more in fails.items():
        job = server.wait(server.submit(**TEXT, **more))
        assert (job["status"], job["error"]["type"]) == ("failed", "/problems/input-rejected"), job
        assert told in job["error"]["detail"]
    job = server.wait(server.submit(model=PHRASEBOOK, method="saliency", input_text=SENTENCE, generated_ids=[[5, 6]]))
    assert "the decoder's start token" in job["error"]["detail"]


def test_a_contrast_outside_of_the_tokenizer_has_its_id_for_a_name(server, model_dir):
    """A vocabulary may be larger than its tokenizer; the candidates offer such tokens too."""
    folder = model_dir / "padded-gpt2"
    if not folder.exists():
        families.build("gpt2", folder)
        network = transformers.AutoModelForCausalLM.from_pretrained(folder)
        network.resize_token_embeddings(network.config.vocab_size + 40)
        network.save_pretrained(folder)
    ids = transformers.AutoTokenizer.from_pretrained(folder)("The quick brown fox").input_ids
    other = transformers.AutoTokenizer.from_pretrained(folder).vocab_size + 20
    for engine in ("auto", "inseq"):
        result = server.result(
            server.run(
                model="padded-gpt2", method="input_x_gradient", input_text="The quick brown", generated_ids=[ids],
                attributed_fn="contrast_prob_diff", attributed_fn_args={"contrast_ids": [[*ids[:-1], other]]},
                attr_pos_start=len(ids) - 1, attr_pos_end=len(ids), engine=engine,
            )
        )  # fmt: skip
        assert result["sequence_attributions"][0]["target"][-1]["token"].startswith(f"<{other}> → ")


@pytest.fixture(scope="module")
def padded(model_dir):
    """A model whose vocabulary is larger than its tokenizer."""
    folder = model_dir / "padded"
    if not folder.exists():
        torch.manual_seed(0)
        network = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED / LOOKUP)
        size = network.get_input_embeddings().weight.shape[0]
        network.resize_token_embeddings(size + 7, mean_resizing=False)
        network.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(BUNDLED / LOOKUP).save_pretrained(folder)
    return "padded"


@pytest.mark.parametrize("engine", ["auto", "inseq"])
@pytest.mark.parametrize("at", ["contrast", "target"])
def test_a_token_outside_the_tokenizer_is_named_by_its_id(client, padded, engine, at):
    body = TEXT | {"model": padded, "engine": engine}
    job, result = finished(client, **body, generated_text=f"{PROMPT} tea.")
    (scored,) = result.sequence_attributions
    position = scored.attr_pos_start
    own, outside = scored.target[position], 355
    asked = contrast_request(job, result, position, outside)
    if at == "target":
        (theirs,), (ours,) = asked.generated_ids, asked.attributed_fn_args["contrast_ids"]
        asked = asked.model_copy(update={"generated_ids": [ours], "attributed_fn_args": {"contrast_ids": [theirs]}})
    _, found = finished(client, **asked.model_dump(exclude_defaults=True))
    token = found.sequence_attributions[0].target[position]
    pair = [(f"<{outside}>", f"<{outside}>"), (own.token, own.text)]
    (that, that_text), (this, this_text) = pair if at == "contrast" else reversed(pair)
    assert (token.token, token.contrast, token.text) == (f"{that} → {this}", that_text, this_text)


def test_the_texts_of_a_contrast_are_those_of_its_ids(client):
    """Cleaned tokens are not in the vocabulary: their texts cannot be found by their labels."""
    job, result = finished(client, **TRANSLATION | {"input_text": "a dog"}, clean_special_chars=True)
    (scored,) = result.sequence_attributions
    position = scored.attr_pos_start
    other = candidate(scored, position)
    _, found = finished(client, **contrast_request(job, result, position, other).model_dump(exclude_defaults=True))
    token = found.sequence_attributions[0].target[position]
    assert (token.text, token.contrast) == (scored.target[position].text, other.text)


def test_a_contrast_that_is_the_target_is_refused(server):
    ids = [token["token_id"] for token in server.result(server.run(**TEXT))["sequence_attributions"][0]["target"]]
    later = [*ids[:-1], ids[0]]  # differs behind the attributed token only
    for contrast, alignments in ((ids, None), (later, None), (ids, [[[10, 10]]]), (later, [[[10, 10]]])):
        arguments = {"contrast_ids": [contrast]} | ({"contrast_targets_alignments": alignments} if alignments else {})
        job = server.wait(server.submit(
            **TEXT, generated_ids=[ids], attr_pos_start=10, attr_pos_end=11, attributed_fn="contrast_prob_diff",
            attributed_fn_args=arguments,
        ))  # fmt: skip
        assert (job["status"], job["error"]["type"]) == ("failed", "/problems/input-rejected"), job
        assert "attributed_fn_args: the contrast is the target itself" in job["error"]["detail"]


SAME = {
    "/spans/0/contrast": {"spans": [{"text": " tea", "contrast": " tea"}]},
    "/choices/2": {"choices": [" tea", " milk", " tea"]},
}


@pytest.mark.parametrize("pointer", SAME)
def test_a_text_is_not_compared_with_itself(server, pointer):
    refusal = server.refusal(**TEXT | {"method": "saliency"}, **SAME[pointer])
    assert [error["pointer"] for error in refusal["errors"]] == [pointer]


def test_a_span_is_not_compared_with_its_own_tokens(server):
    job = server.wait(server.submit(
        **TEXT, generated_text=f"{PROMPT} tea.", spans=[{"text": "tea", "contrast": " tea"}]
    ))  # fmt: skip
    assert (job["status"], job["error"]["type"]) == ("failed", "/problems/input-rejected"), job
    assert "spans[0].contrast: ' tea' is the span itself" in job["error"]["detail"]
