"""Measures the service under load: `python -m benchmarks.load`.

A real server on loopback, whose workers run integrated gradients throughout: latency of status polls at 100 a second,
durable submissions per second, 1,000 concurrent event streams, memory over 1,000 jobs. The last line is JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

from tests.serving import Server

_LONG = {"model": "lookup-gpt2", "method": "integrated_gradients", "n_steps": 2000, "internal_batch_size": 20,
         "input_text": " ".join(["Anna likes tea. Ben likes milk."] * 20),
         "generation_args": {"max_new_tokens": 16, "min_new_tokens": 16}}  # fmt: skip
_SHORT = {
    "model": "lookup-gpt2",
    "method": "dummy",
    "input_text": "Anna likes",
    "generation_args": {"max_new_tokens": 1},
}


async def polls(client: httpx.AsyncClient, url: str, *, rate: int, seconds: float) -> dict[str, float]:
    """Latency of status polls sent at a steady rate, independent of the responses."""
    taken: list[float] = []

    async def poll() -> None:
        began = time.perf_counter()
        (await client.get(url)).raise_for_status()
        taken.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        began = time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            group.create_task(poll())
    cuts = statistics.quantiles(taken, n=100)
    return {"per_second": rate, "p50_ms": 1000 * cuts[49], "p99_ms": 1000 * cuts[98]}


async def submissions(server: Server, *, count: int, at_once: int) -> dict[str, float]:
    """Accepted jobs per second, each synced to disk before its response, and processor time per job of both sides.

    The client shares the cores with the server, so it writes prepared bytes to a socket: a client library would use as
    much processor time as the server.
    """
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(_SHORT).encode()
    head = f"POST /attribution/jobs HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    numbers = iter(range(count))
    taken: list[float] = []

    async def submit() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in numbers:
            began = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 202"), answer
            await reader.readexactly(int(answer.lower().partition(b"content-length:")[2].split()[0]))
            taken.append(time.perf_counter() - began)
        writer.close()

    began, own, theirs = time.perf_counter(), time.process_time(), _thread_seconds(server)
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(submit())
    seconds, own = time.perf_counter() - began, time.process_time() - own
    # The busiest thread is the worker, which runs a job; the others serve requests.
    *answering, _ = sorted(now - theirs.get(thread, 0) for thread, now in _thread_seconds(server).items())
    cuts = statistics.quantiles(taken, n=100)
    return {
        "count": count,
        "at_once": at_once,
        "per_second": count / seconds,
        "p50_ms": 1000 * cuts[49],
        "p99_ms": 1000 * cuts[98],
        "server_cpu_ms_each": 1000 * sum(answering) / count,
        "client_cpu_ms_each": 1000 * own / count,
        "client_share_of_a_core_percent": 100 * own / seconds,
    }


def _thread_seconds(server: Server) -> dict[str, float]:
    """Processor time of each of the server's threads so far (Linux)."""
    seconds = {}
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        seconds[task.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


async def streams(client: httpx.AsyncClient, job_id: str, *, count: int) -> dict[str, float]:
    """Open event streams of one running job at the same time, and measure the latency of polls meanwhile."""
    opened = 0

    async def watch(enough: asyncio.Event) -> None:
        nonlocal opened
        async with client.stream("GET", f"/attribution/jobs/{job_id}/events") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    opened += 1
                    break
            await enough.wait()

    enough = asyncio.Event()
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(watch(enough))
        while opened < count:  # noqa: ASYNC110 - polled, as a client would
            await asyncio.sleep(0.05)
        seconds = time.perf_counter() - began
        during = await polls(client, f"/attribution/jobs/{job_id}", rate=50, seconds=4)
        enough.set()
    return {"count": count, "seconds_to_open": seconds, "poll_p99_ms": during["p99_ms"]}


async def memory(client: httpx.AsyncClient, *, jobs: int) -> dict[str, float]:
    """Resident bytes of the server after a warm-up, and after `jobs` more jobs."""
    sizes = []
    for count in (200, jobs):
        for _ in range(count // 100):
            ids = [(await client.post("/attribution/jobs", json=_SHORT)).json()["job_id"] for _ in range(100)]
            while (await client.get(f"/attribution/jobs/{ids[-1]}?wait=60")).json()["status"] != "completed":
                pass
        text = (await client.get("/metrics")).text
        sizes.append(next(
            sample.value for metric in text_string_to_metric_families(text) for sample in metric.samples
            if sample.name == "process_resident_memory_bytes"
        ))  # fmt: skip
    return {"jobs": jobs, "warm_bytes": sizes[0], "bytes": sizes[1], "growth_percent": 100 * (sizes[1] / sizes[0] - 1)}


async def measure(server: Server) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=1200, max_keepalive_connections=1200)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=120) as client:
        found: dict[str, Any] = {"memory": await memory(client, jobs=1000)}
        busy = (await client.post("/attribution/jobs", json=_LONG)).json()["job_id"]
        for _ in range(3):
            await client.post("/attribution/jobs", json=_LONG)
        while (await client.get(f"/attribution/jobs/{busy}")).json()["progress"]["stage"] != "attributing":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        found["polls"] = await polls(client, f"/attribution/jobs/{busy}", rate=100, seconds=15)
        found["streams"] = await streams(client, busy, count=1000)
        found["submissions_busy"] = await submissions(server, count=1500, at_once=20)
        assert (await client.get(f"/attribution/jobs/{busy}")).json()["status"] == "running", (
            "the workers were not busy"
        )
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, Server(Path(scratch)) as server:
        found = asyncio.run(measure(server))
        for job in server.client.get("/attribution/jobs?status=running").json()["jobs"]:
            server.client.post(job["links"]["cancel"])
    for name, numbers in found.items():
        print(f"{name:18} " + ", ".join(f"{key} {value:,.1f}" for key, value in numbers.items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
