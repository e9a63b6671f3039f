"""A running job asks often whether to stop: between two questions lies at most one large module's work on a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import kneighbors_graph
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from attribution import cancel_points
from attribution.catalogue import traits
from attribution.corrections.vocabulary_neighbours import neighbours_graph
from models import AttributionRequest
from problems import Cancelled
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.fresh_engines import new_engine, scores

REAL = "smollm2-135m-instruct-q4"
SMALL = {
    "integrated_gradients": {"n_steps": 6}, "layer_integrated_gradients": {"n_steps": 6}, "lime": {"n_samples": 6},
    "discretized_integrated_gradients": {"n_steps": 4}, "sequential_integrated_gradients": {"n_steps": 4},
    "reagent": {"max_probe_steps": 2},
}  # fmt: skip
METHODS = (
    "attention", "deeplift", "dummy", "gradient_shap", "input_x_gradient", "layer_deeplift",
    "layer_gradient_x_activation", "occlusion", "saliency", "value_zeroing", "banzhaf", "leave_one_out", "shapley", *SMALL,
)  # fmt: skip
# One module's forward, or both products of its backward (of the inputs and, of a layer method's layer, the weights),
# with the attention beside it.
_MODULES = 4


class Multiplications(TorchDispatchMode):
    """Counts multiplications, times 2, in forwards and backwards. (`FlopCounterMode` fails in some of Captum's.)"""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def longest_gap(engine, model, **body):
    """Multiplications (times 2) between two questions whether to stop, at most, and those of the largest module's call."""
    request = engine.check(AttributionRequest(model=model, step_scores=["probability"], **body))
    largest, gap, before = 0, 0, 0
    with engine._models.in_use(model, device="cpu", dtype=request.dtype) as loaded:
        large = cancel_points.large_modules(loaded.network)
    assert large

    def called(module, _arguments, output):
        nonlocal largest
        if isinstance(output, torch.Tensor):
            parameters = sum(each.numel() for each in module.parameters(recurse=False))
            largest = max(largest, 2 * parameters * output.shape[:-1].numel())

    counter = Multiplications()

    def should_cancel():
        nonlocal gap, before
        now = counter.total
        gap, before = max(gap, now - before), now
        return False

    handles = [each.register_forward_hook(called) for each in large]
    try:
        with counter:
            found, *_ = engine.run(request, device="cpu", report=lambda _: None, should_cancel=should_cancel)
    finally:
        for handle in handles:
            handle.remove()
    if traits.of_method(request.attribution_method).has_single_pass:  # a backward of several steps together
        largest *= len(scores([found])[0]["target"])
    return gap, largest


ON_ENCODER_DECODERS = [name for name in METHODS if not traits.of_method(name).is_decoder_only]


@pytest.mark.parametrize(
    ("model", "text", "method"),
    [
        *((LOOKUP, PROMPT, name) for name in METHODS),
        *(pytest.param(PHRASEBOOK, SENTENCE, name, marks=pytest.mark.slow) for name in ON_ENCODER_DECODERS),
    ],
)
def test_a_job_asks_between_any_two_modules(monkeypatch, model, text, method):
    monkeypatch.setattr(cancel_points, "_LARGE", 2**11)
    gap, largest = longest_gap(
        new_engine(), model, method=method, input_text=text, attribution_args=SMALL.get(method, {})
    )
    assert 0 < gap <= _MODULES * largest, (gap, largest)


@pytest.mark.slow
@pytest.mark.skipif(not (BUNDLED / REAL).exists(), reason="`make smollm2` makes the model")
@pytest.mark.parametrize("method", ["integrated_gradients", "layer_gradient_x_activation", "lime", "value_zeroing"])
def test_a_job_on_a_real_model_asks_between_any_two_modules(method):
    arguments = {name: min(value, 2) for name, value in SMALL.get(method, {}).items()}
    gap, largest = longest_gap(
        new_engine(), REAL, method=method, input_text="Alice lives in", generated_text="Alice lives in Paris",
        attribution_args=arguments,
    )  # fmt: skip
    assert 0 < gap <= _MODULES * largest, (gap, largest)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_a_job_that_is_stopped_within_a_backward_leaves_the_model_as_it_was(monkeypatch, part):
    monkeypatch.setattr(cancel_points, "_LARGE", 2**11)
    engine = new_engine()
    request = engine.check(AttributionRequest(model=LOOKUP, method="saliency", input_text=PROMPT))

    def run(stop_at=None):
        """The result, and for each question whether it came within a backward."""
        in_backward = []

        def should_cancel():
            in_backward.append(torch._C._current_graph_task_id() != -1)
            return len(in_backward) == stop_at

        found, *_ = engine.run(request, device="cpu", report=lambda _: None, should_cancel=should_cancel)
        return scores([found]), in_backward

    run()  # measures the model, and probes it
    before, in_backward = run()
    places = [place for place, is_inside in enumerate(in_backward, 1) if is_inside]
    with pytest.raises(Cancelled):
        run(stop_at=places[int(part * len(places))])
    assert run() == (before, in_backward)


@pytest.mark.parametrize("tokens", [60, 1100])
def test_neighbours_are_those_of_scikit_learn(tokens):
    vectors = np.random.default_rng(0).standard_normal((tokens, 20)).astype("float32")
    vectors[3:9] = vectors[2]  # as many equal ones as neighbours
    ours = neighbours_graph(vectors, 5, n_jobs=1)
    theirs = kneighbors_graph(vectors, 5, mode="distance", n_jobs=1)
    assert np.array_equal(ours.indptr, theirs.indptr)
    distinct = [place for place in range(tokens) if not 2 <= place < 9]  # of equal ones, any may be chosen
    assert (ours[distinct] != theirs[distinct]).nnz == 0
    assert np.array_equal(ours.data, theirs.data)


def test_a_search_for_neighbours_can_be_stopped():
    asked = []

    def check():
        asked.append(1)
        if len(asked) == 2:
            raise Cancelled

    with cancel_points.cancel_points(torch.nn.Linear(1, 1), check), pytest.raises(Cancelled):
        neighbours_graph(np.random.default_rng(0).standard_normal((2000, 20)), 5)
