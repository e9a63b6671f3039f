"""Memory: after running out of it, a job is tried once more in smaller pieces, or fails with a clear error.

Also the peak memory of attention as a method.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from attribution.engine import AttributionEngine
from attribution.model_cache import cache
from attribution.model_cache.device_memory import DeviceMemory
from attribution.results import stored_form
from attribution.run import method_run
from models import AttributionRequest
from problems import OutOfMemory
from settings import Settings
from tests import chat_models
from tests.conftest import LOOKUP, PROMPT
from tests.hub import build_small_gpt2
from tests.serving import ROOT, Server


@pytest.fixture(scope="module")
def engine():
    return AttributionEngine(Settings())


def run(engine, **more):
    request = engine.check(AttributionRequest(model=LOOKUP, input_text=PROMPT, **more))
    parts = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return stored_form.decode(parts[0].content)


def test_tried_again_in_smaller_pieces(engine, monkeypatch):
    body = {"method": "integrated_gradients", "n_steps": 40}
    whole = run(engine, **body)
    asked = []
    attribute = method_run.Runner._attribute

    def too_large_at_first(self, *arguments, **more):
        asked.append(self._request.attribution_args.get("internal_batch_size"))
        return torch.empty(10**15) if len(asked) == 1 else attribute(self, *arguments, **more)

    monkeypatch.setattr(method_run.Runner, "_attribute", too_large_at_first)
    again = run(engine, **body)
    assert asked == [None, 10]
    assert again.info["warnings"] == ["cpu ran out of memory at first: it was done again with internal_batch_size 10."]
    np.testing.assert_allclose(
        again[0].target_attributions.numpy(), whole[0].target_attributions.numpy(), rtol=1e-4, atol=1e-6
    )


def test_given_up_clearly_and_usable_afterwards(engine, monkeypatch):
    clean = run(engine, method="saliency")
    tries = []

    def too_large(self, *_arguments, **_more):
        tries.append(1)
        return torch.empty(10**15)

    with monkeypatch.context() as patch:
        patch.setattr(method_run.Runner, "_attribute", too_large)
        with pytest.raises(OutOfMemory, match="also in smaller pieces"):
            run(engine, method="saliency")
    assert len(tries) == 2
    assert engine.models()["loaded"] == []  # the model is unloaded to free its memory
    after = run(engine, method="saliency")
    assert torch.equal(after[0].target_attributions.nan_to_num(), clean[0].target_attributions.nan_to_num())


@contextlib.contextmanager
def _address_space(pid, more):
    """`ulimit -v`: so many bytes more than the process has now."""
    used = psutil.Process(pid).memory_info().vms
    resource.prlimit(pid, resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))
    yield


@contextlib.contextmanager
def _cgroup(pid, more):
    """A control group with so many bytes for what the process and its children allocate from now on."""
    folder = Path("/sys/fs/cgroup/memory" if Path("/sys/fs/cgroup/memory").is_dir() else "/sys/fs/cgroup")
    group = folder / f"inseq-api-test-{pid}"
    try:
        group.mkdir()
        limit = group / ("memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max")
        limit.write_text(str(more))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        yield
    finally:
        for each in (group / "cgroup.procs").read_text().split():
            (folder / "cgroup.procs").write_text(each)
        group.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("limited", [_address_space, _cgroup])
def test_a_server_with_a_memory_limit_fails_the_job_and_lives(tmp_path, limited):
    """What is foreseen is refused, a template that fills the memory ends alone, and the next job runs."""
    chat_models.build("chat-llama3", tmp_path / "models" / "filling")
    (tmp_path / "models" / "filling" / "chat_template.jinja").write_text("{{ 'a' * 1000000000 }}{{ messages }}")
    small = {"model": LOOKUP, "method": "saliency", "input_text": PROMPT}
    text = PROMPT + " tea. Ben likes milk. Anna likes" * 10
    large = {"model": LOOKUP, "method": "integrated_gradients", "engine": "inseq", "n_steps": 2000,
             "internal_batch_size": 2000, "input_text": text, "generated_text": f"{text} tea"}  # fmt: skip
    filling = {"model": "filling", "method": "dummy", "messages": [{"role": "user", "content": "x"}]}
    with (
        Server(tmp_path / "data", INSEQ_API_MODEL_DIRS=str(tmp_path / "models")) as server,
        limited(server.pid, 800 * 1024**2),
    ):
        before = server.result(server.run(**small))["sequence_attributions"]
        job = server.wait(server.submit(**large))
        assert job["error"]["type"] == "/problems/out-of-memory", job
        assert "GiB are free" in job["error"]["detail"], job
        job = server.wait(server.submit(**filling))
        assert job["error"]["type"] == "/problems/input-rejected", job
        assert server.result(server.run(**small))["sequence_attributions"] == before
        assert server.client.get("/health/ready").status_code == 200
        assert server.stop() == 0


def test_weights_that_exceed_the_free_memory_are_not_loaded(tmp_path, monkeypatch):
    build_small_gpt2(tmp_path / "one")
    engine = AttributionEngine(Settings(model_dirs=[str(tmp_path)], data_dir=tmp_path / "data"))
    request = engine.check(AttributionRequest(model="one", method="dummy", input_text="The"))
    with monkeypatch.context() as patch:
        patch.setattr(cache, "memory_of", lambda _: DeviceMemory(free=1000, total=10**10))
        with pytest.raises(OutOfMemory, match=r"The weights of 'one' take 0\.0 GiB in float32, and 0\.0 GiB of memory"):
            engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    assert engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)


_LONG = """
import json, resource, sys
from attribution.engine import AttributionEngine
from models import AttributionRequest
from settings import Settings

def run(tokens):
    text = "1" * tokens
    request = engine.check(AttributionRequest(
        model="long", method="attention", engine="inseq", input_text=text, generated_text=text + "23"))
    engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

engine = AttributionEngine(Settings(model_dirs=[sys.argv[1]], data_dir=sys.argv[1] + "/data"))
print(json.dumps([run(8), run(1200)]))
"""


@pytest.mark.slow
def test_attention_keeps_the_rows_of_the_steps(tmp_path):
    """The peak memory of a process rises by less than half the attention weights of all layers and positions."""
    layers, heads, tokens = 16, 4, 1200
    build_small_gpt2(tmp_path / "long", layers=layers, positions=2048)
    found = subprocess.run(
        [sys.executable, "-c", _LONG, str(tmp_path)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    before, after = json.loads(found.stdout.splitlines()[-1])
    weights = layers * heads * tokens**2 * torch.float32.itemsize
    assert after - before < weights / 2  # Inseq needs three times these weights


@pytest.mark.slow
def test_the_largest_job_that_is_allowed(tmp_path):
    """A text of as many tokens as may be asked for and as many more generated, and as many such texts as one job may have:
    the server answers meanwhile, and the memory is what the estimate said.
    """
    allowed = Settings()
    prompt, new, texts = allowed.max_input_tokens, allowed.max_new_tokens, allowed.max_inputs
    build_small_gpt2(tmp_path / "models" / "long", positions=prompt + new)
    one = {"model": "long", "method": "attention", "input_text": "1" * prompt,
           "generation_args": {"max_new_tokens": new, "min_new_tokens": new}}  # fmt: skip
    many = one | {"method": "dummy", "input_text": ["1" * prompt] * texts, "generation_args": {"max_new_tokens": 1}}
    with Server(tmp_path / "data", INSEQ_API_MODEL_DIRS=str(tmp_path / "models")) as server:
        server.run(**one | {"input_text": "1", "generation_args": {"max_new_tokens": 1}})
        process = psutil.Process(server.pid)
        before, largest = process.memory_info().rss, 0
        estimate = server.client.post("/attribution/estimate", json=one).json()
        assert estimate["fits"]
        done = []
        for body in (one, many):
            done.append(server.submit(**body))
            while server.job(done[-1])["status"] in {"pending", "running"}:
                largest = max(largest, process.memory_info().rss)
                time.sleep(0.05)
            assert server.job(done[-1])["status"] == "completed", server.job(done[-1])
        # Within the factor of estimates of time. On SmolLM2, 7.7 GB above the loaded model were measured, 7.2 estimated.
        assert largest - before < 1.5 * estimate["peak_memory_bytes"]
        one_text, texts_done = (server.result(job)["sequence_attributions"] for job in done)
        scores = np.array(one_text[0]["target_attributions"], float)
        assert scores.shape == (prompt + new, new)
        # The attention of each token sums to 1 over itself and the tokens before it.
        # A float32 softmax adds its terms in lanes of at least four numbers, and each addition rounds by at most 2^-24.
        np.testing.assert_allclose(np.nansum(scores, 0), 1.0, rtol=0, atol=(prompt + new) / 4 * 2**-24)
        assert len(texts_done) == texts
        assert server.client.get("/health/ready").status_code == 200
        assert server.stop() == 0
