"""Uses a store as a server does, and writes to standard output what a client was told: `python -m tests.store_driver DIR`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jobs.store.job_store import JobStore
from jobs.store.records import Submission
from models import Problem, Progress, ResultPart
from tests.fake_engine import request

ERROR = Problem(title="Failed", status=500, detail="because")


def tell(what, job_id):
    """Tell a client, in one system call."""
    os.write(1, f"{what} {job_id}\n".encode())


def parts(text):
    return [ResultPart("raw", "text", text.encode() * 500), ResultPart("summary", "text", text.encode())]


def main():
    store = JobStore(Path(sys.argv[1]))
    accepted = []
    for number in range(int(sys.argv[2])):
        text = f"text {number % 5}"
        job, _ = store.add(Submission(request(text, reuse=number % 4 == 3), f"key-{number}", reuse_key=text))
        tell("completed" if job.reused_from else "accepted", job.job_id)
        accepted.append(job.job_id)
        if number % 2:
            while claimed := store.claim():
                store.save_progress([(claimed, Progress(steps_done=1))])
                if number % 7 == 5:
                    store.fail(claimed, ERROR, partial=parts("partial"))
                    tell("failed", claimed.job_id)
                else:
                    store.complete(claimed, parts(claimed.request.inputs[0]), Progress())
                    tell("completed", claimed.job_id)
        if number % 6 == 5:
            store.delete(accepted[number - 4])
            tell("deleted", accepted[number - 4])
            store.expire(max_age=10**9, keep=4, keep_bytes=10**9)


if __name__ == "__main__":
    main()
