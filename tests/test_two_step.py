"""The bundled two-step model: its chain carries its answer, and the token behind the first step shows at hop 1 alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo_models import tasks
from tests.conftest import BUNDLED, TWO_STEP
from tests.first_principles import Plain

CHAIN_AND_ANSWER = 4  # tokens, as in ` Oslo and bought milk`


@pytest.fixture(scope="module")
def examples():
    rng = random.Random(77)
    return [tasks.two_step_example(rng) for _ in range(40)]


@pytest.fixture(scope="module")
def plain():
    """The model and its tokenizer in plain Transformers."""
    return AutoModelForCausalLM.from_pretrained(BUNDLED / TWO_STEP).eval(), AutoTokenizer.from_pretrained(
        BUNDLED / TWO_STEP
    )


def likeliest(plain, text):
    """The likeliest next word."""
    network, tokenizer = plain
    with torch.no_grad():
        logits = network(**tokenizer(text, return_tensors="pt")).logits[0, -1]
    return tokenizer.decode([int(logits.argmax())])


def hops(columns, prompt_length):
    """Shares of the answer, the last column, on the prompt's tokens: (directly, by way of one token of the chain).

    `columns` are scores [attributed token, generated token]; each column's absolute values are normalised to sum to 1.
    """
    shares = np.nan_to_num(np.abs(columns)).T
    shares /= shares.sum(axis=1, keepdims=True)
    on_prompt, on_chain = shares[:, :prompt_length], shares[:, prompt_length : prompt_length + len(shares)]
    return on_prompt[-1], on_chain[-1] @ on_prompt


def share_found(matrices, examples):
    """The share of examples whose first step leads at hop 1, and none of its tokens at hop 0."""
    found = []
    for columns, example in zip(matrices, examples, strict=True):
        words = example.prompt.replace(".", " .").split()
        direct, by_chain = hops(columns, len(words))
        name, asked = example.first_step - 3, len(words) - 3
        assert words[name] == words[asked]
        found.append(
            by_chain.argmax() == example.first_step and direct.argmax() not in {example.first_step, name, asked}
        )
    return float(np.mean(found))


def served_columns(server, method, examples):
    """Scores with the default aggregation, over HTTP: [attributed token, generated token] for each example."""
    prompts, generate = [each.prompt for each in examples], {"max_new_tokens": CHAIN_AND_ANSWER}
    result = server.result(server.run(model=TWO_STEP, method=method, input_text=prompts, generation_args=generate))
    return [np.array(each["target_attributions"], float) for each in result["sequence_attributions"]]


def test_the_model_writes_the_chain_and_the_right_answer(plain):
    network, tokenizer = plain
    rng = random.Random(5)
    for example in [tasks.two_step_example(rng) for _ in range(100)]:
        encoded = tokenizer(example.prompt, return_tensors="pt")
        written = network.generate(**encoded, do_sample=False, pad_token_id=0)[0, encoded.input_ids.shape[1] :]
        assert tokenizer.decode(written) == f"{example.completion}<|endoftext|>"


def test_each_step_is_a_copy_of_its_true_token(plain, examples):
    _, tokenizer = plain
    for example in examples:
        ids = tokenizer(example.prompt).input_ids
        step_words = [tokenizer.decode([ids[at]]) for at in (example.first_step, example.second_step)]
        assert [word.strip() for word in step_words] == [example.chain.split()[0], example.answer.strip()]
        assert len(ids) == len(example.prompt.replace(".", " .").split())  # positions in words are positions of tokens
        assert len(tokenizer(example.chain + example.answer).input_ids) == CHAIN_AND_ANSWER


def test_the_first_step_leads_to_the_answer_through_the_chain_alone(plain, examples):
    """Another city in the fact about the name changes the chain; the answer follows the chain, whatever that fact says."""
    for example in examples:
        name, city = example.prompt.split()[-3], example.chain.split()[0]
        facts = example.prompt.replace(".", "").split()
        sold = {facts[at - 1]: facts[at + 1] for at, word in enumerate(facts) if word == "sells"}
        other = next(each for each in sold if each != city)
        edited = example.prompt.replace(f"{name} went to {city}.", f"{name} went to {other}.")
        assert likeliest(plain, edited) == f" {other}"
        for prompt in (example.prompt, edited):
            for said in (city, other):
                assert likeliest(plain, f"{prompt} {said} and bought") == f" {sold[said]}"


def test_the_first_step_is_found_at_hop_1_and_not_at_hop_0(examples):
    """By autograd on plain Transformers: the norm of input x gradient of each token's probability."""
    matrices = []
    for example in examples:
        steps = Plain(BUNDLED / TWO_STEP, example.prompt, example.prompt + example.chain + example.answer)
        scores = steps.scores(lambda step, steps=steps: (steps.gradient(x := steps.embedded(step), step) * x)[0])
        matrices.append(scores.norm(dim=-1).numpy())
    assert share_found(matrices, examples) >= 0.9


# A little below the shares of docs/demo-models.md.
@pytest.mark.parametrize(("method", "smallest"), [("input_x_gradient", 0.9), ("saliency", 0.8)])
def test_the_service_finds_the_first_step_at_hop_1_too(server, examples, method, smallest):
    assert share_found(served_columns(server, method, examples), examples) >= smallest
