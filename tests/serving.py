"""A real server in its own process, and the calls that tests make to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx

from tests import forked
from tests.forked import Forked

ROOT = Path(__file__).parent.parent


def until(holds: Callable[[], object], seconds: float = 120) -> None:
    """Wait until `holds()` is true. Raises `AssertionError` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


class DidNotStart(AssertionError):
    """A server's process ended before it listened."""


class Server:
    """`python main.py` on a free loopback port; `kill` is SIGKILL, `stop` is SIGTERM, `start` starts it again.

    command: what runs it, in front of the interpreter. seen_as: the path of `data_dir` there, if it is another.
    """

    def __init__(
        self,
        data_dir: Path,
        *arguments: str,
        module: str = "main",
        command: Sequence[str] = (),
        seen_as: str | None = None,
        **environment: str,
    ) -> None:
        self.data_dir = data_dir
        self._command = [*command, sys.executable, "-m", module]
        self._arguments = ["--port", "0", "--data-dir", seen_as or str(data_dir), *arguments]
        self._module = module
        self._forks = forked.can_fork(module, command, environment)
        self._environment = environment
        self._process: subprocess.Popen[str] | Forked | None = None
        # Append mode: the server writes at the end of the file wherever this process reads.
        self._log = tempfile.TemporaryFile("a+")  # noqa: SIM115 - closed by the finalizer
        weakref.finalize(self, self._log.close)
        self.client = httpx.Client()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process; returns when it listens. Raises `DidNotStart`."""
        environment = os.environ | self._environment
        if self._forks:
            self._process = Forked(self._module, self._arguments, environment, self._log)
        else:
            self._process = subprocess.Popen(
                [*self._command, *self._arguments],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r"http://[\d.]+:\d+", line):
                self.url = found.group()
                self.client.close()
                self.client = httpx.Client(base_url=self.url, timeout=120)
                return
        raise DidNotStart(f"the server did not start:\n{self.log}")

    def start_again(self) -> None:
        """Wait for the process to end by itself, and start it until it listens: a job may end it before."""
        assert self._process is not None
        while True:
            self._process.wait(120)
            self._close()
            with suppress(DidNotStart):
                return self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._close()

    def stop(self, timeout: float = 120) -> int:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(timeout)
        self._close()
        return code

    def _close(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.client.close()

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def submit(self, **body: Any) -> str:
        answer = self.client.post("/attribution/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["job_id"]

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/attribution/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait(self, job_id: str, timeout: float = 300) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            # Let the server hold the response until the job ends: polling would compete with the worker for the GIL.
            answer = self.client.get(f"/attribution/jobs/{job_id}", params={"wait": min(20, left)})
            assert answer.status_code == 200, answer.text
            job: dict[str, Any] = answer.json()
            if job["status"] in {"completed", "failed", "cancelled"}:
                return job
        raise AssertionError(f"job {job_id} did not end: {job}\n{self.log[-3000:]}")

    def wait_until_attributing(self, job_id: str) -> None:
        """Wait until the job is attributing or has ended."""

        def is_attributing() -> bool:
            job = self.job(job_id)
            return job["progress"]["stage"] == "attributing" or job["finished_at"] is not None

        until(is_attributing)

    def settle(self) -> None:
        """Cancel all pending and running jobs, so that the workers are free for the next test."""
        for status in ("pending", "running"):
            answer = self.client.get("/attribution/jobs", params={"status": status, "limit": 200})
            for job in answer.json()["jobs"]:
                self.client.post(f"/attribution/jobs/{job['job_id']}/cancel")  # 409 if it has just ended
                self.wait(job["job_id"])

    def clear(self) -> None:
        """Delete all jobs."""
        self.settle()
        while jobs := self.client.get("/attribution/jobs", params={"limit": 200}).json()["jobs"]:
            for job in jobs:
                answer = self.client.delete(f"/attribution/jobs/{job['job_id']}")
                assert answer.status_code == 204, answer.text

    def run(self, **body: Any) -> str:
        """Submit a job, wait for it and check that it completed; returns its id."""
        job = self.wait(self.submit(**body))
        assert job["status"] == "completed", job["error"]
        return job["job_id"]

    def result(self, job_id: str, **parameters: Any) -> dict[str, Any]:
        answer = self.client.get(f"/attribution/jobs/{job_id}/results", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refusal(self, **body: Any) -> dict[str, Any]:
        """Submit a request that must be refused with 422; returns the problem document."""
        answer = self.client.post("/attribution/jobs", json=body)
        assert answer.status_code == 422, (answer.status_code, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.json()
