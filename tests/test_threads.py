"""Jobs that run at the same time, in threads of one process, do not change each other's numbers."""

from __future__ import annotations

import contextlib
import threading

import inseq
import pytest
import torch

from attribution import isolation
from attribution.catalogue import traits
from attribution.model_cache import loading
from attribution.run import text_run
from tests.conftest import LOOKUP, PHRASEBOOK
from tests.fresh_engines import new_engine, run, without


@pytest.fixture
def engine():
    return new_engine()


def together(*calls):
    """Run calls in threads that start together; returns their results in order."""
    barrier, found = threading.Barrier(len(calls)), [None] * len(calls)

    def work(index):
        barrier.wait()
        found[index] = calls[index]()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.slow
def test_different_models_at_once_give_unchanged_numbers(engine):
    jobs = [(LOOKUP, "integrated_gradients"), (PHRASEBOOK, "deeplift"), (LOOKUP, "value_zeroing"), (PHRASEBOOK, "lime"),
            (PHRASEBOOK, "value_zeroing"), (LOOKUP, "gradient_shap")]  # fmt: skip
    alone = [run(new_engine(), *job) for job in jobs]
    assert together(*[lambda job=job: run(engine, *job) for job in jobs]) == alone


def test_jobs_on_one_model_do_not_disturb_each_other():
    """Jobs on one model run one at a time, as DeepLIFT and value zeroing hook the model and would change other jobs."""
    methods = ("deeplift", "value_zeroing", "saliency")
    alone = [run(new_engine(), PHRASEBOOK, method) for method in methods]
    engine = new_engine()

    def job(method):
        try:
            return run(engine, PHRASEBOOK, method)
        except Exception as error:
            return error

    calls = [lambda method=method: job(method) for method in methods]
    for _ in range(3):
        assert together(*calls) == alone

    with engine._models.lease(PHRASEBOOK, device="cpu", dtype="float32") as loaded:
        pass
    loaded.lock = contextlib.nullcontext()
    assert any(together(*calls) != alone for _ in range(50))


def test_random_jobs_do_not_draw_from_each_other(monkeypatch):
    """The random generators belong to the process, so random jobs run one at a time."""
    alone = [run(new_engine(), model, "lime", attribution_args={"n_samples": 30}) for model in (LOOKUP, PHRASEBOOK)]
    engine = new_engine()
    for model in (LOOKUP, PHRASEBOOK):
        run(engine, model, "dummy")
    calls = [
        lambda model=model: run(engine, model, "lime", attribution_args={"n_samples": 30})
        for model in (LOOKUP, PHRASEBOOK)
    ]
    assert together(*calls) == alone

    class NoLock:
        acquire = staticmethod(lambda timeout: True)
        release = staticmethod(lambda: None)

    with without(monkeypatch, text_run, "RANDOM_DRAWS", NoLock()):
        assert any(together(*calls) != alone for _ in range(50))


@pytest.mark.parametrize("method", sorted(set(inseq.list_feature_attribution_methods())))
def test_methods_said_to_draw_nothing_draw_nothing(engine, method):
    """Methods without `is_random` do not wait for others, so they must leave all random generators unchanged."""
    if method in {"layer_integrated_gradients", "layer_deeplift"} or traits.of_method(method).is_random:
        return
    run(engine, LOOKUP, "dummy")
    before = isolation.RandomState()
    run(engine, LOOKUP, method, attribution_args={"n_steps": 3} if "integrated" in method else {})
    after = isolation.RandomState()
    assert before._python == after._python
    assert str(before._numpy) == str(after._numpy)
    assert torch.equal(before._torch, after._torch)


def test_models_load_one_at_a_time(monkeypatch):
    """Two concurrent calls of `from_pretrained` fail with "Cannot copy out of meta tensor", as do later loads."""
    inside, most, two, patience = 0, 0, threading.Event(), 0.5
    really_one_at_a_time = threading.Lock()  # a real race would break later loads in this process

    def watching(original):
        def from_pretrained(*args, **kwargs):
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            if inside == 2:
                two.set()
            two.wait(patience)
            try:
                with really_one_at_a_time:
                    return original(*args, **kwargs)
            finally:
                inside -= 1

        return from_pretrained

    for auto_class in (loading.AutoModelForCausalLM, loading.AutoModelForSeq2SeqLM):
        monkeypatch.setattr(auto_class, "from_pretrained", watching(auto_class.from_pretrained))
    jobs = [lambda model=model: run(engine, model, "dummy") for model in (LOOKUP, PHRASEBOOK)]
    engine = new_engine()
    together(*jobs)
    assert most == 1
    monkeypatch.setattr(loading, "held", lambda lock, should_cancel: contextlib.nullcontext())
    engine, patience = new_engine(), 60
    together(*jobs)
    assert most == 2


def test_loading_another_dtype_waits_for_running_attributions(engine, monkeypatch):
    """Loading a bfloat16 model changes the default dtype of the process, which would change scores of running jobs."""

    def loaded_meanwhile(patience):
        loader = threading.Thread(target=lambda: run(engine, PHRASEBOOK, "dummy", dtype="bfloat16"))
        seen = []

        def at_forward():
            if not loader.ident:
                loader.start()
                loader.join(patience)
            seen.append(torch.get_default_dtype())
            seen.append(loader.is_alive())

        run(engine, LOOKUP, "dummy", step_scores=["entropy"], on_forward=at_forward)
        loader.join()
        return set(seen)

    assert loaded_meanwhile(patience=2) == {torch.float32, True}

    class NoLock:
        shared = exclusive = staticmethod(contextlib.nullcontext)

    with (
        without(monkeypatch, isolation, "DEFAULT_DTYPE", NoLock()),
        without(monkeypatch, loading, "DEFAULT_DTYPE", NoLock()),
    ):
        engine = new_engine()
        assert False in loaded_meanwhile(patience=120)
