"""Sharing in a real browser: links for others, the key in several tabs, and the key in the API's documentation."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.conftest import LOOKUP, PROMPT
from tests.page import address, assert_drawn, attributions, expect_equal, opened_job
from tests.serving import until


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


def run_as(served, secret):
    """Run a job with this key; returns its id and its result."""
    request = {"model": LOOKUP, "method": "saliency", "input_text": PROMPT, "tags": {"for": "me"}, "reuse": True}
    job_id = served.client.post("/attribution/jobs", json=request, headers=bearer(secret)).json()["job_id"]
    path = f"/attribution/jobs/{job_id}"
    until(lambda: served.client.get(path, headers=bearer(secret), params={"wait": 20}).json()["status"] == "completed")
    return job_id, served.client.get(f"{path}/results", headers=bearer(secret)).json()


def enter_key(page, secret):
    page.get_by_role("dialog").get_by_label("API key").fill(secret)
    page.keyboard.press("Enter")


def serious(page):
    return [each["id"] for each in Axe().run(page).response["violations"] if each["impact"] in {"serious", "critical"}]


def test_a_link_made_on_the_page_shows_one_job_to_a_reader_without_a_key(served, keys, open_page):
    secret = keys.create("ann")[1]
    job_id, result = run_as(served, secret)
    page = open_page(served, f"/#/jobs/{job_id}")
    enter_key(page, secret)
    opened_job(page)
    page.get_by_role("button", name="Share").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Expires after").select_option("30 days")
    dialog.get_by_role("button", name="Make a link").click()
    link = dialog.get_by_label("Link", exact=True)
    expect(link).to_be_visible()
    url = link.input_value()
    expect(dialog.get_by_role("listitem")).to_have_count(1)
    assert serious(page) == []

    asked = []  # the requests of the reader's page
    reader = open_page(served, url.removeprefix(served.url))
    reader.on("request", lambda request: asked.append(request))  # noqa: PLW0108 - Playwright marks the function
    reader.reload()
    expect(reader.locator(".facts .status")).to_have_text("completed")
    assert_drawn(reader, attributions(result))
    for name in ("Share", "Delete", "Cancel", "Attribute"):
        expect(reader.get_by_role("button", name=name, exact=True)).to_have_count(0)
    expect(reader.get_by_role("link", name="Edit and run again")).to_have_count(0)
    expect(reader.locator(".jobs")).to_have_count(0)
    # The view is in the address of the link, and every format can be downloaded.
    reader.get_by_label("Normalise").select_option("false")
    expected = served.client.get(f"{url}/results", params={"normalize": False}).json()
    assert_drawn(reader, attributions(expected))
    assert address(reader).startswith(f"{url}#")
    with reader.expect_download() as saving:
        reader.get_by_role("group", name="Download").get_by_role("link", name="CSV").click()
    csv = served.client.get(f"{url}/results", params={"format": "csv", "normalize": False})
    assert saving.value.path().read_bytes() == csv.content
    paths = {request.url.removeprefix(served.url).partition("?")[0] for request in asked}
    assert {path for path in paths if not path.startswith(("/shared/", "/static/"))} == {"/openapi.json"}
    assert [request.url for request in asked if request.headers.get("referer")] == []
    assert serious(reader) == []
    reader.set_viewport_size({"width": 390, "height": 800})
    assert reader.evaluate("document.documentElement.scrollWidth") <= 390

    dialog.get_by_role("button", name="Revoke").click()
    expect(dialog.get_by_role("listitem")).to_have_count(0)
    expect(link).to_have_count(0)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    reader.reload()
    expect(reader.get_by_role("alert")).to_contain_text("revoked")
    expect(reader.locator(".job-view")).to_have_count(0)
    assert serious(reader) == []


def test_a_shared_job_that_runs_is_shown_when_it_has_ended(served, open_page):
    job_id = served.submit(
        model=LOOKUP, method="integrated_gradients", input_text=PROMPT, n_steps=300,
        generation_args={"min_new_tokens": 10, "max_new_tokens": 10},
    )  # fmt: skip
    url = served.client.post(f"/attribution/jobs/{job_id}/shares").json()["url"]
    reader = open_page(served, url)
    expect(reader.locator(".job-view")).to_be_visible()
    served.wait(job_id)
    expect(reader.locator(".facts .status")).to_have_text("completed")
    assert_drawn(reader, attributions(served.result(job_id)))


def test_a_key_is_taken_over_from_another_tab_and_forgotten_in_all(served, keys, open_page):
    key, secret = keys.create("ann")
    first = open_page(served)
    enter_key(first, secret)
    attribute = {"role": "button", "name": "Attribute", "exact": True}
    expect(first.get_by_role(**attribute)).to_be_visible()
    second = first.context.new_page()
    second.goto(served.url)
    expect(second.get_by_role(**attribute)).to_be_visible()
    expect(second.get_by_role("dialog")).to_have_count(0)
    expect(second.get_by_role("button", name="Forget API key")).to_be_visible()
    # Another browser session has no part in it, and nothing is stored beyond this one.
    expect(open_page(served).get_by_role("dialog")).to_be_visible()
    assert first.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    second.get_by_role("button", name="Forget API key").click()
    for page in (first, second):
        expect(page.get_by_role("dialog")).to_be_visible()
        expect_equal(lambda page=page: page.evaluate("sessionStorage.length"), 0)
    # A wrong key is told in the tab that it was entered in, and given to no other one.
    enter_key(first, "iaa_wrong")
    expect(first.get_by_role("alert")).to_contain_text("not accepted")
    expect(second.get_by_role("alert")).to_have_count(0)
    # The right one closes the dialogs of all tabs; its revocation asks in all.
    enter_key(first, secret)
    for page in (first, second):
        expect(page.get_by_role(**attribute)).to_be_visible()
        expect(page.get_by_role("dialog")).to_have_count(0)
    keys.revoke(key.key_id)
    for page in (first, second):
        expect(page.get_by_role("dialog")).to_be_visible()


def test_the_documentation_takes_the_page_s_key_or_asks_for_one(served, keys, open_page):
    secret = keys.create("ann")[1]
    job_id, _ = run_as(served, secret)
    page = open_page(served)
    enter_key(page, secret)
    expect(page.get_by_role("button", name="Forget API key")).to_be_visible()
    docs = page.context.new_page()
    docs.goto(f"{served.url}/docs")
    call = docs.locator("#operations-attribution-list_jobs_attribution_jobs_get")
    call.locator(".opblock-summary-control").click()
    call.get_by_role("button", name="Try it out").click()

    def answer():
        with docs.expect_response("**/attribution/jobs*") as answered:
            call.get_by_role("button", name="Execute").click()
        return answered.value

    expect(docs.locator(".authorize.locked")).to_be_visible()
    assert [job["job_id"] for job in answer().json()["jobs"]] == [job_id]
    page.get_by_role("button", name="Forget API key").click()
    expect(docs.locator(".authorize.unlocked")).to_be_visible()
    assert answer().status == 401
    docs.get_by_role("button", name="Authorize").first.click()
    docs.locator(".auth-container").get_by_role("textbox").fill(secret)
    docs.get_by_role("button", name="Apply credentials").click()
    docs.get_by_role("button", name="Close", exact=True).click()
    assert answer().status == 200
