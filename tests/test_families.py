"""Architectures beyond the bundled ones, tiny and random, over HTTP: equal to Inseq where it is right, refused where not."""

from __future__ import annotations

import inseq
import pytest

from tests import reference
from tests.families import FAMILIES, build

TEXT, TARGET = "The quick brown", "fox jumps over"
# Inseq scales their decoder embeddings twice; the service's own check of embeddings finds out when it loads them.
WRONG_IN_INSEQ = {"marian", "pegasus"}
SERVED = [name for name in FAMILIES if name not in WRONG_IN_INSEQ]


@pytest.fixture(scope="module", params=SERVED)
def family(request, model_dir):
    """A family's model, built once and served by the session's server."""
    folder = model_dir / request.param
    if not folder.exists():
        build(request.param, folder)
    return request.param


def forced(name):
    return TARGET if FAMILIES[name].is_encoder_decoder else f"{TEXT} {TARGET}"


def loaded(server, tmp_path, job_id):
    file = tmp_path / "result.json"
    file.write_bytes(server.client.get(f"/attribution/jobs/{job_id}/results?format=inseq").content)
    return inseq.FeatureAttributionOutput.load(file)


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "deeplift", "occlusion", "attention"])
def test_equals_inseq(server, model_dir, tmp_path, family, method):
    arguments = {"n_steps": 4} if method == "integrated_gradients" else {}
    scores = [] if method == "attention" else ["probability", "entropy"]
    job_id = server.run(
        model=family, method=method, input_text=TEXT, generated_text=forced(family), attribution_args=arguments,
        step_scores=scores,
    )  # fmt: skip
    theirs = reference.attribute(
        model_dir / family, TEXT, method, generated_texts=forced(family), step_scores=scores,
        attribution_args=dict(arguments),
    )  # fmt: skip
    theirs.info["attribution_args"] = arguments
    reference.assert_same(loaded(server, tmp_path, job_id), theirs)


def test_free_generation(server, model_dir, tmp_path, family):
    """What is generated is attributed, with tokenizers that prepend BOS too, with which Inseq's own always fails."""
    arguments = {"max_new_tokens": 4}
    job_id = server.run(
        model=family, method="saliency", input_text=TEXT, generation_args=arguments, step_scores=["probability"]
    )
    ours = loaded(server, tmp_path, job_id)
    sequence = ours.sequence_attributions[0]
    assert 1 <= sequence.attr_pos_end - sequence.attr_pos_start <= 4
    assert all(0 <= value <= 1 for value in sequence.step_scores["probability"].tolist())
    if FAMILIES[family].prepends_bos:
        with pytest.raises(AssertionError, match="must start with the input texts"):
            reference.attribute(model_dir / family, TEXT, "saliency", generation_args=arguments)
    # The same ids, put to Inseq as a forced target, where they survive being decoded and encoded again.
    skip = FAMILIES[family].is_encoder_decoder or FAMILIES[family].prepends_bos
    model = inseq.load_model(str(model_dir / family), "saliency", device="cpu")
    ids = [token.id for token in sequence.target]
    text = model.tokenizer.decode(ids, skip_special_tokens=skip)
    again = model.encode([text], as_targets=FAMILIES[family].is_encoder_decoder).input_ids[0].tolist()
    if again == ids:
        theirs = model.attribute(TEXT, text, step_scores=["probability"], show_progress=False)
        theirs.info |= {key: ours.info[key] for key in ("constrained_decoding", "generation_args", "generated_texts")}
        reference.assert_same(ours, theirs)


def test_value_zeroing(server, family):
    result = server.result(
        server.run(model=family, method="value_zeroing", input_text=TEXT, generated_text=forced(family))
    )
    sequence = result["sequence_attributions"][0]
    rows = sequence["source_attributions"] or sequence["target_attributions"]
    assert any(value not in (None, 0.0) for row in rows for value in row)


@pytest.mark.parametrize("name", sorted(WRONG_IN_INSEQ))
def test_models_that_inseq_gets_wrong_are_refused(server, model_dir, name):
    build(name, model_dir / name)
    job = server.wait(server.submit(model=name, method="saliency", input_text=TEXT))
    assert job["status"] == "failed"
    assert job["error"]["type"] == "/problems/unsupported-by-model"
    assert "other logits from its embeddings" in job["error"]["detail"]
