"""Where the service differs from Inseq: Inseq's value or failure, the value from first principles, and ours.

When Inseq no longer differs, the first part of a test fails and the correction can go.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from attribution import corrections
from tests import reference
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE

FORCED = PROMPT + " milk. Ben"


def plain(name):
    """The bundled model in plain Transformers."""
    auto = AutoModelForCausalLM if name == LOOKUP else AutoModelForSeq2SeqLM
    network = auto.from_pretrained(BUNDLED / name, attn_implementation="eager").eval()
    return network, AutoTokenizer.from_pretrained(BUNDLED / name)


@pytest.mark.parametrize("name", ["crossentropy", "perplexity"])
def test_crossentropy_of_one_sequence(server, name):
    with pytest.raises(Exception, match=r"dim|shape|batch|target|Expected"):
        reference.attribute(BUNDLED / LOOKUP, PROMPT, "dummy", generated_texts=FORCED, step_scores=[name])

    network, tokenizer = plain(LOOKUP)
    ids = tokenizer(FORCED, return_tensors="pt").input_ids
    prompt = len(tokenizer(PROMPT).input_ids)
    with torch.no_grad():
        log_probabilities = network(ids).logits[0].log_softmax(-1)
    entropies = [-log_probabilities[position - 1, ids[0, position]].item() for position in range(prompt, ids.shape[1])]
    expected = entropies if name == "crossentropy" else [2**value for value in entropies]

    job = {"model": LOOKUP, "input_text": PROMPT, "generated_text": FORCED, "step_scores": [name]}
    for method in ("dummy", "saliency"):
        result = server.result(server.run(method=method, **job))
        np.testing.assert_allclose(result["sequence_attributions"][0]["step_scores"][name], expected, rtol=1e-4)
        assert result["info"]["corrections"] == ["crossentropy_single_sequence"]
    attributed = server.result(
        server.run(method="occlusion", model=LOOKUP, input_text=PROMPT, generated_text=FORCED, attributed_fn=name)
    )
    assert attributed["info"]["attributed_fn"] == f"{name}_fn"


def test_dropout_scores_leave_the_next_step_alone(server):
    """Inseq's later probabilities of the same job come from a model in train mode; ours are the model's own."""
    names = ["mc_dropout_prob_avg", "probability"]
    target = "il gatto rosso vede un cane"
    theirs = reference.attribute(BUNDLED / PHRASEBOOK, SENTENCE, "dummy", generated_texts=target, step_scores=names)
    network, tokenizer = plain(PHRASEBOOK)
    source, wanted = tokenizer(SENTENCE, return_tensors="pt"), tokenizer(target, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = network(**source, labels=wanted).logits[0]
    expected = logits.softmax(-1).gather(-1, wanted[0][:, None])[:, 0].numpy()

    assert not np.allclose(theirs.sequence_attributions[0].step_scores["probability"], expected, rtol=1e-3)
    ours = server.result(
        server.run(model=PHRASEBOOK, method="dummy", input_text=SENTENCE, generated_text=target, step_scores=names)
    )
    np.testing.assert_allclose(ours["sequence_attributions"][0]["step_scores"]["probability"], expected, rtol=1e-4)
    first = theirs.sequence_attributions[0].step_scores["mc_dropout_prob_avg"][0]  # still right in Inseq: same draws
    np.testing.assert_allclose(ours["sequence_attributions"][0]["step_scores"]["mc_dropout_prob_avg"][0], first, 1e-4)
    assert "mc_dropout_restores_eval" in ours["info"]["corrections"]


def test_value_zeroing_of_gpt2(server):
    """Zero one token's value vector in one block, feed the block clean states, and see how far its output turns."""
    with pytest.raises(ValueError, match="assignment to value"):
        reference.attribute(BUNDLED / LOOKUP, PROMPT, "value_zeroing", generated_texts=FORCED)

    network, tokenizer = plain(LOOKUP)
    ids = tokenizer(FORCED, return_tensors="pt").input_ids[:, :-1]  # the states that predict the last token
    width, length, layers = network.config.n_embd, ids.shape[1], network.config.n_layer
    causal = torch.full((1, 1, length, length), torch.finfo(torch.float32).min).triu(1)
    with torch.no_grad():
        states = network(ids, output_hidden_states=True).hidden_states
        distances = torch.full((length, length, layers), float("nan"))  # [zeroed, generated, layer]
        for token in range(length):

            def zero_value(module, args, output, token=token):
                output = output.clone()
                output[:, token, 2 * width :] = 0
                return output

            for layer, block in enumerate(network.transformer.h):
                handle = block.attn.c_attn.register_forward_hook(zero_value)
                output = block(states[layer], attention_mask=causal)
                handle.remove()
                output = output[0] if isinstance(output, tuple) else output
                if layer == layers - 1:
                    output = network.transformer.ln_f(output)
                turned = 1 - torch.cosine_similarity(states[layer + 1], output, dim=-1)[0]
                distances[token, token:, layer] = turned[token:]
    distances[distances < 1e-5] = 0
    total = distances.nansum(0, keepdim=True)
    expected = distances / torch.where(total == 0, 1, total)

    result = server.result(
        server.run(model=LOOKUP, method="value_zeroing", input_text=PROMPT, generated_text=FORCED), granular=True
    )
    ours = np.array(result["sequence_attributions"][0]["target_attributions"], float)
    prompt = len(tokenizer(PROMPT).input_ids)
    np.testing.assert_allclose(ours[:length], expected[:, prompt - 1 :].numpy(), rtol=1e-3, atol=1e-5)
    assert result["info"]["corrections"] == ["value_zeroing_tensor_blocks"]


def test_reagent_needs_no_download():
    """Every token of the vocabulary has one word class, and classes are what they say."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / LOOKUP)
    classes = corrections.word_classes(tokenizer)
    ids = sorted(index for each in classes.values() for index in each)
    assert ids == list(range(tokenizer.vocab_size))
    words = {tag: {tokenizer.decode([index]).strip() for index in indices} for tag, indices in classes.items()}
    assert {"Anna", "Ben"} <= words["NNP"]
    assert "." in words["PUNCT"]
    assert {"tea", "milk"} <= words["NN"]
    assert "plums" in words["NNS"]


def test_generated_ids_are_attributed_as_they_are(server):
    """What generation wrote is what is attributed: no decoding and encoding again, which may change the tokens."""
    body = {"model": "distilgpt2", "method": "saliency", "input_text": "Feature attribution", "seed": 4,
            "generation_args": {"do_sample": True, "temperature": 2.0, "max_new_tokens": 12}}  # fmt: skip
    result = server.result(server.run(**body))
    sequence = result["sequence_attributions"][0]
    assert sequence["attr_pos_end"] - sequence["attr_pos_start"] == 12
    ids = [token["token_id"] for token in sequence["target"]]
    assert result["info"]["generated_texts"][0].startswith("Feature attribution")
    tokens = [token["token"] for token in sequence["target"]]
    assert len(ids) == len(tokens) == sequence["attr_pos_end"]
