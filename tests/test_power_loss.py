"""After a power loss at any moment, the store has every job and every result that a client was told of."""

from __future__ import annotations

import random
import shutil

import pytest

from jobs.store.job_store import JobStore
from jobs.store.records import ALL_OWNERS
from models import JobStatus
from tests import power_loss
from tests.store_driver import ERROR

pytestmark = pytest.mark.skipif(not power_loss.can_trace(), reason="strace is not installed, or may not trace")


def survives(told, doing, data_dir):
    """A store opens after the power loss, and has what the clients were told."""
    store = JobStore(data_dir)
    try:
        store.recover(3, lambda job: ERROR)
        last = {}
        for line in told:
            what, job_id = line.split()
            last[job_id] = what
        for job_id, what in last.items():
            job = store.get(job_id, ALL_OWNERS)
            if what == "deleted":
                assert job is None
                continue
            if job is None:
                assert doing == f"deleted {job_id}\n"
                continue
            if what in {"completed", "failed"}:
                assert job.status.value == what
            files = store.files(job_id)
            contents = {kind: store.read(file) for kind, file in files.items()}  # verified by checksum
            if job.status is JobStatus.COMPLETED:
                text = job.request.inputs[0].encode()
                assert contents == ({} if job.expired_at else {"raw": text * 500, "summary": text})
            elif job.status is JobStatus.FAILED:
                assert contents == ({} if job.expired_at else {"raw": b"partial" * 500, "summary": b"partial"})
        assert not (data_dir / "results" / "set-aside").exists()  # every file is explained
        assert not any((data_dir / "results").glob(".*"))
    finally:
        store.close()


def lose_power(tmp_path, *, jobs, moments, seed=1):
    """Record a run, and lose the power at this many moments of it; returns how many states were checked."""
    data_dir = tmp_path / "data"
    calls = power_loss.record(tmp_path, "tests.store_driver", str(data_dir), str(jobs))
    rng = random.Random(seed)
    disk = power_loss.Disk(data_dir)
    relevant = [index for index, call in enumerate(calls) if disk.apply(call)]
    everything = disk.told
    assert len(everything) > jobs
    chosen = set(rng.sample(relevant, min(moments, len(relevant))))
    disk, states = power_loss.Disk(data_dir), 0
    for index, call in enumerate(calls):
        disk.apply(call)
        was_told = call[0] == "write" and call[2][0] == "1"
        if index not in chosen and not (was_told and rng.random() < moments / len(everything) / 2):
            continue
        doing = everything[len(disk.told)] if len(disk.told) < len(everything) else None
        for keeps in ("nothing", "some"):
            target = tmp_path / f"after-{index}-{keeps}"
            disk.crash(target, rng, keeps=keeps)
            survives(disk.told, doing, target)
            shutil.rmtree(target)
            states += 1
    return states


def test_what_a_client_was_told_survives_a_power_loss(tmp_path):
    assert lose_power(tmp_path, jobs=12, moments=25) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_what_a_client_was_told_survives_a_power_loss_at_many_moments(tmp_path, seed):
    assert lose_power(tmp_path, jobs=60, moments=120, seed=seed) >= 240


def test_a_store_that_does_not_sync_is_found_out(tmp_path, monkeypatch):
    """The test of the test: with fsync of result files taken away, results are lost."""
    parsed = power_loss._parsed

    def without_syncs_of_results(line):
        call = parsed(line)
        return None if call and call[0] == "fsync" else call  # SQLite uses fdatasync

    monkeypatch.setattr(power_loss, "_parsed", without_syncs_of_results)
    with pytest.raises(Exception, match=r"gone from the disk|damaged|assert"):
        lose_power(tmp_path, jobs=12, moments=60)
