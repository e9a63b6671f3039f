"""An engine without torch for tests of jobs and HTTP: jobs complete immediately, run slowly, fail or kill the process.

`python -m tests.fake_engine --data-dir DIR` serves it, for tests that kill the process many times.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from api.uvicorn_server import configure_logging, serve
from main import create_app
from models import AttributionRequest, JobStatus, Progress, ResultPart, Stage
from problems import Cancelled, InputRejected
from settings import Settings
from tests.serving import until

LOCAL = "http://127.0.0.1"  # an allowed host


def body(text, **more):
    """The body of a request to the fake engine."""
    return {"model": "m", "method": "saliency", "input_text": text, **more}


def request(text="hello", model="m", **more):
    return AttributionRequest(**body(text, **more) | {"model": model})


def submit(client, text, **more):
    answer = client.post("/attribution/jobs", json=body(text, **more))
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


def ended(client, job_id):
    """Wait for the end of the job and return it."""
    job = client.get(f"/attribution/jobs/{job_id}", params={"wait": 60}).json()
    assert JobStatus(job["status"]).is_terminal, job
    return job


def until_running(client, job_id):
    """Wait until the job reports a completed step."""
    until(lambda: client.get(f"/attribution/jobs/{job_id}").json()["progress"]["steps_done"])


@contextmanager
def in_process(settings):
    """A client of an app in this process with its own fake engine; `hold` jobs are released at the end."""
    from fastapi.testclient import TestClient  # not needed, and slow to import, in servers that tests restart often

    engine = FakeEngine()
    with TestClient(create_app(settings, engine), LOCAL) as client:
        try:
            yield client
        finally:
            engine.go_on.set()


def _text(request):
    """The first text of a request, or the last message of its first conversation."""
    return request.inputs[0] if request.inputs else request.conversations[0][-1].content


class Panic(BaseException):
    """As libraries in Rust raise, which is no `Exception`."""


class FakeEngine:
    """Reads `input_text` as a command: `sleep:0.1`, `hold` (until `go_on` is set), `fail`, `raise`, `panic`, `die` or
    `forever`.

    Any other text completes immediately.
    """

    def __init__(self):
        self.runs: list[str] = []
        self.go_on = threading.Event()
        self.loaded: list[dict] = []
        self.listed: set[str] = set()

    def check(self, request):
        return request

    def result_identity(self, request):
        return f"{_text(request)} {request.seed}"

    def devices(self):
        return ("cpu",)

    def prepare_worker(self, threads):
        self.threads = threads

    def run(self, request, *, device, report, should_cancel, offer_partial=lambda _: None):
        text = _text(request)
        self.runs.append(text)
        action, _, argument = text.partition(":")
        seconds = {"sleep": float(argument or 0), "die": 0.3, "forever": 10**6}.get(action, 0)
        deadline = time.monotonic() + seconds
        report(Progress(stage=Stage.ATTRIBUTING, steps_done=0, steps_total=4))
        done = {"steps_done": 1, "steps_total": 4, "fraction": 0.25, "generated_text": [text]}
        report(Progress(stage=Stage.ATTRIBUTING, **done))
        while time.monotonic() < deadline or (action == "hold" and not self.go_on.is_set()):
            if should_cancel():
                raise Cancelled
            time.sleep(0.005)
        if action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "fail":
            raise InputRejected("The text says fail.")
        if action == "panic":
            raise Panic
        if action == "raise":
            raise ZeroDivisionError("division by zero")
        answer = self.answer(request)
        return [ResultPart("raw", "text", answer), ResultPart("summary", "json+gzip", gzip.compress(answer, mtime=0))]

    @staticmethod
    def answer(request):
        return f'{{"text": {json.dumps(_text(request))}, "seed": {request.seed}}}'.encode()

    def view(self, raw, view_format, options):
        return raw

    def trace(self, raw, view_format, options, asked):
        return raw

    def models(self):
        return {"available": self.loaded, "loaded": self.loaded}

    def is_listed(self, model):
        return model in self.listed

    def methods(self):
        return []

    def model_cache_numbers(self):
        return {"models": 1, "bytes": 10}

    step_functions = methods
    aggregators = models


def main():
    configure_logging()
    settings = Settings(data_dir=Path(sys.argv[sys.argv.index("--data-dir") + 1]), workers_per_device=2, port=0)
    serve(create_app(settings, FakeEngine()), settings)


if __name__ == "__main__":
    main()
