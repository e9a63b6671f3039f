"""Bounds of a connection, on a real server with API keys: size, time, number, and what a key opens while it is valid."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress

import httpx
import psutil
import pytest

from jobs.store.api_keys import ApiKeys
from tests.abuse import MB, abuse
from tests.fake_engine import body
from tests.serving import Server, until

CONNECTIONS = 40
LARGE = "x" * 3_000_000  # the text of a job whose document and result fill every buffer on the way


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("door")
    _, secret = ApiKeys.of(data_dir).create("ann")
    with Server(
        data_dir,
        module="tests.fake_engine",
        INSEQ_API_SHUTDOWN_GRACE_SECONDS="0",
        INSEQ_API_HEADER_TIMEOUT_SECONDS="2",
        INSEQ_API_STALL_TIMEOUT_SECONDS="3",
        INSEQ_API_MAX_CONNECTIONS=str(CONNECTIONS),
    ) as running:
        running.client.headers["Authorization"] = f"Bearer {secret}"
        yield running


@contextmanager
def connected(server, *sent, receive_buffer=None):
    """A connection that has sent these bytes."""
    with socket.socket() as connection:
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(120)
        connection.connect(("127.0.0.1", httpx.URL(server.url).port))
        for each in sent:
            connection.sendall(each)
        yield connection


def rest(connection):
    """Everything until the server closes the connection."""
    received = bytearray()
    try:
        while piece := connection.recv(1 << 20):
            received += piece
    except ConnectionResetError:
        pass
    return bytes(received)


def head(server, method, path, *lines):
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines]
    return "\r\n".join(lines).encode() + b"\r\n"


def key_of(server):
    return f"Authorization: {server.client.headers['Authorization']}"


def post(server, length):
    return head(
        server, "POST", "/attribution/jobs", key_of(server), "Content-Type: application/json", f"Content-Length: {length}"
    ) + b"\r\n"  # fmt: skip


def assert_refused(answer, status, slug):
    """The bytes are one response: this problem, and the end of the connection."""
    start, _, content = answer.partition(b"\r\n\r\n")
    lines = start.decode().lower().split("\r\n")
    assert lines[0].startswith(f"http/1.1 {status} "), answer[:200]
    assert "content-type: application/problem+json" in lines
    assert "connection: close" in lines
    found = json.loads(content)
    assert (found["type"], found["status"]) == (f"/problems/{slug}", status)
    assert found["detail"]


@pytest.mark.parametrize(
    "lines",
    [["X: " + "a" * 70_000], ["X: a"] * 300, [f"X-{number}: {'a' * 5000}" for number in range(15)]],
    ids=["one header", "many small headers", "several headers"],
)
def test_headers_are_bounded(door, lines):
    with connected(door, head(door, "GET", "/health/live", *lines) + b"\r\n") as connection:
        assert_refused(rest(connection), 431, "headers-too-large")


def test_a_header_that_never_ends_is_refused(door):
    sent = 0
    with connected(door, head(door, "GET", "/health/live") + b"X: ") as connection:
        try:
            for _ in range(10_000):
                connection.sendall(b"a" * 4096)
                sent += 4096
        except OSError:  # closed
            pass
        assert sent < 40_000_000
    assert door.client.get("/health/live").status_code == 200


def test_trailers_are_bounded_and_are_no_headers(door):
    start = head(
        door, "POST", "/attribution/jobs", "Content-Type: application/json", "Transfer-Encoding: chunked", key_of(door)
    )
    content = json.dumps(body("hello")).encode()
    chunk = b"\r\n%x\r\n%b\r\n0\r\n" % (len(content), content)
    with connected(door, start + chunk + b"X: " + b"a" * 70_000 + b"\r\n\r\n") as connection:
        assert_refused(rest(connection), 431, "headers-too-large")
    with connected(door, start + chunk + b"Host: evil\r\n\r\n") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 202 ")


def test_headers_and_bodies_must_arrive_in_time(door):
    with (
        connected(door) as silent,
        connected(door, b"GET /health/live HT") as slow_head,
        connected(door, post(door, 1000), b"{") as slow_body,
    ):
        assert rest(silent) == b""
        assert_refused(rest(slow_head), 408, "request-timed-out")
        assert_refused(rest(slow_body), 408, "request-timed-out")


def test_a_body_that_arrives_slowly_is_received(door):
    """It takes longer than the stall time, and makes progress in it."""
    content = json.dumps(body("x" * 40_000)).encode()
    pause = threading.Event()
    with connected(door, post(door, len(content))) as connection:
        for start in range(0, len(content), 2048):
            connection.sendall(content[start : start + 2048])
            pause.wait(0.25)
        assert connection.recv(100).startswith(b"HTTP/1.1 202 ")


def test_what_is_no_http_is_a_problem(door):
    for sent in (b"FOO /\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n",
                 head(door, "POST", "/attribution/jobs", "Content-Length: 3", "Content-Length: 4") + b"\r\n"):  # fmt: skip
        with connected(door, sent) as connection:
            assert_refused(rest(connection), 400, "malformed-request")
    # A complete request before it is answered first.
    with connected(door, head(door, "GET", "/health/live") + b"\r\nFOO /\r\n\r\n") as connection:
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_an_upgrade_is_not_made(door):
    with connected(
        door, head(door, "GET", "/health/live", "Connection: upgrade", "Upgrade: websocket") + b"\r\n"
    ) as each:
        assert rest(each).startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_bounded_and_answered_in_order(door):
    one = head(door, "GET", "/health/live") + b"\r\n"
    with connected(door, one * 5 + head(door, "GET", "/nowhere", "Connection: close") + b"\r\n") as connection:
        answers = rest(connection).split(b"HTTP/1.1 ")[1:]
    assert [each[:3] for each in answers] == [b"200"] * 5 + [b"404"]
    with connected(door, one * 5000) as connection:
        assert rest(connection).count(b"HTTP/1.1 200") < 100


def test_a_client_that_closes_while_it_pipelines_is_no_failure(door):
    for _ in range(20):
        with connected(door, (head(door, "GET", "/attribution/methods", key_of(door)) + b"\r\n") * 10):
            pass
    assert door.client.get("/health/live").status_code == 200
    assert "Traceback" not in door.log


def test_the_key_is_checked_before_the_body_is_read(door):
    """The refusal comes although no byte of the body does."""
    for key in ([], ["Authorization: Bearer nonsense"]):
        start = head(
            door, "POST", "/attribution/jobs", "Content-Type: application/json", "Content-Length: 4000000", *key
        )
        with connected(door, start + b"\r\n") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 401 ")
    # A client that sends its body first can read the refusal, and use the connection again.
    with httpx.Client(base_url=door.url) as client:
        answer = client.post("/attribution/jobs", json=body("x" * 1_000_000))
        assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthorized")
        assert client.get("/health/live").status_code == 200


def test_silent_connections_make_room_for_new_ones(door):
    with ExitStack() as stack:
        for _ in range(3 * CONNECTIONS):
            stack.enter_context(connected(door))
        with httpx.Client(base_url=door.url) as client:
            assert client.get("/health/live").status_code == 200


def test_connections_beyond_the_cap_are_refused(door):
    """Those that are answered keep their place; a new one is refused."""
    job_id = door.submit(**body("hold"))
    watched = head(door, "GET", f"/attribution/jobs/{job_id}/events", key_of(door)) + b"\r\n"
    with ExitStack() as stack:
        streams = [stack.enter_context(connected(door, watched)) for _ in range(CONNECTIONS)]
        for stream in streams[:-1]:
            assert stream.recv(100).startswith(b"HTTP/1.1 200 ")
        with connected(door) as connection:
            assert_refused(rest(connection), 503, "server-busy")
    until(lambda: door.client.post(f"/attribution/jobs/{job_id}/cancel").status_code == 202)
    door.wait(job_id)


def test_connections_leave_files_for_the_rest(tmp_path):
    """Of 300 descriptors, connections that nobody uses take no more than half: a job is stored, run and read."""
    limited = ["sh", "-c", 'ulimit -n 300; exec "$@"', "sh"]
    with Server(tmp_path, module="tests.fake_engine", command=limited) as server, ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(connected(server))
        job_id = server.run(**body("hello"))
        assert server.client.get(f"/attribution/jobs/{job_id}/results").status_code == 200
        assert psutil.Process(server.pid).num_fds() < 300


def test_bodies_that_wait_for_their_end_are_bounded_together(tmp_path):
    """Sixteen of the largest are received at once. One more is refused, and the others are complete when they end."""
    size = 4_000_000  # nearly the largest
    text = json.dumps(body("hello")).encode()
    with Server(tmp_path, module="tests.fake_engine", INSEQ_API_STALL_TIMEOUT_SECONDS="600") as server:
        start = head(server, "POST", "/attribution/jobs", "Content-Type: application/json", f"Content-Length: {size}")
        unfinished = start + b"\r\n" + text.ljust(size - 1)
        with ExitStack() as stack:
            waiting = [stack.enter_context(connected(server, unfinished)) for _ in range(16)]
            answer = b""
            while not answer:  # until the server has received all of the others
                with connected(server, unfinished) as one_more, suppress(TimeoutError):
                    one_more.settimeout(1)
                    answer = one_more.recv(1 << 20)
            assert answer.startswith(b"HTTP/1.1 503 ")
            for each in waiting:
                each.sendall(b" ")
                assert each.recv(100).startswith(b"HTTP/1.1 202 ")


@pytest.mark.parametrize("path", ["events", "results"])
def test_a_response_that_is_not_read_is_dropped(door, path):
    job_id = door.submit(**body(LARGE))
    door.wait(job_id)
    asked = head(door, "GET", f"/attribution/jobs/{job_id}/{path}", key_of(door)) + b"\r\n"
    with connected(door, asked, receive_buffer=4096) as connection:
        connection.recv(1, socket.MSG_PEEK)
        until(lambda: connections(door) == 0)
        assert len(rest(connection)) < len(LARGE)


def connections(server):
    """How many connections the server's process has."""
    return sum(each.status == psutil.CONN_ESTABLISHED for each in psutil.Process(server.pid).net_connections("tcp"))


def test_tiny_chunks_are_refused(door):
    """They take the parser as long as a body of many times their size."""
    start = head(
        door, "POST", "/attribution/jobs", "Content-Type: application/json", "Transfer-Encoding: chunked", key_of(door)
    )
    with connected(door, start + b"\r\n" + b"1\r\n \r\n" * 2000) as connection:
        assert_refused(rest(connection), 400, "malformed-request")


@pytest.mark.slow
def test_abuse_of_all_kinds_keeps_no_memory_and_fails_no_poll(tmp_path, capsys):
    with (
        capsys.disabled(),
        Server(tmp_path, module="tests.fake_engine", INSEQ_API_STALL_TIMEOUT_SECONDS="3") as server,
    ):
        print()
        before, after, failed = abuse(server)
        assert "Traceback" not in server.log
    assert failed == 0
    assert after < 1.1 * before + 32 * MB  # so much may be free and not given back


def test_a_revoked_key_ends_what_waits_for_a_job(door):
    keys = ApiKeys.of(door.data_dir)
    key, secret = keys.create("ben")
    with httpx.Client(base_url=door.url, headers={"Authorization": f"Bearer {secret}"}, timeout=120) as ben:
        job_id = ben.post("/attribution/jobs", json=body("hold")).json()["job_id"]
        answers = []
        poll = threading.Thread(
            target=lambda: answers.append(ben.get(f"/attribution/jobs/{job_id}", params={"wait": 60}))
        )
        with ben.stream("GET", f"/attribution/jobs/{job_id}/events") as stream:
            lines = stream.iter_lines()
            while not next(lines).startswith("data:"):
                pass
            poll.start()
            assert keys.revoke(key.key_id)
            assert not any(line.startswith("data:") and "cancelled" in line for line in lines)  # it ends
        poll.join(120)
        assert [answer.status_code for answer in answers] == [401]
        assert ben.get(f"/attribution/jobs/{job_id}").status_code == 401
