"""No row of the store harms the service: whatever is in its columns, it is shown, and all other jobs go on."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.store.job_store import JobStore
from jobs.store.listing import Filters
from jobs.store.records import Submission
from models import JobStatus, Problem, Progress, ResultPart
from settings import Settings
from tests.fake_engine import body, ended, in_process, request, submit
from tests.serving import Server, until

PARTS = [ResultPart("raw", "text", b"raw"), ResultPart("summary", "json+gzip", gzip.compress(b"{}"))]
ERROR = Problem(title="Failed", status=500, detail="because")
JOBS_COLUMNS = (
    "job_id", "status", "model", "method", "request", "progress", "error", "attempt", "created_at", "started_at",
    "finished_at", "cancel_requested", "idempotency_key", "fingerprint", "expired_at", "owner", "priority",
    "reuse_key", "reused_from", "kept_since",
)  # fmt: skip
COLUMNS = [
    *(("jobs", column) for column in JOBS_COLUMNS),
    *(("result_files", column) for column in ("job_id", "kind", "name", "codec", "size", "sha256")),
    *(("job_tags", column) for column in ("job_id", "name", "value", "seq", "owner")),
    ("retention_clock", "seconds"),
    ("removed_files", "name"),
    ("job_words_content", "c0"),
]
DEEP = "[" * 220 + "]" * 220


class Text(bytes):
    """Bytes that are stored as text, also if they are no UTF-8."""


garbage = st.one_of(
    st.text(max_size=20).filter(lambda text: max(text, default="a") < "\ud800"),
    st.binary(max_size=20),
    st.binary(max_size=20).map(Text),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.none(),
    st.sampled_from(
        ["", "{}", "null", "row-1", "../../x", "running", "pending", "completed", "9" * 400, DEEP, Text(b"\xff\xfe"),
         request().model_dump_json()[:-1] + f', "chat_template_args": {{"x": {DEEP}}}}}',
         request().model_dump_json()[:-1] + ', "added_later": 1}', 253402300800.0, 1e300, -1.0, 2**63 - 1]
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A data directory with a job in each status."""
    path = tmp_path_factory.mktemp("template")
    store = JobStore(path)
    for number in range(5):
        store.add(Submission(request(str(number), tags={"a": "b"}), f"key-{number}", reuse_key=f"{number} 0"))
        if number == 1:
            store.complete(store.claim(), PARTS, Progress())
            store.fail(store.claim(), ERROR, partial=PARTS)
    store.claim()  # the third job runs
    store.expire(max_age=10**9, keep=10, keep_bytes=10**9)
    with closing(sqlite3.connect(path / "jobs.sqlite3")) as connection, connection:
        connection.execute("INSERT INTO removed_files VALUES ('gone.1.raw')")
    store.close()
    return path


def spoil(data_dir, table, column, number, value):
    """Write a value into a column of one row; returns False if the database does not accept it."""
    written = f"CAST(x'{value.hex()}' AS TEXT)" if isinstance(value, Text) else "?"
    values = () if isinstance(value, Text) else (value,)
    with closing(sqlite3.connect(data_dir / "jobs.sqlite3", timeout=30)) as connection, connection:
        rowid = connection.execute(f"SELECT rowid FROM {table} ORDER BY rowid LIMIT 1 OFFSET ?", (number,)).fetchone()
        if rowid is None:
            return False
        try:
            connection.execute(f"UPDATE OR FAIL {table} SET {column} = {written} WHERE rowid = ?", (*values, *rowid))
        except sqlite3.IntegrityError:  # NULL where it is not allowed, or a value that another row has
            return False
    return True


def check_service(client, innocent):
    """Every operation of the service works, and the jobs with these texts complete."""

    def get(path, expected=200, **parameters):
        answer = client.get(path, params=parameters)
        assert answer.status_code < 500, (path, answer.text)
        assert answer.status_code == expected, (path, answer.text)
        return answer.json() if "json" in answer.headers["content-type"] else answer.text

    get("/health/ready")
    get("/metrics")
    new = submit(client, "new", reuse=True)
    assert ended(client, new)["status"] == "completed"
    for status in (None, *JobStatus):
        get("/attribution/jobs", limit=200, **({"status": status} if status else {}))
    get("/attribution/jobs", tag="a:b")
    get("/attribution/jobs", search="m")
    get("/attribution/jobs/facets")
    page, listed = get("/attribution/jobs", limit=2), []
    while True:
        listed += page["jobs"]
        if page["next_cursor"] is None:
            break
        page = get("/attribution/jobs", limit=2, cursor=page["next_cursor"])
    for job in listed:
        path = f"/attribution/jobs/{job['job_id']}"
        until(lambda path=path: get(path)["status"] != "pending")
        if (job["request"] or {}).get("input_text") in innocent:
            assert ended(client, job["job_id"])["status"] in {"completed", "failed"}
        for view in ({}, {"partial": True}, {"format": "inseq"}):
            answer = client.get(f"{path}/results", params=view)
            assert answer.status_code < 500 or answer.json()["type"] == "/problems/storage-failed", answer.text
        again = client.post("/attribution/jobs", json=body("other"), headers={"Idempotency-Key": "key-3"})
        assert again.status_code in {202, 422}
        assert client.patch(path, json={"name": "a", "tags": {"c": "d"}}).status_code in {200, 422}
        cancelled = client.post(f"{path}/cancel")
        assert cancelled.status_code in {202, 409}, cancelled.text
        ended(client, job["job_id"])
        assert client.delete(path).status_code == 204
        get(path, 404)
    store = client.app.state.services.store
    store.expire(max_age=10**9, keep=1, keep_bytes=10**9)
    assert store.active()[JobStatus.RUNNING] <= 1  # at most the one that was spoilt, with an owner that nobody is
    return listed


@pytest.mark.slow
@settings(max_examples=300)
@given(where=st.sampled_from(COLUMNS), number=st.integers(0, 4), value=garbage)
def test_a_server_starts_and_works_with_many_kinds_of_rows(template, where, number, value):
    start_with(template, where, number, value)


@settings(max_examples=2)
@given(where=st.sampled_from(COLUMNS), number=st.integers(0, 4), value=garbage)
@example(("jobs", "request"), 2, DEEP)  # running
@example(("jobs", "request"), 3, DEEP)  # pending
@example(("jobs", "status"), 3, "paused")
@example(("jobs", "job_id"), 3, b"\xff/..")
@example(("jobs", "job_id"), 2, Text(b"\xff\xfe"))
@example(("jobs", "owner"), 3, Text(b"\xff\xfe"))
@example(("jobs", "attempt"), 2, "many")
@example(("jobs", "attempt"), 3, 2**63 - 1)
@example(("jobs", "priority"), 3, "high")
@example(("jobs", "created_at"), 0, 1e300)
@example(("result_files", "name"), 0, "../jobs.sqlite3")
@example(("result_files", "size"), 0, 2**63 - 1)
@example(("job_words_content", "c0"), 0, Text(b"\xff\xfe"))
@example(("removed_files", "name"), 0, "")
@example(("removed_files", "name"), 0, Text(b"\xff\xfe"))
def test_a_server_starts_and_works_whatever_a_row_contains(template, where, number, value):
    start_with(template, where, number, value)


def start_with(template, where, number, value):
    """A server starts, works, and starts again on a data directory with this value in a column of a row."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        shutil.copytree(template, data_dir)
        spoil(data_dir, *where, number, value)
        with in_process(Settings(data_dir=data_dir)) as client:
            check_service(client, {"0", "1", "2", "3", "4"} - {str(number)})
        with in_process(Settings(data_dir=data_dir)) as client:
            assert client.get("/attribution/jobs").status_code == 200
        assert (data_dir / "jobs.sqlite3").exists()


@settings(max_examples=3)
@given(where=st.sampled_from(COLUMNS[: len(JOBS_COLUMNS)]), number=st.integers(0, 4), value=garbage)
@example(("jobs", "request"), 4, DEEP)
@example(("jobs", "status"), 4, "running")
def test_a_row_that_is_spoilt_while_the_server_runs_harms_no_other_job(template, where, number, value):
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        shutil.copytree(template, data_dir)
        with in_process(Settings(data_dir=data_dir)) as client:
            for text in "0123":
                submit(client, text)
            spoil(data_dir, *where, number, value)
            assert ended(client, submit(client, "new"))["status"] == "completed"
            assert client.get("/attribution/jobs").status_code == 200
            assert client.get("/health/ready").status_code == 200
        with in_process(Settings(data_dir=data_dir)) as client:
            check_service(client, {"0", "1", "2", "3"} - {str(number)})


@pytest.fixture
def spoilt(template, tmp_path):
    """A data directory in which the requests of the running and of one pending job cannot be read."""
    data_dir = tmp_path / "data"
    shutil.copytree(template, data_dir)
    assert spoil(data_dir, "jobs", "request", 2, request("2").model_dump_json()[:-1] + ', "added_later": 1}')
    assert spoil(data_dir, "jobs", "request", 3, "no JSON")
    return data_dir


def test_an_unreadable_job_fails_with_its_reason_and_is_listed(spoilt):
    with in_process(Settings(data_dir=spoilt)) as client:
        last = client.get("/attribution/jobs").json()["jobs"][0]
        assert ended(client, last["job_id"])["status"] == "completed"
        jobs = client.get("/attribution/jobs").json()["jobs"]
        assert [job["status"] for job in jobs] == ["completed", "failed", "failed", "failed", "completed"]
        for job, reason in ((jobs[1], "request: Invalid JSON"), (jobs[2], "added_later: Extra inputs")):
            assert job["request"] is None
            assert job["error"]["type"] == "/problems/job-unreadable"
            assert job["error"]["status"] == 500
            assert reason in job["error"]["detail"]
            assert "Submit it again" in job["error"]["detail"]
            assert client.get(f"/attribution/jobs/{job['job_id']}/results").json()["cause"] == job["error"]
        # The clients that wait for such a job learn its end.
        assert ended(client, jobs[1]["job_id"]) == jobs[1]


def test_an_unreadable_pending_job_can_be_cancelled_and_deleted(spoilt):
    store = JobStore(spoilt)
    job = next(job for job in store.page(Filters(owner=""), limit=9) if job.unreadable and job.attempt == 0)
    assert (job.status, job.request, job.error.type) == (JobStatus.PENDING, None, "/problems/job-unreadable")
    assert store.delete(job.job_id).status is JobStatus.PENDING
    assert store.request_cancel(job.job_id).status is JobStatus.CANCELLED
    assert store.delete(job.job_id).status is JobStatus.CANCELLED
    assert store.get(job.job_id, "") is None
    store.close()


def test_the_client_reads_a_list_with_an_unreadable_job(spoilt):
    from attribution_client import AttributionClient

    with Server(spoilt, module="tests.fake_engine") as server, AttributionClient(server.url) as client:
        until(lambda: not server.client.get("/attribution/jobs?status=pending").json()["jobs"])
        assert [job.request is None for job in client.jobs()] == [False, True, True, False, False]


# Bodies

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**30, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
nested = st.builds(
    lambda depth, is_list, leaf: json.loads(
        ("[" if is_list else '{"a":') * depth + json.dumps(leaf) + ("]" if is_list else "}") * depth
    ),
    st.integers(20, 400), st.booleans(), st.none() | st.integers(0, 9),
)  # fmt: skip
FREE = ("attribution_args", "attributed_fn_args", "step_scores_args", "generation_args", "chat_template_args")
free_form = st.dictionaries(st.sampled_from(FREE), st.dictionaries(st.text(max_size=5), values | nested, max_size=2))
strange = st.dictionaries(
    st.sampled_from([*FREE, "messages", "input_text", "tags", "seed", "timeout_seconds", "n_steps", "attr_pos_end"]),
    values | nested,
    max_size=3,
)
bodies = st.one_of(
    st.builds(lambda more, rest: body("hello", **more | rest), free_form, strange),
    st.builds(
        lambda more: {"model": "m", "method": "saliency", "messages": [{"role": "user", "content": "hi"}]} | more,
        free_form,
    ),
    values,
)


def send(client, content):
    headers = {"Content-Type": "application/json"}
    return client.post("/attribution/jobs", content=content, headers=headers)


def test_any_body_is_refused_or_accepted_for_good(tmp_path):
    """An accepted job can be read, listed, cancelled and deleted, also after a restart; no body causes a 5xx."""
    kept = set()
    with in_process(Settings(data_dir=tmp_path)) as client:

        @settings(max_examples=300)
        @given(bodies)
        def try_out(content):
            answer = send(client, json.dumps(content).encode("utf-8", "surrogatepass"))
            assert answer.status_code == 202 or 400 <= answer.status_code < 500, answer.text
            if answer.status_code == 202:
                kept.add(check_job(client, answer.json()))

        try_out()
        assert len(kept) > 20
    with in_process(Settings(data_dir=tmp_path)) as client:
        for job_id in kept:
            assert check_job(client, client.get(f"/attribution/jobs/{job_id}").json())
            assert client.delete(f"/attribution/jobs/{job_id}").status_code == 204
        assert client.get("/attribution/jobs").json()["jobs"] == []


def check_job(client: TestClient, job):
    """The job is what was accepted, in the list and by its id, and ends."""
    found = ended(client, job["job_id"])
    assert found["request"] == job["request"]
    assert found["request"] is not None
    client.post(f"/attribution/jobs/{job['job_id']}/cancel")
    assert client.get("/attribution/jobs", params={"limit": 1}).status_code == 200
    return job["job_id"]


@pytest.mark.parametrize("depth", [32, 198, 199, 240, 254, 255, 260, 500, 900])
def test_nesting_beyond_the_limit_is_refused_and_named(app, depth):
    deep = "[" * depth + "1" + "]" * depth
    answer = send(
        app,
        '{"model": "m", "method": "saliency", "messages": [{"role": "user", "content": "hi"}], '
        f'"chat_template_args": {{"x": {deep}}}}}',
    )
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/chat_template_args"
    assert "more than 32 levels deep" in error["detail"]


def test_nesting_within_the_limit_is_kept(app):
    args = {"x": json.loads("[" * 30 + "1" + "]" * 30)}
    message = [{"role": "user", "content": "hi"}]
    answer = app.post(
        "/attribution/jobs",
        json={"model": "m", "method": "saliency", "messages": message, "chat_template_args": args},
    )
    assert answer.status_code == 202, answer.text
    assert ended(app, answer.json()["job_id"])["request"]["chat_template_args"] == args


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("NaN", "finite number"), ("-Infinity", "finite number"), ("1e999", "finite number"),
        (str(2**63), "at most 64 bits"), (str(-(10**30)), "at most 64 bits"), ('"\\ud800"', "lone surrogate"),
        ('{"\\udfff": 1}', "lone surrogate"),
    ],
)  # fmt: skip
def test_what_json_cannot_carry_is_refused_and_named(app, value, complaint):
    answer = send(
        app,
        '{"model": "m", "method": "saliency", "messages": [{"role": "user", "content": "hi"}], '
        f'"chat_template_args": {{"x": [1, {value}]}}}}',
    )
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/chat_template_args/x/1"
    assert complaint in error["detail"]
