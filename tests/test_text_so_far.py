"""The text behind the prompt is told as soon as there is any, while the job runs, and its progress never goes back."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import pytest

from api.job_watch import event_id
from attribution.engine import AttributionEngine
from attribution.results import stored_form
from attribution.text import growing_text
from jobs.eta import RunningEta
from jobs.store.records import ALL_OWNERS
from models import AttributionRequest, Job, Stage
from settings import Settings
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.fake_engine import ended, submit, until_running
from tests.serving import until

REAL = "smollm2-135m-instruct-q4"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return AttributionEngine(Settings(data_dir=tmp_path_factory.mktemp("data")))


def reports(engine, **body):
    """The reports of a job, and its result."""
    seen = []
    request = engine.check(AttributionRequest(**body))
    parts = engine.run(request, device="cpu", report=seen.append, should_cancel=lambda: False)
    fractions = [each.fraction for each in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    return seen, stored_form.decode(next(part.content for part in parts if part.kind.startswith("raw")))


def test_it_grows_while_it_is_generated(engine, monkeypatch):
    monkeypatch.setattr(growing_text, "_INTERVAL", 0.0)  # seconds; a text of a toy is written in less than one interval
    seen, output = reports(engine, model=LOOKUP, method="saliency", input_text=[PROMPT, "Ben likes"])
    texts = [each.generated_text for each in seen]
    assert texts[0] is None
    ends = [
        text.removeprefix(prompt)
        for text, prompt in zip(output.info["generated_texts"], (PROMPT, "Ben likes"), strict=True)
    ]
    ends = [text.removesuffix("<|endoftext|>") for text in ends]
    # Token by token, one text after the other; a text of which nothing is written yet is empty.
    grown = list(dict.fromkeys(tuple(each) for each in texts if each))
    assert grown == [(" tea", ""), (" tea.", ""), (" tea.", " water"), (" tea.", " water.")]
    for one, other in pairwise(grown):
        assert all(after.startswith(before) for before, after in zip(one, other, strict=True))
    assert grown[0][1] == ""
    assert list(grown[-1]) == ends
    assert seen[texts.index(list(grown[0]))].stage is Stage.GENERATING
    # It stays to the end, and no attribution has begun before it is whole.
    assert {tuple(each.generated_text) for each in seen if each.stage is Stage.ATTRIBUTING} == {tuple(ends)}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"model": LOOKUP, "input_text": PROMPT, "generated_text": f"{PROMPT} tea. Ben"}, " tea. Ben"),
        ({"model": PHRASEBOOK, "input_text": SENTENCE, "generated_text": "il gatto"}, "il gatto"),
        ({"model": PHRASEBOOK, "input_text": SENTENCE, "generation_args": {"num_beams": 2}}, None),
    ],
    ids=["given", "given to an encoder-decoder", "beams"],
)
def test_a_text_that_is_there_at_once(engine, body, text):
    seen, output = reports(engine, method="dummy", **body)
    told = list(dict.fromkeys(tuple(each.generated_text or ()) for each in seen))
    assert told == [(), (text or output.info["generated_texts"][0],)]
    assert next(each for each in seen if each.generated_text).stage is not Stage.ATTRIBUTING


def test_it_is_in_the_job_document_until_the_job_has_ended(app):
    """Not in the store, which it would be written to every second, and which the result is in, too."""
    job_id = submit(app, "hold")
    until_running(app, job_id)
    job = Job.model_validate(app.get(f"/attribution/jobs/{job_id}").json())
    assert job.progress.generated_text == ["hold"]
    (listed,) = app.get("/attribution/jobs").json()["jobs"]
    assert listed["progress"]["generated_text"] == ["hold"]
    stored = app.app.state.services.store
    until(lambda: stored.get(job_id, ALL_OWNERS).progress.steps_done == 1)
    assert stored.get(job_id, ALL_OWNERS).progress.generated_text is None
    # Who watches the job gets a text that grew without anything else.
    grown = job.progress.model_copy(update={"generated_text": ["hold on"]})
    assert event_id(job) != event_id(job.model_copy(update={"progress": grown}))
    app.app.state.services.engine.go_on.set()
    assert ended(app, job_id)["progress"]["generated_text"] is None


@pytest.mark.slow
@pytest.mark.skipif(not (BUNDLED / REAL).exists(), reason="`make smollm2` makes the model")
def test_a_real_chat_with_a_passage(engine):
    """The fraction never falls over loading, measuring, generating, checking and attributing; and the ETA is right.

    From a fifth of the attribution on, which then has its own pace: before, the ETA is what was measured within seconds,
    and on a machine whose load changes nothing can be said of that.
    """
    passage = "The Eiffel Tower was designed by the company of Gustave Eiffel and built from 1887 to 1889. "
    request = engine.check(AttributionRequest(
        model=REAL, method="integrated_gradients", n_steps=4,
        messages=[{"role": "user", "content": f"{passage}Who designed it? Tell me all that you know."}],
        generation_args={"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False},
    ))  # fmt: skip
    seen, eta = [], RunningEta.of_new(("", ""), time.monotonic())

    def report(progress):
        nonlocal eta
        now = time.monotonic()
        eta = eta.updated(progress, now)
        seen.append((now, progress, eta.seconds_left))

    engine.run(request, device="cpu", report=report, should_cancel=lambda: False)
    end = time.monotonic()
    stages = list(dict.fromkeys(progress.stage.value for _, progress, _ in seen))
    assert stages == ["loading_model", "measuring", "generating", "checking", "attributing", "saving"]
    fractions = [progress.fraction for _, progress, _ in seen]
    assert fractions == sorted(fractions)
    off = [
        max(left / (end - now), (end - now) / left)
        for now, progress, left in seen
        if progress.stage is Stage.ATTRIBUTING and progress.steps_done >= 6 and left and end - now > 1
    ]
    assert statistics.median(off) < 2
