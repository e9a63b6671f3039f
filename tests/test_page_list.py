"""The page's list of jobs, its messages when the server does not answer, and its layout at common widths."""

from __future__ import annotations

import time
from itertools import groupby

import pytest
from playwright.sync_api import expect

from tests.conftest import LOOKUP, PHRASEBOOK, SENTENCE
from tests.serving import Server


def long_job(server, text=SENTENCE):
    return server.submit(
        model=PHRASEBOOK, method="sequential_integrated_gradients", input_text=text, n_steps=2000, engine="inseq"
    )


def quick_job(server, text):
    """A job on another model than the long jobs, so that it need not wait for them."""
    return server.submit(model=LOOKUP, method="dummy", input_text=text)


def cancel(server, job_id):
    server.client.post(f"/attribution/jobs/{job_id}/cancel")


def wait_until_running(server, job_id):
    while server.job(job_id)["status"] != "running":
        time.sleep(0.05)


def entry(page, job_id):
    return page.locator(f'.jobs a[href="#/jobs/{job_id}"]')


def is_within(page, width):
    return page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow  # sixty jobs; the next test has twenty
@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 800, "light"), (390, 800, "dark")])
def test_what_runs_or_waits_is_shown_however_many_newer_jobs_ended(served, open_page, width, height, scheme):
    first = long_job(served)
    wait_until_running(served, first)
    for index in range(30):
        served.run(model=LOOKUP, method="dummy", input_text=f"Anna {index}")
    second = long_job(served)
    wait_until_running(served, second)  # both workers are busy
    waiting = [quick_job(served, f"Ben {index}") for index in range(2)]
    for index in range(30):  # newer jobs, which have ended
        cancel(served, quick_job(served, f"Carl {index}"))
    page = open_page(served, viewport={"width": width, "height": height}, color_scheme=scheme)
    earlier = page.get_by_role("list", name="Earlier, still under way")
    expect(earlier.locator("li")).to_have_count(4)
    assert [link.get_attribute("href").removeprefix("#/jobs/") for link in earlier.locator("a").all()] == [
        second, first, *reversed(waiting),
    ]  # fmt: skip
    expect(earlier.get_by_role("progressbar").first).to_be_visible()
    newest = page.get_by_role("list", name="Newest")
    expect(newest.locator("li")).to_have_count(20)
    expect(newest.locator(".status:not(.cancelled)")).to_have_count(0)
    assert is_within(page, width)
    # Once the list reaches these jobs, they are shown in the list only.
    page.get_by_role("button", name="Load more").click()
    expect(entry(page, second)).to_have_count(1)
    expect(earlier.locator("li")).to_have_count(1)
    page.get_by_role("button", name="Load more").click()
    expect(page.get_by_role("button", name="Load more")).to_have_count(1)
    page.get_by_role("button", name="Load more").click()
    expect(earlier).to_have_count(0)
    expect(entry(page, first)).to_have_count(1)
    # A filter shows the jobs with that status and no others.
    page.get_by_label("Status").select_option("cancelled")
    expect(page.locator(".jobs .status:not(.cancelled)")).to_have_count(0)
    page.get_by_label("Status").select_option("")
    expect(earlier.locator("li")).to_have_count(4)
    # An ended job is shown only in the list, in order of time.
    for job_id in (first, *waiting):
        cancel(served, job_id)
    expect(earlier.locator("li")).to_have_count(1)
    expect(entry(page, second)).to_be_visible()
    cancel(served, second)
    expect(earlier).to_have_count(0)


def test_what_another_client_ended_or_deleted_is_no_longer_under_way(served, open_page):
    first, second = (long_job(served) for _ in range(2))
    wait_until_running(served, first)
    wait_until_running(served, second)
    newer = [quick_job(served, f"Anna {index}") for index in range(20)]
    for job_id in newer:
        cancel(served, job_id)
    page = open_page(served)
    earlier = page.get_by_role("list", name="Earlier, still under way")
    expect(earlier.locator("li")).to_have_count(2)
    page.route("**/attribution/jobs?*", lambda route: None)  # from here on, only events report changes
    cancel(served, first)
    expect(earlier.locator("li")).to_have_count(1)
    page.unroute("**/attribution/jobs?*")
    page.route("**/events", lambda route: route.abort())  # and now only the list does
    page.reload()
    expect(earlier.locator("li")).to_have_count(1)
    page.route("**/attribution/jobs?*", lambda route: None)  # while the list shrinks from several pages to one
    cancel(served, second)
    for job_id in (first, second, newer[0]):
        served.wait(job_id)
        assert served.client.delete(f"/attribution/jobs/{job_id}").status_code == 204
    page.unroute("**/attribution/jobs?*")
    expect(entry(page, newer[0])).to_have_count(0)
    expect(earlier).to_have_count(0)
    expect(page.locator(".jobs li")).to_have_count(19)


@pytest.mark.slow
def test_no_answer_is_said_to_a_click_until_the_next_and_to_a_read_until_there_is_one(tmp_path, open_page):
    server = Server(tmp_path)
    server.start()
    job_id = long_job(server)
    page = open_page(server, f"/#/jobs/{job_id}", viewport={"width": 1280, "height": 800})
    written = open_page(server)
    button = page.locator(".job-view").get_by_role("button", name="Cancel")
    submit = written.get_by_role("button", name="Attribute", exact=True)
    expect(button).to_be_enabled()
    expect(submit).to_be_enabled()
    notice = page.locator(".job-view .notice")
    unsent = written.locator(".job-form .notice")
    reader = open_page(server)
    unread = reader.locator(".job-view .notice")
    expect(entry(reader, job_id)).to_be_visible()
    server.kill()
    entry(reader, job_id).click()
    expect(unread).to_contain_text("No answer")
    button.click()
    submit.click()
    for each, said in ((page, notice), (written, unsent)):
        expect(said).to_contain_text("No answer")
        expect(each.locator(".jobs .error")).to_have_count(1)
    page.set_viewport_size({"width": 390, "height": 800})
    assert is_within(page, 390)
    with Server(tmp_path, "--port", server.url.rsplit(":", 1)[1]) as server:
        expect(unread).to_have_count(0)
        # The page reads the list again, but does not repeat the click.
        for each, said in ((page, notice), (written, unsent)):
            expect(each.locator(".jobs .error")).to_have_count(0)
            expect(said).to_contain_text("No answer")
        assert not server.job(job_id)["cancel_requested"]
        assert [job["job_id"] for job in server.client.get("/attribution/jobs").json()["jobs"]] == [job_id]
        submit.click()
        expect(written.locator(".job-view")).to_be_visible()
        # A problem that the server reported stays visible after other answers.
        page.route("**/cancel", lambda route: route.fulfill(status=409, json={"title": "Not now", "detail": "Later."}))
        with page.expect_response("**/attribution/jobs?*"):
            button.click()
            expect(notice).to_contain_text("Not now")
        expect(notice).to_contain_text("Not now")
        page.unroute("**/cancel")
        button.click()
        expect(page.locator(".facts .status")).to_have_text("cancelled")
        expect(notice).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_no_card_of_a_comparison_is_alone_in_its_row(served, open_page, count, scheme):
    methods = ["saliency", "occlusion", "input_x_gradient", "attention"][:count]
    job_id = served.run(model=PHRASEBOOK, methods=methods, input_text=SENTENCE)
    page = open_page(served, f"/#/jobs/{job_id}", viewport={"width": 1280, "height": 800}, color_scheme=scheme)
    cards = page.locator(".side-by-side > .column")
    expect(cards).to_have_count(count)
    for width in (1920, 1600, 1440, 1280, 1100, 900, 700, 390):
        page.set_viewport_size({"width": width, "height": 800})
        tops = cards.evaluate_all("all => all.map(each => Math.round(each.getBoundingClientRect().top))")
        rows = [len(list(row)) for _, row in groupby(tops)]
        assert len(set(rows)) == 1, (width, rows)
        assert is_within(page, width)
        if width in {1280, 390}:
            assert rows[0] == {(2, 1280): 2, (3, 1280): 3, (4, 1280): 2}.get((count, width), 1)
