"""Many more architectures, over HTTP, against first principles: right, or refused with a reason before the queue.

`make test` runs a sample of the families, `make test-families` all of them.
"""

from __future__ import annotations

import inseq
import pytest
import torch

from attribution.catalogue import inseq_catalogue
from tests.first_principles import Plain
from tests.more_families import MORE, build, family_params
from tests.test_network_state import Fresh
from tests.zeroed_layers import value_zeroing

TEXT, TARGET = "The quick brown", "fox jumps over"
LAYERS = {
    "layer_integrated_gradients": "integrated_gradients",
    "layer_deeplift": "deeplift",
    "layer_gradient_x_activation": "input_x_gradient",
}
SETTINGS = {
    **{name: {"n_steps": 4} for name in inseq_catalogue.methods() if "integrated" in name},
    "gradient_shap": {"n_samples": 4},
    "lime": {"n_samples": 4},
    # With the whole vocabulary every probe counts; a random model's target is never among the top 3.
    "reagent": {"max_probe_steps": 20, "num_probes": 2, "stopping_condition_top_k": 320},
}
LOCAL = ("longt5", "longt5_global", "led", "pegasus_x")  # their encoders' attention
WITH_EMBEDDINGS_OF_LAYERS = ("gemma4", "gemma4_seeing")
WARNED = ("minimax", "longrope", "dynamic-ntk")  # that maps are not of all layers, or of another length
# Whose steps are no function of their own prefix in one forward, or are so only up to more than rounding.
WITHOUT_SINGLE_PASS = ("bert_causal", "longrope", "prophetnet", "recurrent_gemma", "xlnet")
WITHOUT_ATTENTION = ("mamba", "mamba2", "rwkv")
REFUSED = ("gemma3n", "reformer", "fsmt")  # for every method
ATTRIBUTED = [name for name in MORE if name not in REFUSED]
WITH_ATTENTION = [name for name in ATTRIBUTED if name not in WITHOUT_ATTENTION]
WITH_VALUES = [name for name in WITH_ATTENTION if name != "xlnet"]  # refused
WITH_MAPS = [name for name in WITH_ATTENTION if name != "prophetnet"]  # refused


@pytest.fixture(scope="module")
def folder_of(model_dir):
    """Builds a family's model in the server's model directory, once."""

    def folder(name):
        path = model_dir / name
        return path if path.exists() else build(name, path)

    return folder


def translates(name):
    return MORE[name].is_encoder_decoder


def forced(name):
    return TARGET if translates(name) else f"{TEXT} {TARGET}"


def attributed(server, tmp_path, name, method, **more):
    """The first sequence and the info of a job over the family's text."""
    job = server.run(model=name, method=method, input_text=TEXT, generated_text=forced(name), **more)
    file = tmp_path / "result.json"
    file.write_bytes(server.client.get(f"/attribution/jobs/{job}/results?format=inseq").content)
    output = inseq.FeatureAttributionOutput.load(file)
    return output.sequence_attributions[0], output.info


def assert_equal(found, expected, what):
    """Scores of the attributed tokens: NaN in the same places, equal up to rounding, and not all zero."""
    found = found[: len(expected)]
    assert found.shape == expected.shape, what
    assert torch.equal(found.isnan(), expected.isnan()), what
    size = float(expected.nan_to_num().abs().max())
    assert size > 0, what
    assert float((found - expected).nan_to_num().abs().max()) <= 1e-4 * size, what


@pytest.mark.parametrize("name", family_params(*WITH_VALUES))
def test_value_zeroing(server, folder_of, tmp_path, name):
    plain = Plain(folder_of(name), TEXT, forced(name))
    sequence, info = attributed(server, tmp_path, name, "value_zeroing")
    if not translates(name):
        expected = value_zeroing(plain, name, "own")
        assert_equal(sequence.target_attributions, expected[:, plain.first - 1 :], "own")
    else:
        assert_equal(sequence.source_attributions, value_zeroing(plain, name, "source"), "source")
        scores = sequence.sequence_scores
        assert_equal(scores["encoder_self_scores"], value_zeroing(plain, name, "encoder"), "encoder")
        assert_equal(scores["decoder_self_scores"], value_zeroing(plain, name, "own"), "own")
    assert "value_zeroing_tensor_blocks" in info["corrections"]


@pytest.mark.parametrize("name", family_params(*WITH_MAPS))
def test_attention(server, folder_of, tmp_path, name):
    """Maps of all queries and keys; windows, blocks and the states of linear attention are left out."""
    plain = Plain(folder_of(name), TEXT, forced(name))
    sequence, info = attributed(server, tmp_path, name, "attention")
    ids = plain.target[:, :-1]
    with torch.no_grad():
        inputs = {"input_ids": plain.source, "decoder_input_ids": ids} if translates(name) else {"input_ids": ids}
        output = plain.network(**inputs, output_attentions=True, use_cache=False)
    maps = list(output.cross_attentions if translates(name) else output.attentions)
    maps = maps[1:] if name == "minimax" else maps  # its first layer has linear attention
    expected = torch.stack(maps, 1)[0].permute(3, 2, 0, 1)  # [key, query, layer, head]
    if translates(name):
        assert_equal(sequence.source_attributions, expected, "source")
        has_maps = name not in LOCAL
        assert ("encoder_self_attentions" in sequence.sequence_scores) == has_maps
        assert bool(info["warnings"]) != has_maps
    else:
        expected = expected[:, plain.first - 1 :].clone()
        for step in range(expected.shape[1]):
            expected[plain.first + step :, step] = float("nan")
        assert_equal(sequence.target_attributions, expected, "own")
        assert bool(info["warnings"]) == (name in WARNED)


@pytest.mark.parametrize("name", family_params(*ATTRIBUTED))
def test_gradients(server, folder_of, tmp_path, name):
    plain = Fresh(folder_of(name), TEXT, forced(name))
    expected = plain.scores(lambda step: plain.gradient(plain.embedded(step), step)[0] * plain.embedded(step)[0])
    sequence, _ = attributed(server, tmp_path, name, "input_x_gradient")
    found = sequence.source_attributions if translates(name) else sequence.target_attributions
    assert_equal(found, expected, "input_x_gradient")
    if name not in WITH_EMBEDDINGS_OF_LAYERS:
        expected = plain.scores(lambda step: plain.integrated(step, 4))
        sequence, _ = attributed(server, tmp_path, name, "integrated_gradients", attribution_args={"n_steps": 4})
        found = sequence.source_attributions if translates(name) else sequence.target_attributions
        assert_equal(found, expected, "integrated_gradients")


@pytest.mark.parametrize("method", sorted(inseq_catalogue.methods()))
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.families) for name in MORE])
def test_every_method_has_numbers_or_is_refused_before_the_queue(server, folder_of, name, method):
    folder_of(name)
    body = {"model": name, "method": method, "input_text": TEXT, "generated_text": forced(name)}
    answer = server.client.post("/attribution/jobs", json=body | {"attribution_args": SETTINGS.get(method, {})})
    if answer.status_code == 422:
        assert answer.json()["errors"][0]["pointer"] == "/method"
        return
    job = server.wait(answer.json()["job_id"])
    if inseq_catalogue.methods()[method].traits.masks_features and job["status"] == "failed":
        assert name in WITHOUT_SINGLE_PASS
        assert job["error"]["type"] == "/problems/unsupported-by-model"
        return
    assert job["status"] == "completed", job["error"]["detail"]


@pytest.mark.parametrize(
    ("name", "methods", "said"),
    [
        ("mamba", ("attention", "value_zeroing"), "has none"),
        ("prophetnet", ("attention",), "from before the softmax"),
        ("xlnet", ("value_zeroing",), "the axis of tokens"),
        ("xlnet", tuple(LAYERS), "the tokens first"),
        ("ctrl", ("layer_integrated_gradients",), "scales in place. Use integrated_gradients"),
        ("gemma3n", ("saliency", "occlusion", "attention"), "other logits from embeddings"),
        ("fsmt", ("saliency", "occlusion", "attention"), "no causal mask"),
        ("switch", ("deeplift", "layer_deeplift"), "other tokens of the input"),
        ("gemma4", ("integrated_gradients", "gradient_shap", "lime"), "embedding of each token in each layer"),
    ],
)
def test_refused_before_the_queue(server, folder_of, name, methods, said):
    folder_of(name)
    body = {"model": name, "input_text": TEXT, "generated_text": forced(name)}
    for method in methods:
        answer = server.client.post("/attribution/jobs", json=body | {"method": method})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/method"
        assert said in answer.json()["errors"][0]["detail"]
    compared = server.client.post("/attribution/jobs", json=body | {"methods": ["input_x_gradient", *methods]})
    pointers = [each["pointer"] for each in compared.json()["errors"]]
    assert pointers == [f"/methods/{index}" for index in range(name not in REFUSED, len(methods) + 1)]


@pytest.mark.parametrize("method", LAYERS)
def test_layer_methods_where_the_encoder_embeds_padding(server, folder_of, tmp_path, method):
    """LED pads its embeddings to whole windows, with another call of its embedding."""
    folder_of("led")
    ours, same = (
        attributed(server, tmp_path, "led", each, attribution_args=SETTINGS.get(each, {}))[0].source_attributions
        for each in (method, LAYERS[method])
    )
    assert_equal(ours, same, method)


def test_memory_of_finding_tokens_is_estimated(server, folder_of):
    """Gemma 4 compares each given embedding with the whole vocabulary's: positions x vocabulary x width bytes."""
    folder_of("gemma4")
    body = {"model": "gemma4", "method": "dummy", "step_scores": ["probability"], "input_text": TEXT}
    short, long = (
        server.client.post("/attribution/estimate", json=body | {"generated_text": TEXT + more}).json()
        for more in (" fox", " fox jumps over the lazy dog")
    )
    positions = long["inputs"][0]["target_tokens"] - short["inputs"][0]["target_tokens"]
    assert long["peak_memory_bytes"] - short["peak_memory_bytes"] >= positions * 320 * 32


def test_layers_without_attention_are_named(server, folder_of, tmp_path):
    folder_of("minimax")
    _, info = attributed(server, tmp_path, "minimax", "value_zeroing")
    assert any("not of 0 of 3" in each for each in info["warnings"])


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_the_single_pass_and_lime_without_attention(server, folder_of, tmp_path, name):
    """Batch sizes count attention maps, of which these models have none."""
    folder_of(name)
    _, info = attributed(server, tmp_path, name, "saliency")
    assert info["engine"] == "single_pass"
    one, several = (
        attributed(server, tmp_path, name, "lime", attribution_args={"n_samples": 4, "perturbations_per_eval": rows})[0]
        for rows in (1, 4)
    )
    assert_equal(several.target_attributions, one.target_attributions, "lime")


def test_heads_and_metric_of_value_zeroing(server, folder_of, tmp_path):
    """Zeroing all heads by name is zeroing all; half of them differs, and a head that is not there is refused."""
    folder_of("deepseek_v3")
    everything, half, all_heads, euclidean = (
        attributed(server, tmp_path, "deepseek_v3", "value_zeroing", attribution_args=arguments)[0].target_attributions
        for arguments in (
            {},
            {"decoder_zeroed_units_indices": {"0": [0, 1], "1": [0, 1]}},
            {"decoder_zeroed_units_indices": {"0": [0, 1, 2, 3], "1": [0, 1, 2, 3]}},
            {"similarity_metric": "euclidean"},
        )
    )
    assert torch.equal(everything.nan_to_num(), all_heads.nan_to_num())
    assert float((everything - half).nan_to_num().abs().max()) > 0.01
    assert float((everything - euclidean).nan_to_num().abs().max()) > 0.01
    job = server.submit(
        model="deepseek_v3", method="value_zeroing", input_text=TEXT, generated_text=forced("deepseek_v3"),
        attribution_args={"decoder_zeroed_units_indices": {"0": [9]}},
    )  # fmt: skip
    assert server.wait(job)["error"]["type"] == "/problems/input-rejected"
