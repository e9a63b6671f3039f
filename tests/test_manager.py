"""A stateful test of manager, workers and store: any order of calls, ends of jobs and crashes, against a model."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from job_manager import JobLimits, JobManager
from jobs.store.job_store import JobStore
from jobs.store.records import ALL_OWNERS
from models import JobStatus, ResultPart
from problems import Cancelled, InputRejected, JobActive, JobEnded, JobNotFound, ServiceError
from tests.fake_engine import request

MAX_ATTEMPTS = 2
# All allowed changes of status.
MOVES = {
    (JobStatus.PENDING, JobStatus.RUNNING),
    (JobStatus.PENDING, JobStatus.CANCELLED),
    (JobStatus.RUNNING, JobStatus.COMPLETED),
    (JobStatus.RUNNING, JobStatus.FAILED),
    (JobStatus.RUNNING, JobStatus.CANCELLED),
    (JobStatus.RUNNING, JobStatus.PENDING),  # on recovery
}


class Steps:
    """The run function of the manager: each run waits until the test orders how it ends."""

    def __init__(self):
        self.texts: list[str] = []  # one for each run, in order
        self.orders: list[str] = []
        self.changed = threading.Condition()

    def __call__(self, request, *, device, report, should_cancel, offer_partial):
        with self.changed:
            self.texts.append(request.input_text)
            self.changed.notify_all()
            while not self.orders:
                if should_cancel():
                    raise Cancelled
                self.changed.wait(0.002)
            order = self.orders.pop()
        if order == "fail":
            raise InputRejected("The text says fail.")
        if order == "crash":
            raise SystemExit  # ends the worker's thread, as a crash of the process would
        return [ResultPart("raw", "text", request.input_text.encode())]

    def order(self, what):
        with self.changed:
            self.orders.append(what)
            self.changed.notify_all()


class ManagerMachine(RuleBasedStateMachine):
    """A manager with one worker, which always runs the oldest pending job."""

    jobs = Bundle("jobs")

    @initialize()
    def open(self):
        self.folder = tempfile.TemporaryDirectory()
        self.expected: dict[str, JobStatus] = {}
        self.attempts: dict[str, int] = {}
        self.texts: dict[str, str] = {}
        self.seen: dict[str, JobStatus] = {}
        self.serve()

    def serve(self):
        self.store = JobStore(Path(self.folder.name))
        self.steps = Steps()
        self.manager = JobManager(self.store, self.steps, devices=["cpu"], limits=JobLimits(MAX_ATTEMPTS))
        self.manager.start()
        self.settle()

    @property
    def running(self):
        return next((job_id for job_id, status in self.expected.items() if status is JobStatus.RUNNING), None)

    def settle(self):
        """If no job is running, wait until the worker has claimed the oldest pending job."""
        waiting = [job_id for job_id, status in self.expected.items() if status is JobStatus.PENDING]
        if self.running or not waiting:
            return
        self.expected[waiting[0]] = JobStatus.RUNNING
        self.attempts[waiting[0]] += 1
        self.await_status(waiting[0])

    def await_status(self, job_id):
        deadline = time.monotonic() + 120
        while self.manager.get(job_id, ALL_OWNERS).status is not self.expected[job_id]:
            assert time.monotonic() < deadline, (self.manager.get(job_id, ALL_OWNERS), self.expected[job_id])
            time.sleep(0.0005)

    def end(self, job_id, status):
        self.expected[job_id] = status
        self.await_status(job_id)
        self.settle()

    @rule(target=jobs)
    def submit(self):
        text = f"text {len(self.attempts)}"
        job = self.manager.submit(request(text), idempotency_key=text)
        assert job.status is JobStatus.PENDING
        assert self.manager.submit(request(text), idempotency_key=text).job_id == job.job_id
        self.expected[job.job_id], self.attempts[job.job_id], self.texts[job.job_id] = JobStatus.PENDING, 0, text
        self.settle()
        return job.job_id

    @rule(how=st.sampled_from(["finish", "fail"]))
    def end_running(self, how):
        job_id = self.running
        if job_id:
            self.steps.order(how)
            self.end(job_id, JobStatus.COMPLETED if how == "finish" else JobStatus.FAILED)

    @rule(job_id=jobs)
    def cancel(self, job_id):
        status = self.expected.get(job_id)
        refused = self.refusal(self.manager.cancel, job_id)
        if status is None:
            assert refused is JobNotFound
        elif status.is_terminal:
            assert refused is JobEnded
        else:
            assert refused is None
            self.end(job_id, JobStatus.CANCELLED)

    @rule(job_id=jobs)
    def cancel_and_finish_at_once(self, job_id):
        """If a job is cancelled while it finishes, it ends either completed or cancelled."""
        if job_id != self.running:
            return
        finisher = threading.Thread(target=self.steps.order, args=("finish",))
        finisher.start()
        refused = self.refusal(self.manager.cancel, job_id)
        finisher.join()
        deadline = time.monotonic() + 120
        while not (status := self.manager.get(job_id, ALL_OWNERS).status).is_terminal:
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        with self.steps.changed:
            self.steps.orders.clear()
        assert status in {JobStatus.COMPLETED, JobStatus.CANCELLED}
        assert refused in ({None, JobEnded} if status is JobStatus.COMPLETED else {None})
        self.end(job_id, status)

    @rule(job_id=jobs)
    def delete(self, job_id):
        status = self.expected.get(job_id)
        refused = self.refusal(self.manager.delete, job_id)
        if status is None:
            assert refused is JobNotFound
        elif not status.is_terminal:
            assert refused is JobActive
        else:
            assert refused is None
            del self.expected[job_id]

    @rule()
    def crash(self):
        """The process crashes with a running job, and is restarted."""
        job_id = self.running
        self.manager._workers.refuse_new_work()  # the worker writes nothing more; its thread ends
        if job_id:
            self.steps.order("crash")
            again = self.attempts[job_id] < MAX_ATTEMPTS
            self.expected[job_id] = JobStatus.PENDING if again else JobStatus.FAILED
            self.seen[job_id] = JobStatus.RUNNING
        for thread in self.manager._workers._threads:
            thread.join(60)
            assert not thread.is_alive()
        self.store.close()
        self.serve()

    @rule()
    def stop(self):
        """A shutdown makes the running job pending again, and does not count as an attempt."""
        job_id = self.running
        self.manager.stop(0)
        if job_id:
            self.attempts[job_id] -= 1
            self.expected[job_id] = JobStatus.PENDING
        self.store.close()
        self.serve()

    @staticmethod
    def refusal(call, job_id):
        try:
            call(job_id, ALL_OWNERS)
        except ServiceError as error:
            return type(error)
        return None

    @invariant()
    def the_service_agrees(self):
        for job_id, status in self.expected.items():
            job = self.manager.get(job_id, ALL_OWNERS)
            assert (job.status, job.attempt) == (status, self.attempts[job_id])
            assert job.attempt <= MAX_ATTEMPTS
            assert (job.finished_at is not None) == status.is_terminal
            assert (job.error is not None) == (status is JobStatus.FAILED)
            before = self.seen.get(job_id, JobStatus.PENDING)
            assert before is status or _reachable(before, status), (before, status)
            files = self.store.files(job_id)
            assert bool(files) == (status is JobStatus.COMPLETED)
            if files:  # the stored result is this job's, and complete
                assert self.store.read(files["raw"]) == self.texts[job_id].encode()
            self.seen[job_id] = status
        waiting = [job_id for job_id, status in self.expected.items() if status is JobStatus.PENDING]
        assert [self.manager.get(job_id, ALL_OWNERS).queue_position for job_id in waiting] == [*range(len(waiting))]

    def teardown(self):
        self.manager.stop(0)
        self.store.close()
        self.folder.cleanup()


def _reachable(before, after):
    """Whether allowed changes lead from `before` to `after`; there may be several between two checks."""
    known, more = set(), {before}
    while more:
        known |= more
        more = {end for start, end in MOVES if start in more} - known
    return after in known


# A simulated crash ends the worker's thread with SystemExit.
TestManager = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")(
    ManagerMachine.TestCase
)
TestManager.settings = hypothesis_settings(max_examples=8, stateful_step_count=20, deadline=None)
