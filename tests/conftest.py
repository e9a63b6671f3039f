"""Shared fixtures: real servers on loopback ports, a hub cache with a small GPT-2, and a browser."""

from __future__ import annotations

import os
import re
import tempfile
from functools import lru_cache
from pathlib import Path

# Set before Inseq is imported: its caches go to a temporary folder, and the network is not used.
_SCRATCH = tempfile.mkdtemp(prefix="inseq-api-tests-")
os.environ["INSEQ_ARTIFACTS_CACHE"] = f"{_SCRATCH}/inseq-artifacts"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = f"{_SCRATCH}/hf"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# One intra-op thread here and in every server makes the order of sums, and so the rounding, reproducible.
os.environ["OMP_NUM_THREADS"] = "1"
for _name in [name for name in os.environ if name.startswith("INSEQ_API_")]:
    del os.environ[_name]

import pytest  # noqa: E402
import structlog  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from tests.serving import Server  # noqa: E402

# structlog's own way of drawing a traceback, with all local variables, takes seconds for one of FastAPI's.
structlog.configure(processors=[
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso"),
    structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
])  # fmt: skip

# No time limits on Hypothesis's examples: their durations depend on the load of the machine.
settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")

BUNDLED = Path(__file__).parent.parent / "demo_models"
LOOKUP, TWO_STEP, PHRASEBOOK = "lookup-gpt2", "twostep-gpt2", "phrasebook-t5"
PROMPT = "Anna likes tea. Ben likes milk. Anna likes"
SENTENCE = "the red cat sees a dog"


# The slowest files run first, so that parallel workers finish at about the same time.
LONGEST = (
    "test_single_pass", "test_families", "test_models", "test_exactness", "test_crashes", "test_rows",
    "test_single_pass_paths", "test_page_jobs", "test_single_pass_exactly", "test_page", "test_corrections_methods",
    "test_sandbox", "test_partial", "test_power_loss", "test_single_pass_half", "test_step_scores",
)  # fmt: skip


# Files that compare numbers computed by different kernels.
NUMERIC = {
    "test_adapters", "test_cancel_points", "test_chat", "test_comparison", "test_completeness", "test_corrections",
    "test_corrections_methods", "test_cpu_half", "test_device_memory", "test_estimates", "test_exactness",
    "test_families", "test_field_cases", "test_field_texts", "test_generation", "test_gguf", "test_isolation", "test_kept_states",
    "test_labels", "test_languages", "test_lean_reagent", "test_lengths", "test_loading", "test_masking", "test_memory", "test_quantized",
    "test_quantized_refusals",
    "test_more_families", "test_network_state", "test_partial", "test_refinement", "test_rounding", "test_single_pass",
    "test_single_pass_exactly", "test_single_pass_half", "test_single_pass_long", "test_single_pass_paths",
    "test_step_functions", "test_step_scores", "test_threads", "test_trace_views", "test_two_step", "test_views",
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before pytest selects tests by their marks
def pytest_collection_modifyitems(items):
    """Mark the numeric files and sort the slowest files first; the tests of a file stay together."""
    places = {name: place for place, name in enumerate(LONGEST)}
    for item in items:
        if item.path.stem in NUMERIC:
            item.add_marker("numeric")
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def hub_cache():
    """This process's Hugging Face cache, with a small random GPT-2 and its tokenizer as `distilgpt2`."""
    from tests.hub import build_hub_cache  # imports torch, which xdist's own process does not need

    return build_hub_cache(Path(os.environ["HF_HOME"]))


@pytest.fixture(scope="session", autouse=True)
def shared_sandboxes():
    """Engines in this process share their sandboxes, each of which imports Transformers first."""
    from attribution import engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "Sandboxes", lru_cache(engine.Sandboxes))
        yield


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A model directory of the server, to which tests add models of families (see `tests.families`)."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def server(tmp_path_factory, hub_cache, model_dir):
    """A server in its own process, with two workers, shared by all tests that leave it running. Finds `hub_cache` by HF_HOME."""
    with Server(
        tmp_path_factory.mktemp("data"),
        INSEQ_API_MODEL_DIRS=str(model_dir),
        INSEQ_API_WORKERS_PER_DEVICE="2",
        INSEQ_API_CPU_HALF="native",  # tests of half precision compute in it on every processor
        INSEQ_API_TEXT_SECONDS="2",  # of processor time, which no honest text takes
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def settled(request):
    """Cancel the jobs that a test left on the shared server."""
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").settle()


# Without torch


@pytest.fixture
def app(tmp_path):
    """A client of the app in this process, with a fake engine and one worker."""
    from settings import Settings
    from tests.fake_engine import in_process

    with in_process(Settings(data_dir=tmp_path)) as client:
        yield client


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A server with the fake engine, whose jobs take as long as their `input_text` says."""
    with Server(tmp_path_factory.mktemp("slow"), module="tests.fake_engine") as running:
        yield running


# The page


@pytest.fixture
def served(server):
    """The shared server without jobs: tests of the page count them."""
    server.clear()
    return server


@pytest.fixture
def keys(served):
    """The shared server's API keys, all removed after the test."""
    from jobs.store.api_keys import ApiKeys
    from jobs.store.schema import api_keys, open_database

    yield ApiKeys.of(served.data_dir)
    with open_database(served.data_dir / "jobs.sqlite3").begin() as connection:
        connection.execute(api_keys.delete())


@pytest.fixture(scope="module")
def chromium():
    """A browser for one file of tests, closed after it: no other event loop can run in the thread before."""
    from tests.browser import browser

    with browser() as running:
        yield running


@pytest.fixture
def open_page(chromium):
    """Opens pages. The test fails if one logs an error or sends a request to another server."""
    contexts, complaints = [], []

    def opened(server, path="/", **options):
        context = chromium.new_context(reduced_motion="reduce", **options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        # The browser logs refused and unanswered requests as errors. They are expected: the page reports them itself.
        noted = re.compile("status of 4|net::ERR_")
        page.on(
            "console",
            lambda said: said.type == "error" and not noted.search(said.text) and complaints.append(said.text),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda asked: asked.url.startswith((server.url, "blob:", "data:")) or complaints.append(asked.url),
        )
        page.goto(server.url + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
