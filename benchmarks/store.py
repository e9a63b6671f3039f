"""Measures a store of 100,000 jobs: `python -m benchmarks.store`.

90,000 jobs have ended and 10,000 wait. Measures pages by every combination of filters, from the newest to the oldest
jobs, by words too; queue positions, claims and submissions, with and without a long text; and how long retention holds
the lock. The last line is JSON.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from jobs.store import search
from jobs.store.job_store import JobStore
from jobs.store.listing import Filters
from jobs.store.records import Submission
from jobs.store.schema import job_tags, jobs, result_files
from models import AttributionRequest, JobStatus

_ENDED, _WAITING = 90_000, 10_000
_WORDS = 350  # of each job's text, drawn from 50,000 by Zipf's law
_REQUEST = {"model": "org/model-3", "method": "saliency", "input_text": "Anna likes tea. Ben likes milk. Anna likes"}


class Texts:
    """Texts of random words: `words` are from the most to the least frequent."""

    def __init__(self) -> None:
        self._random = random.Random(0)
        letters = [self._random.choices("etaoinshrdlucm", k=self._random.randint(2, 9)) for _ in range(50_000)]
        self.words = list(dict.fromkeys(map("".join, letters)))
        self._shares = list(itertools.accumulate(1 / rank for rank in range(1, len(self.words) + 1)))

    def text(self, count: int) -> str:
        return " ".join(self._random.choices(self.words, cum_weights=self._shares, k=count))


def fill(store: JobStore, texts: Texts) -> None:
    """Insert rows as the service writes them: 8 models, 5 methods, one owner, 2 % failed, a common and a rare tag."""
    methods = ["saliency", "integrated_gradients", "lime", "occlusion", "attention"]
    rows: list[dict[str, Any]] = []
    tags, files = [], []
    for seq in range(1, _ENDED + _WAITING + 1):
        request = AttributionRequest(**_REQUEST | {"model": f"org/model-{seq % 8}", "method": methods[seq % 5]})
        ended = seq <= _ENDED
        status = (JobStatus.FAILED if seq % 50 == 0 else JobStatus.COMPLETED) if ended else JobStatus.PENDING
        job_id, times = f"{seq:032x}", {"started_at": float(seq), "finished_at": float(seq)}
        rows.append({"seq": seq, "job_id": job_id, "status": status.value, "model": request.model,
                     "method": request.method, "request": request.model_dump_json(), "attempt": int(ended),
                     "created_at": float(seq), "cancel_requested": False, "owner": "", "priority": seq % 3,
                     "reuse_key": f"{seq:064x}"} | (times if ended else dict.fromkeys(times)))  # fmt: skip
        names = {"project": f"p{seq % 10}"} | ({"rare": "yes"} if seq % 5000 == 0 else {})
        tags += [
            {"job_id": job_id, "name": name, "value": value, "seq": seq, "owner": ""} for name, value in names.items()
        ]
        if status is JobStatus.COMPLETED:
            files += [{"job_id": job_id, "kind": kind, "name": f"{job_id}.1.{kind}", "codec": "x", "size": 1000,
                       "sha256": "0" * 64} for kind in ("raw", "summary")]  # fmt: skip
    with store._database.write() as connection:  # noqa: SLF001
        for table, values in ((jobs, rows), (job_tags, tags), (result_files, files)):
            connection.execute(sa.insert(table), values)
        for row in rows:
            job = {"input_text": texts.text(_WORDS), "model": row["model"], "method": row["method"]}
            search.add(connection, {row["seq"]: search.words_of(row["job_id"], job)})


def timed(calls: Sequence[Callable[[], object]]) -> dict[str, float]:
    """Median and 99th percentile of the calls' durations in milliseconds."""
    taken = []
    for call in calls:
        began = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - began))
    return {"p50_ms": statistics.median(taken), "p99_ms": sorted(taken)[int(0.99 * len(taken))]}


def pages(store: JobStore) -> dict[str, dict[str, float]]:
    """Durations of a page of 51 by every combination of filters, at four depths."""
    choices: dict[str, list[Any]] = {
        "status": [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.PENDING, JobStatus.CANCELLED],
        "model": ["org/model-3", "org/none"],
        "method": ["lime"],
        "tags": [[("project", None)], [("project", "p3")], [("rare", "yes"), ("project", None)]],
    }
    found = {}
    for count in range(len(choices) + 1):
        for names in itertools.combinations(choices, count):
            asked = [
                Filters(**dict(zip(names, values, strict=True)), owner="")
                for values in itertools.product(*(choices[name] for name in names))
            ]
            calls = [
                partial(store.page, filters, limit=51, before=before)
                for filters in asked
                for before in (None, 95_000, 50_000, 100)
                for _ in range(5)
            ]
            found["page by " + (" and ".join(names) or "nothing")] = timed(calls)
    return found


def searches(store: JobStore, texts: Texts) -> dict[str, dict[str, float]]:
    """Durations of a page of 51 by words that many or few jobs have, alone and with filters that few jobs meet."""
    asked = {
        "a frequent word": texts.words[0],
        "two frequent words": " ".join(texts.words[:2]),
        "the beginning of many words": texts.words[10][:2],
        "a rare word": texts.words[-5000],
        "a word of no job": "zzzz",
    }
    few: list[dict[str, Any]] = [{"status": JobStatus.CANCELLED}, {"model": "org/none"}, {"tags": [("rare", "yes")]}]
    found = {}
    for name, words in asked.items():
        for kind, filters in (("", [{}]), (" and a filter of few", few)):
            calls = [partial(store.page, Filters(search=words, owner="", **each), limit=51) for each in filters] * 5
            found[f"search by {name}{kind}"] = timed(calls)
    return found


def measure(store: JobStore, texts: Texts) -> dict[str, dict[str, float]]:
    found = pages(store) | searches(store, texts) | {"facets": timed([partial(store.facets, "")] * 20)}
    waiting = store.page(Filters(JobStatus.PENDING, owner=""), limit=200)
    found["queue position of 10,000"] = timed([partial(store.queue_position, job) for job in waiting])
    submission = Submission(AttributionRequest(**_REQUEST), max_pending=10**6, max_pending_of_owner=10**6)
    found["submission behind 10,000"] = timed([lambda: store.add(submission)] * 200)
    for words in (_WORDS, 8000):
        text = {"input_text": texts.text(words)}
        long = Submission(AttributionRequest(**_REQUEST | text), max_pending=10**6, max_pending_of_owner=10**6)
        found[f"submission of {words:,} words"] = timed([partial(store.add, long)] * 200)
    found["claim of 10,000"] = timed([store.claim] * 200)
    found["claim, one model busy"] = timed([lambda: store.claim(["org/model-3", "org/model-4"])] * 200)
    held = []
    stop = threading.Event()

    def others() -> None:
        while not stop.is_set():
            held.append(timed([lambda: store.add(submission)])["p50_ms"])
            time.sleep(0.005)

    writer = threading.Thread(target=others)
    writer.start()
    began = time.perf_counter()
    gone = store.expire(max_age=math.inf, keep=60_000, keep_bytes=10**15)
    stop.set()
    writer.join()
    seconds = time.perf_counter() - began
    found[f"retention of {len(gone):,}"] = {"seconds": seconds, "longest_submission_meanwhile_ms": max(held)}
    found["retention, nothing to do"] = timed(
        [lambda: store.expire(max_age=math.inf, keep=60_000, keep_bytes=10**15)] * 5
    )
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        store, texts = JobStore(Path(scratch)), Texts()
        fill(store, texts)
        found = measure(store, texts)
        store.close()
    for name, numbers in found.items():
        print(f"{name:45} " + ", ".join(f"{key} {value:,.1f}" for key, value in numbers.items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
