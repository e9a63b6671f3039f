"""Many more architectures, over HTTP, against first principles: right, or refused with a reason before the queue.

`make test` runs a sample of the families, `make test-families` all of them.
"""

from __future__ import annotations

import inseq
import pytest
import torch

from tests.first_principles import Plain
from tests.more_families import MORE, TRANSLATORS, build, family_params
from tests.zeroed_layers import value_zeroing

TEXT, TARGET = "The quick brown", "fox jumps over"
WITHOUT_ATTENTION = ("mamba", "mamba2")
WITH_ATTENTION = [name for name in MORE if name not in WITHOUT_ATTENTION]


@pytest.fixture(scope="module")
def folder_of(model_dir):
    """Builds a family's model in the server's model directory, once."""

    def folder(name):
        path = model_dir / name
        return path if path.exists() else build(name, path)

    return folder


def forced(name):
    return TARGET if name in TRANSLATORS else f"{TEXT} {TARGET}"


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


@pytest.mark.parametrize("name", family_params(*WITH_ATTENTION))
def test_value_zeroing(server, folder_of, tmp_path, name):
    plain = Plain(folder_of(name), TEXT, forced(name))
    sequence, info = attributed(server, tmp_path, name, "value_zeroing")
    if name not in TRANSLATORS:
        expected = value_zeroing(plain, name, "own")
        assert_equal(sequence.target_attributions, expected[:, plain.first - 1 :], "own")
    else:
        assert_equal(sequence.source_attributions, value_zeroing(plain, name, "source"), "source")
        scores = sequence.sequence_scores
        assert_equal(scores["encoder_self_scores"], value_zeroing(plain, name, "encoder"), "encoder")
        assert_equal(scores["decoder_self_scores"], value_zeroing(plain, name, "own"), "own")
    assert "value_zeroing_tensor_blocks" in info["corrections"]
