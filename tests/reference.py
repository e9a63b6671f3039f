"""Calls Inseq directly, as a script would, and compares its output with the service's."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import inseq
import pytest
import torch
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput
from transformers import AutoTokenizer, set_seed

from attribution.corrections.reagent import seed_word_classes

# Keys of `info` that differ: the service has the public model name instead of a path, and its own time.
_OWN_INFO = {"model_name", "tokenizer_name", "exec_time"}


def attribute(
    path: Path | str,
    text: str,
    method: str,
    *,
    seed: int = 0,
    init_args: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    runs: int = 1,
    **arguments: Any,
) -> FeatureAttributionOutput:
    """Call `inseq.load_model(path, method, **init_args).attribute(text, ...)` after setting the seed.

    In the checkpoint's precision, or in `dtype`. Of several `runs` on the loaded model, the last is returned: the first
    differs where a model builds modules at its first short text (BigBird-Pegasus), whose weights are drawn.
    """
    if method == "reagent":
        # Inseq would download a tagger to find the word classes; use the service's word classes instead.
        tokenizer = AutoTokenizer.from_pretrained(str(path))
        seed_word_classes(tokenizer, str(path).split("/")[-1])
    model = inseq.load_model(str(path), method, device="cpu", **(init_args or {}))
    if dtype is not None:
        model.model.to(dtype)
    for _ in range(runs):
        set_seed(seed)
        output = model.attribute(text, show_progress=False, **arguments)
    return output


def distance(a: FeatureAttributionSequenceOutput, b: FeatureAttributionSequenceOutput) -> float:
    """The largest difference of two texts' scores."""
    pairs = [(getattr(a, name), getattr(b, name)) for name in ("source_attributions", "target_attributions")]
    return max(
        float((x.double() - y.double()).nan_to_num().abs().max()) for x, y in pairs if x is not None and x.numel()
    )


def assert_same(ours: FeatureAttributionOutput, theirs: FeatureAttributionOutput, *, rtol: float = 1e-5) -> None:
    """Compare two outputs field by field, up to `rtol` of the largest score of the field."""
    assert len(ours.sequence_attributions) == len(theirs.sequence_attributions)
    for a, b in zip(ours.sequence_attributions, theirs.sequence_attributions, strict=True):
        assert_same_sequence(a, b, rtol=rtol)
    for key in theirs.info.keys() - _OWN_INFO:
        assert ours.info[key] == theirs.info[key], key


def assert_same_sequence(
    a: FeatureAttributionSequenceOutput, b: FeatureAttributionSequenceOutput, *, rtol: float = 1e-5
) -> None:
    """Compare the attributions of one text as `assert_same` does."""
    assert type(a) is type(b)
    assert [(t.token, t.id) for t in a.source] == [(t.token, t.id) for t in b.source]
    assert [(t.token, t.id) for t in a.target] == [(t.token, t.id) for t in b.target]
    assert (a.attr_pos_start, a.attr_pos_end) == (b.attr_pos_start, b.attr_pos_end)
    assert a._num_dimensions == b._num_dimensions
    for name in ("source_attributions", "target_attributions"):
        assert_close(getattr(a, name), getattr(b, name), name, rtol)
    for name in ("step_scores", "sequence_scores"):
        mine, other = getattr(a, name) or {}, getattr(b, name) or {}
        assert mine.keys() == other.keys()
        for key in mine:
            assert_close(mine[key], other[key], f"{name}.{key}", rtol)


def assert_close(a: torch.Tensor | None, b: torch.Tensor | None, name: str, rtol: float = 1e-5) -> None:
    assert (a is None) == (b is None), name
    if a is None or b is None:
        return
    assert a.shape == b.shape, (name, a.shape, b.shape)
    assert torch.equal(a.isnan(), b.isnan()), name
    scale = float(torch.nan_to_num(b).abs().max()) if b.numel() else 0.0
    # Counts (`top_p_size`) become floats in Inseq's file.
    torch.testing.assert_close(a, b.to(a.dtype), rtol=rtol, atol=rtol * max(scale, 1e-12), equal_nan=True, msg=name)


def assert_same_candidates(ours: list[Any] | None, theirs: list[Any] | None, *, rtol: float = 1e-5) -> None:
    """Compare the probability of each rank, and of the chosen token: of two that are about equal, rounding decides.

    rtol: of a step's largest probability, as in `assert_close`.
    """
    assert (ours is None) == (theirs is None)
    for mine, other in zip(chain.from_iterable(ours or []), chain.from_iterable(theirs or []), strict=True):
        largest = max(each["probability"] for each in other)
        for a, b in zip(mine, other, strict=len(mine) == len(other)):
            assert a["probability"] == pytest.approx(b["probability"], abs=rtol * largest)
        (a,), (b,) = ([each for each in step if each["chosen"]] for step in (mine, other))
        assert a["token_id"] == b["token_id"]
        assert a["probability"] == pytest.approx(b["probability"], abs=rtol * largest)
