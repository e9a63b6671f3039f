"""Abuses a real server within bounds, and measures how polls and memory fare beside it.

`python -m tests.abuse` prints a line for each kind of abuse: polls answered, their p50 and p99, the worst, and the
server's memory after it.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil

from tests.fake_engine import body
from tests.serving import Server

SECONDS = 4  # of each kind of abuse
MB = 1024**2
POST = b"POST /attribution/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


class Abuse:
    """Kinds of abuse, each for some seconds. All connections are without a key, and closed at the end."""

    def __init__(self, server, result):
        self._port = httpx.URL(server.url).port
        self._result = f"/attribution/jobs/{result}"

    def _connect(self, stack, sent=b""):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", self._port)))
        connection.settimeout(5)
        with suppress(OSError):  # closed by the server
            connection.sendall(sent)
        return connection

    def _again_and_again(self, sent):
        """Send this on new connections until the time is over, without reading."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            with ExitStack() as stack:
                self._connect(stack, sent)

    def _open(self, count, sent):
        """Hold so many connections that have sent this."""
        with ExitStack() as stack:
            for _ in range(count):
                self._connect(stack, sent)
            time.sleep(SECONDS)

    def nothing(self):
        time.sleep(SECONDS)

    def one_header_of_40_mb(self):
        self._again_and_again(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 40 * MB)

    def many_small_headers(self):
        self._again_and_again(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"a:\r\n" * 16_000)

    def chunks_of_one_byte(self):
        self._again_and_again(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 40_000)

    def no_http(self):
        self._again_and_again(b"\x16\x03\x01" * 1000 + b"\r\n\r\n")

    def pipelined_requests(self):
        self._again_and_again(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 5000)

    def unfinished_bodies_of_4_mb(self):
        self._open(60, POST + b"Content-Length: 4000000\r\n\r\n" + b" " * 3_999_999)

    def unfinished_headers(self):
        self._open(500, b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nX:")

    def silent_connections(self):
        self._open(2000, b"")

    def unread_results(self):
        self._open(20, f"GET {self._result}/results HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())

    def unread_events(self):
        self._open(20, f"GET {self._result}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())


KINDS = [name for name in vars(Abuse) if not name.startswith("_")]


class Polls:
    """Polls a job a hundred times a second on one connection, and measures each answer in milliseconds."""

    def __init__(self, server, job_id):
        self._server, self._job_id = server, job_id
        self.milliseconds: list[float] = []
        self.failed = 0

    def __enter__(self):
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _poll(self):
        with httpx.Client(base_url=self._server.url, timeout=60) as client:
            while not self._stop.wait(0.01):
                began = time.perf_counter()
                try:
                    answer = client.get(f"/attribution/jobs/{self._job_id}")
                except httpx.TransportError:
                    self.failed += 1
                    continue
                self.failed += answer.status_code != 200
                self.milliseconds.append((time.perf_counter() - began) * 1000)

    def percentile(self, share):
        return sorted(self.milliseconds)[int(share * (len(self.milliseconds) - 1))]


def abuse(server, kinds=KINDS, say=print):
    """Abuse the server in each way. Returns its memory before and after in bytes, and the number of failed polls."""
    process = psutil.Process(server.pid)
    small = server.run(**body("hello"))
    abuser = Abuse(server, server.run(**body("x" * 3_000_000)))
    failed = 0
    # The first round grows what any server keeps: buffers, threads, the allocator's arenas. The second must add nothing.
    memory = []
    for is_measured in (False, True):
        for kind in kinds:
            with Polls(server, small) as polls:
                getattr(abuser, kind)()
            failed += polls.failed
            if is_measured:
                say(
                    f"{kind.replace('_', ' '):28} {len(polls.milliseconds):5} polls, p50 {polls.percentile(0.5):6.1f} ms, "
                    f"p99 {polls.percentile(0.99):6.1f} ms, worst {polls.percentile(1):6.0f} ms, "
                    f"{process.memory_info().rss / MB:6.0f} MB, {polls.failed} failed"
                )
        time.sleep(12)  # connections are dropped, and freed memory is given back
        memory.append(process.memory_info().rss)
    say(f"memory after the first round {memory[0] / MB:.0f} MB, after the second {memory[1] / MB:.0f} MB")
    return *memory, failed


def main():
    with Server(Path(tempfile.mkdtemp()), module="tests.fake_engine", INSEQ_API_STALL_TIMEOUT_SECONDS="3") as server:
        print(f"memory at the start {psutil.Process(server.pid).memory_info().rss / MB:.0f} MB")
        abuse(server, sys.argv[1:] or KINDS)


if __name__ == "__main__":
    main()
