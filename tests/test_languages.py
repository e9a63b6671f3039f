"""Languages of multilingual translation models: the tokenizer's codes, and the first token of a translation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.test_corrections_methods import run
from tests.translators import CODES, build

SOURCE, TARGET = "the red cat sees a dog", "il gatto rosso"


@pytest.fixture(scope="module", params=CODES)
def translator(request, model_dir):
    """The model's name, its network and tokenizer in plain Transformers, and its source and target language."""
    folder = model_dir / f"translator-{request.param}"
    if not folder.exists():
        build(request.param, folder)
    network = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").eval()
    source, target = CODES[request.param]
    return (
        folder.name,
        network,
        AutoTokenizer.from_pretrained(folder, src_lang=source, tgt_lang=target),
        (source, target),
    )


def expected_probabilities(network, source, target):
    with torch.no_grad():
        logits = network(input_ids=source, decoder_input_ids=target[:, :-1]).logits.softmax(-1)[0]
    return logits.gather(-1, target[0, 1:, None])[:, 0].numpy()


def test_forced_translation(server, tmp_path, translator):
    """Source and target have their language tokens where the tokenizer class puts them."""
    name, network, tokenizer, (source, target) = translator
    ours = run(
        server, tmp_path, model=name, method="saliency", input_text=SOURCE, generated_text=TARGET,
        tokenizer_args={"src_lang": source, "tgt_lang": target}, step_scores=["probability"],
    )  # fmt: skip
    ids = tokenizer(SOURCE, return_tensors="pt").input_ids
    labels = tokenizer(text_target=TARGET, return_tensors="pt").input_ids
    language = tokenizer.convert_tokens_to_ids(f"__{target}__" if "m2m100" in name else target)
    # mBART's decoder starts with the language token, the others' with EOS.
    start = language if name.endswith("mbart") else network.config.decoder_start_token_id
    decoder = torch.cat([torch.tensor([[start]]), labels], 1)
    assert [token.id for token in ours[0].source] == ids[0].tolist()
    assert [token.id for token in ours[0].target] == decoder[0].tolist()
    np.testing.assert_allclose(
        ours[0].step_scores["probability"].numpy(), expected_probabilities(network, ids, decoder), rtol=1e-4
    )
    assert ours.info["languages"] == {"src_lang": source, "tgt_lang": target}


def test_translation_begins_with_its_language(server, tmp_path, translator):
    name, network, tokenizer, (source, target) = translator
    arguments = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [1]}
    ours = run(
        server, tmp_path, model=name, method="saliency", input_text=SOURCE, generation_args=arguments,
        tokenizer_args={"src_lang": source, "tgt_lang": target},
    )  # fmt: skip
    language = tokenizer.convert_tokens_to_ids(f"__{target}__" if "m2m100" in name else target)
    ids = [token.id for token in ours[0].target]
    assert ids[0 if name.endswith("mbart") else 1] == language
    forced = {"decoder_start_token_id": language} if name.endswith("mbart") else {"forced_bos_token_id": language}
    inputs = tokenizer(SOURCE, return_tensors="pt")
    assert ids == network.generate(**inputs, **arguments, **forced)[0].tolist()


def test_a_language_is_of_one_job_only(server, translator):
    """A job's languages do not change later jobs, which share the tokenizer."""
    name, *_, (source, target) = translator
    body = {"model": name, "method": "dummy", "input_text": SOURCE, "generated_text": TARGET, "step_scores": ["logit"]}
    default, other = {"tgt_lang": target}, {"src_lang": target, "tgt_lang": source}
    before = server.result(server.run(**body, tokenizer_args=default))["sequence_attributions"]
    assert server.result(server.run(**body, tokenizer_args=other))["sequence_attributions"] != before
    assert server.result(server.run(**body, tokenizer_args=default))["sequence_attributions"] == before


def test_a_forced_translation_needs_its_language(server, translator):
    """Without `tgt_lang`, NLLB's tokenizer would silently use the source language, and keep it for later jobs."""
    generated = server.submit(
        model=translator[0], method="dummy", input_text=SOURCE,
        generation_args={"max_new_tokens": 3, "min_new_tokens": 3, "suppress_tokens": [1]},
    )  # fmt: skip
    assert server.wait(generated)["status"] == "completed"
    job = server.wait(server.submit(model=translator[0], method="saliency", input_text=SOURCE, generated_text=TARGET))
    assert job["error"]["type"] == "/problems/input-rejected"
    assert "tokenizer_args.tgt_lang" in job["error"]["detail"]


def test_an_unknown_language_is_told(server, translator):
    for code in ("klingon", "the", "</s>", "<pad>"):
        job = server.wait(
            server.submit(model=translator[0], method="saliency", input_text=SOURCE, tokenizer_args={"src_lang": code})
        )
        assert job["error"]["type"] == "/problems/input-rejected"
        assert f"does not know {code!r}. It knows: " in job["error"]["detail"]


def test_cleaned_tokens_are_text(server, translator):
    """Tokens are strings. Cleaning a lone `▁` in Inseq makes a token that contains a token."""
    name, *_, (source, target) = translator
    body = {"model": name, "method": "saliency", "input_text": "the ~ ☃ cat", "generated_text": TARGET}
    job_id = server.run(
        **body, tokenizer_args={"src_lang": source, "tgt_lang": target}, clean_special_chars=True, attr_pos_end=3
    )
    sequence = server.result(job_id)["sequence_attributions"][0]
    assert all(isinstance(token["token"], str) for side in ("source", "target") for token in sequence[side])
    answer = server.client.get(f"/attribution/jobs/{job_id}/results?aggregator=subwords")
    assert answer.status_code == 422
    assert "clean_special_chars" in answer.json()["detail"]
