"""Finding and naming jobs: search, name, notes and tags, facets, and calls on several jobs; at the store and over HTTP."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from jobs.store.api_keys import ApiKeys
from jobs.store.job_store import JobStore
from jobs.store.listing import Filters
from jobs.store.records import Submission
from models import AttributionRequest, JobStatus, JobUpdate
from problems import InvalidRequest
from settings import Settings
from tests.fake_engine import body, ended, in_process, request, submit, until_running

CHAT = {"input_text": None, "messages": [{"role": "system", "content": "Be brief."},
                                         {"role": "user", "content": [{"type": "text", "text": "Why is milk white?"}]}]}  # fmt: skip


def found(store, search, owner="", **more):
    """The first texts of the jobs that a search finds, newest first."""
    listed = store.page(Filters(search=search, owner=owner, **more), limit=50)
    return [(job.request.inputs or ["chat"])[0] for job in listed]


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path)
    yield store
    store.close()


def add(store, text="hello", owner="", **more):
    return store.add(Submission(request(text, **more), owner=owner))[0]


def test_a_job_is_found_by_every_word_that_describes_it(store):
    add(store, "Anna likes TEA.")
    add(store, "named", name="Pilot study 7", notes="the first try,\nwith little data")
    add(store, "tagged", tags={"project": "gender-bias"})
    add(store, "org", model="org/SmolLM2-135M", method="input_x_gradient")
    add(store, "several", method=None, methods=["lime", "occlusion"])
    add(store, "with a target", generated_text="with a target of Tarragona")
    add(store, "chat", **CHAT)
    for search, expected in {
        "tea": ["Anna likes TEA."],
        "LIKES anna": ["Anna likes TEA."],
        "ann lik": ["Anna likes TEA."],
        "anna milk": [],
        "pilot 7": ["named"],
        "little": ["named"],
        "bias": ["tagged"],
        "project": ["tagged"],
        "smollm2-135m": ["org"],
        "gradient": ["org"],
        "occl": ["several"],
        "tarragona": ["with a target"],
        "milk white": ["chat"],
        "?!": [],
        "x y z": [],
        'tea" OR "named': [],
        "NOT tea": [],
    }.items():
        assert found(store, search) == expected, search
    assert len(found(store, "  ")) == 7  # a blank search is none
    job = add(store, "by its id")
    for length in (8, 32):
        assert found(store, job.job_id[:length].upper()) == ["by its id"]


@pytest.mark.parametrize(
    ("text", "hits", "misses"),
    [
        ("東京都に行く", ["京都", "東京", "行", "東京都"], ["京行", "大阪"]),
        ("ภาษาไทยยาก", ["ไทย", "ภาษา"], ["ลาว"]),
        ("हिन्दी में लिखा", ["हिन्दी", "हिन्द", "में"], ["उर्दू"]),
        ("Straße ΑΘΗΝΑ ﬁne", ["STRASSE", "αθηνα", "fine"], ["strase"]),
        ("cafe\u0301", ["café"], ["cafe"]),
        ("ab " * 30_000 + "behind", ["ab"], ["behind"]),  # the first 50,000 characters
        ("x" * 100, ["x" * 50, "x" * 100], ["x" * 39 + "y"]),
    ],
)
def test_words_of_all_scripts_are_found(store, text, hits, misses):
    add(store, text)
    for search in hits:
        assert found(store, search) == [text], search
    for search in misses:
        assert found(store, search) == [], search


def test_a_search_goes_with_the_other_filters_and_pages_like_them(store):
    for index in range(12):
        add(store, f"tea {index}", owner="ann", model="a" if index % 2 else "b", tags={"n": str(index % 3)})
        add(store, f"tea of ben {index}", owner="ben")
    assert found(store, "tea", "ann", model="b", tags=[("n", "0")]) == ["tea 6", "tea 0"]
    assert found(store, "tea", "ann", status=JobStatus.FAILED) == []
    assert found(store, "3", "ann") == ["tea 3"]
    first = store.page(Filters(search="tea", owner="ann"), limit=5)
    add(store, "tea 12", owner="ann")
    second = store.page(Filters(search="tea", owner="ann"), limit=5, before=first[-1].seq)
    assert [job.request.input_text for job in (*first, *second)] == [f"tea {index}" for index in range(11, 1, -1)]


def test_name_notes_and_tags_are_changed_and_found_by_what_they_are_now(store):
    job = add(store, "hello", name="old name", notes="old notes", tags={"a": "1", "b": "2"})
    other = add(store, "other", tags={"a": "1"})

    def update(**changes):
        return store.update(job.job_id, "", JobUpdate.model_validate(changes)).request

    changed = update(name=" new name ", tags={"b": None, "c": "3"})
    assert (changed.name, changed.notes, changed.tags) == ("new name", "old notes", {"a": "1", "c": "3"})
    assert found(store, "new") == found(store, "notes") == ["hello"]
    assert found(store, "old name") == ["hello"]  # "old" is in the notes
    assert (found(store, "", tags=[("b", None)]), found(store, "", tags=[("c", "3")])) == ([], ["hello"])
    assert found(store, "", tags=[("a", "1")]) == ["other", "hello"]
    changed = update(name=None, notes="", tags=None)
    assert (changed.name, changed.notes, changed.tags) == (None, None, {})
    assert found(store, "old") == found(store, "new") == []
    assert update().input_text == "hello"
    update(tags={str(index): "" for index in range(16)})
    with pytest.raises(InvalidRequest, match="at most 16 tags; with this change it would have 17"):
        update(tags={"one-more": ""})
    assert len(store.get(job.job_id, "").request.tags) == 16
    assert store.update(job.job_id, "ben", JobUpdate(name="x")) is None
    # What is deleted is not found.
    store.claim(), store.claim()
    for each in (job, other):
        assert store.cancel(store.get(each.job_id, ""))
        store.delete(each.job_id)
    assert found(store, "hello") == found(store, "other") == []


def test_a_change_leaves_the_request_what_it_was(store):
    key = Submission(request("hello", name="first"), "key")
    job, _ = store.add(key)
    store.update(job.job_id, "", JobUpdate(name="second", tags={"a": "b"}))
    again, is_new = store.add(key)  # as tags do: the key stands for the request that was sent
    assert (again.job_id, is_new, again.request.name) == (job.job_id, False, "second")
    assert store.claim().request == request("hello", name="second", tags={"a": "b"})


def test_facets_are_the_values_of_ones_own_jobs(store):
    assert store.facets("ann").model_dump() == {"models": [], "methods": [], "tags": {}}
    for number in range(120):
        add(store, owner="ann", model=f"m{number % 3}", tags={"run": f"{number:03}", "study": "bias"})
    add(store, owner="ann", method=None, methods=["saliency", "lime"])
    add(store, owner="ben", model="secret", tags={"secret": "yes"})
    facets = store.facets("ann")
    assert facets.models == ["m", "m0", "m1", "m2"]
    assert facets.methods == ["saliency", "saliency,lime"]
    assert facets.tags == {"run": [f"{number:03}" for number in range(100)], "study": ["bias"]}
    assert found(store, "", "ann", method="saliency,lime") == ["hello"]


def test_jobs_of_an_older_version_become_searchable(tmp_path):
    store = JobStore(tmp_path)
    with ThreadPoolExecutor(32) as pool:  # which share their commits
        list(pool.map(lambda number: add(store, f"text {number} likes tea", tags={"a": "b"}), range(1201)))
    store.close()
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as connection, connection:
        for table in ("job_words", "shares", "webhook_deliveries"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("UPDATE alembic_version SET version_num = '0006'")
        for seq, value in ((3, "no JSON"), (4, b"\xff"), (5, "[1]"), (6, '{"input_text": 7, "tags": [{"x": null}]}')):
            connection.execute("UPDATE jobs SET request = ? WHERE seq = ?", (value, seq))
    store = JobStore(tmp_path)
    try:
        assert found(store, "1150") == ["text 1150 likes tea"]
        assert len(store.page(Filters(search="tea b", owner=""), limit=2000)) == 1197
        (damaged,) = store.page(
            Filters(search=store.page(Filters(owner=""), limit=1, before=4)[0].job_id, owner=""), limit=9
        )
        assert damaged.unreadable
        with pytest.raises(InvalidRequest, match="cannot be read"):
            store.update(damaged.job_id, "", JobUpdate(name="x"))
    finally:
        store.close()


# Over HTTP


def names(client, **query):
    answer = client.get("/attribution/jobs", params=query)
    assert answer.status_code == 200, answer.text
    return [job["name"] for job in answer.json()["jobs"]]


def test_a_job_is_named_at_submission_or_later(app):
    job_id = submit(app, "hello", name="first", tags={"a": "1"})
    path = f"/attribution/jobs/{job_id}"
    job = ended(app, job_id)
    assert (job["name"], job["notes"], job["tags"], job["request"]["name"]) == ("first", None, {"a": "1"}, "first")
    merge_patch = {"Content-Type": "application/merge-patch+json"}
    changed = app.patch(path, content='{"notes": "seen", "tags": {"b": "2"}}', headers=merge_patch).json()
    assert (changed["name"], changed["notes"], changed["tags"]) == ("first", "seen", {"a": "1", "b": "2"})
    assert changed == app.get(path).json()
    assert changed["status"] == "completed"
    assert app.patch(path, json={"name": None}).json()["name"] is None
    # While it waits or runs, too.
    running = submit(app, "hold")
    until_running(app, running)
    assert app.patch(f"/attribution/jobs/{running}", json={"name": "now"}).json()["name"] == "now"
    app.app.state.services.engine.go_on.set()
    assert ended(app, running)["name"] == "now"
    for wrong, pointer in (
        ({"name": "x" * 201}, "/name"),
        ({"notes": 7}, "/notes"),
        ({"tags": {"a b": "x"}}, "/tags/a b"),
        ({"tags": {str(index): "" for index in range(17)}}, "/tags"),
    ):
        answer = app.patch(path, json=wrong)
        assert answer.status_code == 422, wrong
        assert answer.json()["errors"][0]["pointer"].startswith(pointer), answer.text
    for wrong, detail in (
        ({"model": "other"}, "There is no field 'model'. There are: name, notes, tags."),
        ({"note": "x"}, "There is no field 'note' (did you mean 'notes'?)."),
    ):
        (item,) = app.patch(path, json=wrong).json()["errors"]
        assert (item["pointer"], item["detail"]) == (f"/{next(iter(wrong))}", detail)
    assert app.patch(path, content='{"name": "\\ud800"}', headers=merge_patch).status_code == 422
    assert app.patch("/attribution/jobs/none", json={"name": "x"}).status_code == 404
    assert app.post("/attribution/jobs", content="{}", headers=merge_patch).status_code == 415
    assert "PATCH" in app.options(path).headers["allow"]


def test_jobs_are_searched_over_http(app):
    for name, text in (("one", "Anna likes tea"), ("two", "Ben likes milk"), ("three", "Carl")):
        ended(app, submit(app, text, name=name, tags={"about": name[0]}))
    assert names(app, search="likes") == ["two", "one"]
    assert names(app, search="likes", tag="about:o") == ["one"]
    assert names(app, search="likes", status="failed") == []
    page = app.get("/attribution/jobs", params={"search": "likes", "limit": 1}).json()
    assert names(app, search="likes", limit=1, cursor=page["next_cursor"]) == ["one"]
    assert app.get("/attribution/jobs", params={"search": "x" * 201}).status_code == 422
    facets = app.get("/attribution/jobs/facets").json()
    assert facets == {"models": ["m"], "methods": ["saliency"], "tags": {"about": ["o", "t"]}}


def test_names_do_not_change_what_is_reused(app):
    ended(app, submit(app, "hello", name="one", notes="x"))
    again = app.post("/attribution/jobs", json=body("hello", reuse=True, name="two")).json()
    assert (again["status"], again["name"]) == ("completed", "two")
    assert app.app.state.services.engine.runs == ["hello"]
    key = {"Idempotency-Key": "k"}
    assert app.post("/attribution/jobs", json=body("hello", name="one"), headers=key).status_code == 202
    assert app.post("/attribution/jobs", json=body("hello", name="two"), headers=key).status_code == 422  # as tags do


@pytest.mark.parametrize("action", ["cancel", "delete"])
def test_an_unknown_field_is_answered_with_those_of_its_own_body(app, action):
    answer = app.post(f"/attribution/jobs/{action}", json={"job_ids": ["x"], "model": "m"})
    assert [(each["pointer"], each["detail"]) for each in answer.json()["errors"]] == [
        ("/model", "There is no field 'model'. There are: job_ids.")
    ]


def outcomes(answer):
    assert answer.status_code == 200, answer.text
    return {
        each["job_id"]: (each["outcome"], each["error"] and each["error"]["status"])
        for each in answer.json()["outcomes"]
    }


def test_many_are_cancelled_and_deleted_in_one_call(app):
    done = submit(app, "hello")
    ended(app, done)
    running, waiting = submit(app, "hold"), submit(app, "hold")
    until_running(app, running)
    ids = [running, done, "none", waiting, running]
    deleted = app.post("/attribution/jobs/delete", json={"job_ids": [running, waiting]})
    assert outcomes(deleted) == {running: ("conflict", 409), waiting: ("conflict", 409)}
    assert "cancel it first" in deleted.json()["outcomes"][0]["error"]["detail"]
    expected = {running: ("done", None), done: ("conflict", 409), "none": ("not_found", 404), waiting: ("done", None)}
    assert outcomes(app.post("/attribution/jobs/cancel", json={"job_ids": ids})) == expected
    assert [ended(app, each)["status"] for each in (running, waiting)] == ["cancelled", "cancelled"]
    expected = {running: ("done", None), done: ("done", None), "none": ("not_found", 404), waiting: ("done", None)}
    assert outcomes(app.post("/attribution/jobs/delete", json={"job_ids": ids})) == expected
    assert names(app) == []
    for wrong in ([], [str(index) for index in range(201)], ["x" * 33]):
        assert app.post("/attribution/jobs/delete", json={"job_ids": wrong}).status_code == 422


def test_jobs_of_another_key_are_neither_found_nor_changed(tmp_path):
    keys = ApiKeys.of(tmp_path)
    ann, ben = ({"Authorization": f"Bearer {keys.create(name)[1]}"} for name in ("ann", "ben"))
    with in_process(Settings(data_dir=tmp_path)) as client:
        job_id = client.post(
            "/attribution/jobs", json=body("secret", name="mine", tags={"of": "ann"}), headers=ann
        ).json()["job_id"]
        client.get(f"/attribution/jobs/{job_id}", params={"wait": 60}, headers=ann)
        path = f"/attribution/jobs/{job_id}"
        assert client.patch(path, json={"name": "stolen"}, headers=ben).status_code == 404
        for action in ("cancel", "delete"):
            answer = client.post(f"/attribution/jobs/{action}", json={"job_ids": [job_id]}, headers=ben)
            assert outcomes(answer) == {job_id: ("not_found", 404)}
        for search in ("secret", job_id):
            query = {"search": search}
            assert client.get("/attribution/jobs", params=query, headers=ben).json()["jobs"] == []
            assert len(client.get("/attribution/jobs", params=query, headers=ann).json()["jobs"]) == 1
        assert client.get("/attribution/jobs/facets", headers=ben).json() == {"models": [], "methods": [], "tags": {}}
        assert client.get(path, headers=ann).json()["name"] == "mine"


def test_a_name_is_what_a_request_and_an_update_make_of_it():
    assert AttributionRequest(**body("x"), name="  a  b ").name == "a  b"
    assert AttributionRequest(**body("x"), name=" ", notes="").model_dump(include={"name", "notes"}) == {
        "name": None,
        "notes": None,
    }
    assert JobUpdate(name="").model_fields_set == {"name"}
