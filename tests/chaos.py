"""Real jobs from several clients while the server is killed, the disk fills up and result files are damaged."""

from __future__ import annotations

import random
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from tests import reference
from tests.conftest import BUNDLED, LOOKUP
from tests.full_disk import small_disk_or_folder
from tests.serving import Server

_TEXTS = ("Anna likes tea. Ben likes milk. Anna likes", "Ben likes milk. Anna likes tea. Ben likes")
_METHODS = {"saliency": {}, "input_x_gradient": {}, "integrated_gradients": {"n_steps": 60}, "occlusion": {}}
KINDS = [(text, method) for text in _TEXTS for method in _METHODS]
ATTEMPTS = 4


def wanted(kind):
    text, method = KINDS[kind]
    return {"model": LOOKUP, "method": method, "input_text": text, **_METHODS[method]}


class Chaos:
    """A server, and the jobs that its clients know it accepted."""

    def __init__(self, disk, seed=1):
        self.disk = disk
        self.random = random.Random(seed)
        self.server = Server(
            disk.path / "data", INSEQ_API_MAX_ATTEMPTS=str(ATTEMPTS), INSEQ_API_SHUTDOWN_GRACE_SECONDS="20"
        )
        self.accepted: dict[str, tuple[int, str]] = {}  # by idempotency key: the index in KINDS, and the job's id
        self.refused = 0
        self.stopped = threading.Event()
        self.damaged: set[str] = set()

    def client(self, index, jobs):
        """Submit jobs one after another; repeat each with the same idempotency key until it is accepted."""
        numbers, http = random.Random(index), httpx.Client(timeout=60)
        for number in range(jobs):
            kind, key = numbers.randrange(len(KINDS)), f"{index}-{number}"
            while not self.stopped.is_set():
                try:
                    answer = http.post(
                        f"{self.server.url}/attribution/jobs",
                        json=wanted(kind),
                        headers={"Idempotency-Key": key},
                    )
                except httpx.HTTPError:
                    time.sleep(0.3)
                    continue
                if answer.status_code == 202:
                    job_id = answer.json()["job_id"]
                    assert self.accepted.setdefault(key, (kind, job_id)) == (kind, job_id)
                    if numbers.random() < 0.2:  # submit it again, as a client does that received no response
                        continue
                    break
                assert answer.status_code in {429, 503, 507}, answer.text
                assert answer.headers["content-type"] == "application/problem+json"
                self.refused += 1
                time.sleep(0.2)

    def run(self, *, clients, jobs, kills):
        self.server.start()
        threads = [threading.Thread(target=self.client, args=(index, jobs)) for index in range(clients)]
        for thread in threads:
            thread.start()
        for number in range(kills):
            time.sleep(self.random.uniform(0.3, 1.5))
            if number % 2 == 0:
                self.disk.fill()
                time.sleep(0.7)
                if number % 4 == 0:  # kill it while the disk is full; otherwise after room is made
                    self.server.kill()
                self.disk.make_room()
            self.server.kill()
            self.server.start()
        for thread in threads:
            thread.join(600)
            assert not thread.is_alive()

    def damage_some(self, count):
        """Flip a byte of some results, cut others, remove others."""
        files = sorted((self.disk.path / "data" / "results").iterdir())
        for number, file in enumerate(self.random.sample(files, count)):
            content = file.read_bytes()
            if number % 3 == 2:
                file.unlink()
            else:
                place = self.random.randrange(len(content))
                flipped = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
                file.write_bytes(flipped if number % 3 else content[:place])
            self.damaged.add(file.name)

    def check(self):
        """Check that accepted jobs have ended, intact results equal Inseq's, and damaged ones are reported as such."""
        ours = {job_id: self.server.wait(job_id) for _, job_id in self.accepted.values()}
        self.damage_some(min(12, len(ours) // 3))
        theirs = [
            reference.attribute(BUNDLED / LOOKUP, text, method, **_METHODS[method])
            .sequence_attributions[0].target_attributions.numpy()
            for text, method in KINDS
        ]  # fmt: skip
        completed = told = 0
        for kind, job_id in self.accepted.values():
            job = ours[job_id]
            assert job["attempt"] <= ATTEMPTS
            if job["status"] == "failed":  # it was running at every kill, or the disk was full when it ended
                assert job["error"]["type"] in {"/problems/interrupted", "/problems/storage-failed"}, job["error"]
                continue
            assert job["status"] == "completed"
            answer = self.server.client.get(f"/attribution/jobs/{job_id}/results?granular=true")
            if f"{job_id}.{job['attempt']}.raw" in self.damaged:
                assert (answer.status_code, answer.json()["type"]) == (410, "/problems/result-damaged")
                told += 1
                continue
            found = np.array(answer.json()["sequence_attributions"][0]["target_attributions"], float)
            np.testing.assert_allclose(found, theirs[kind], rtol=1e-4, atol=1e-6)
            completed += 1
        assert told
        assert completed > 0.7 * len(ours)
        self.server.kill()
        self.server.start()  # the start deletes orphaned result files
        assert self.server.stop() == 0
        with sqlite3.connect(self.disk.path / "data" / "jobs.sqlite3") as connection:
            statuses = {row[0] for row in connection.execute("SELECT DISTINCT status FROM jobs")}
            rows = dict(connection.execute("SELECT idempotency_key, job_id FROM jobs").fetchall())
            names = {row[0] for row in connection.execute("SELECT name FROM result_files")}
        assert statuses <= {"completed", "failed"}
        assert rows == {key: job_id for key, (_, job_id) in self.accepted.items()}  # no job is lost or duplicated
        left = {file.name for file in (self.disk.path / "data" / "results").iterdir()}
        assert left <= names
        assert names - left <= self.damaged


def main():
    """`python -m tests.chaos 200 1500`: so many kills while so many jobs come, on the disk of the temporary folder."""
    kills, jobs = map(int, sys.argv[1:])
    with small_disk_or_folder(Path(tempfile.mkdtemp()) / "disk", megabytes=256) as disk:
        chaos = Chaos(disk)
        chaos.run(clients=8, jobs=jobs // 8, kills=kills)
        chaos.check()
        print(f"{kills} kills, {len(chaos.accepted)} jobs accepted, {chaos.refused} refusals; none lost, none doubled")


if __name__ == "__main__":
    main()
