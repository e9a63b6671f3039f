"""The page at `/` in a real browser: submitting, watching, listing and cancelling jobs; keyboard use; API keys."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.conftest import LOOKUP, PROMPT
from tests.page import address, assert_drawn, attributions, expect_equal, expect_number, field, opened_job
from tests.serving import ROOT

LONG = {"model": LOOKUP, "method": "sequential_integrated_gradients", "attribution_args": {"n_steps": 2000}}


def test_a_running_job_shows_its_progress_and_is_cancelled(served, open_page):
    page = open_page(served)
    field(page, "/method").select_option(LONG["method"])
    field(page, "/attribution_args/n_steps").fill("2000")
    page.get_by_role("button", name="Attribute", exact=True).click()
    view = page.locator(".job-view")
    expect(view.get_by_role("progressbar")).to_be_visible()
    expect(view.locator(".progress")).to_contain_text(re.compile(r"attributing \d+/\d+"))
    entry = page.locator(".jobs li").first
    expect(entry.get_by_role("progressbar")).to_be_visible()
    page.route("**/attribution/jobs?*", lambda route: None)  # from here on, only events report changes
    view.get_by_role("button", name="Cancel").click()
    expect(view.locator(".facts .status")).to_have_text("cancelled")
    expect(entry.locator(".status")).to_have_text("cancelled")
    view.get_by_role("button", name="Delete").click()
    job_id = re.search(r"#/jobs/(\w+)", address(page)).group(1)
    view.get_by_role("button", name="Delete job and result").click()
    expect(page.locator(".job-form")).to_be_visible()
    assert served.client.get(f"/attribution/jobs/{job_id}").status_code == 404


def test_attributed_tokens_are_shown_before_the_end(served, open_page):
    # Inseq's loop ends one token after another.
    slow = {"attribution_args": {"n_steps": 300}, "engine": "inseq"}
    job_id = served.submit(input_text=[PROMPT] * 60, **LONG | slow)
    page = open_page(served, f"/#/jobs/{job_id}")
    shown = page.get_by_text("Tokens attributed so far")
    expect(shown).to_be_visible()
    expect(page.locator(".tokens .token.heat").first).to_be_visible()
    page.locator(".job-view").get_by_role("button", name="Cancel").click()
    expect(page.locator(".facts .status")).to_have_text("cancelled")
    done = served.result(job_id, partial=True)["info"]["partial"]
    expect(shown).to_have_text(f"Tokens attributed so far: {done['steps_done']} of {done['steps_total']}.")
    assert_drawn(page, attributions(served.result(job_id, partial=True)))


def test_the_list_is_filtered_and_loads_more(served, open_page):
    ids = [served.submit(model=LOOKUP, method="dummy", input_text=f"Anna {i}") for i in range(21)]
    cancelled = served.submit(input_text=PROMPT, **LONG)
    served.client.post(f"/attribution/jobs/{cancelled}/cancel")
    served.wait(cancelled)
    page = open_page(served)
    entries = page.locator(".jobs li")
    expect(entries).to_have_count(20)
    page.get_by_role("button", name="Load more").click()
    expect(page.locator(f'.jobs a[href="#/jobs/{ids[0]}"]')).to_be_visible()
    listed = page.locator(".jobs li a").evaluate_all("all => all.map(each => each.hash.replace('#/jobs/', ''))")
    everything = served.client.get("/attribution/jobs", params={"limit": 200}).json()["jobs"]
    assert len(listed) > 20
    assert listed == [job["job_id"] for job in everything][: len(listed)]
    page.get_by_label("Status").select_option("cancelled")
    expect(entries.first.locator("a")).to_have_attribute("href", f"#/jobs/{cancelled}")
    expect(entries.locator(".status:not(.cancelled)")).to_have_count(0)
    # A job that another client submits appears without a reload.
    page.get_by_label("Status").select_option("")
    other = served.run(model=LOOKUP, method="dummy", input_text="of another client")
    expect(page.locator(f'.jobs a[href="#/jobs/{other}"]')).to_contain_text("of another client")


def test_an_error_is_shown_at_its_field(served, open_page):
    page = open_page(served)
    field(page, "/method").select_option("integrated_gradients")
    field(page, "/attribution_args/n_steps").fill("many")
    generated = page.locator(".generation > summary")
    generated.click()
    field(page, "/generation_args/max_new_tokens").fill("0")
    generated.click()
    page.get_by_role("button", name="Attribute", exact=True).click()
    steps = field(page, "/attribution_args/n_steps")
    expect(steps).to_have_attribute("aria-invalid", "true")
    expect(steps).to_be_focused()
    described = steps.get_attribute("aria-describedby").split()[-1]  # behind the help
    expect(page.locator(f"[id='{described}']")).to_have_text(re.compile("valid integer"))
    tokens = field(page, "/generation_args/max_new_tokens")
    expect(tokens).to_be_visible()  # the `<details>` around it is open
    expect(tokens).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("alert").locator("li")).to_have_count(2)
    steps.fill("4")
    tokens.fill("1")
    page.get_by_role("button", name="Attribute", exact=True).click()
    arguments = served.job(opened_job(page))["request"]
    assert arguments["attribution_args"] == {"n_steps": 4}
    assert arguments["generation_args"] == {"max_new_tokens": 1}


def test_a_job_is_edited_and_run_again(served, open_page):
    request = {
        "model": LOOKUP, "method": "lime", "input_text": [PROMPT, "Ben likes"], "step_scores": ["entropy", "top_p_size"],
        "attributed_fn": "probability", "attributed_fn_args": {"logprob": True}, "step_scores_args": {"top_p": 0.5},
        "attribution_args": {"n_samples": 5, "mask_prob": 0.5}, "generation_args": {"max_new_tokens": 2, "do_sample": False},
        "seed": 7, "tags": {"study": "one"}, "dtype": "float32", "corrections": False,
    }  # fmt: skip
    job_id = served.run(**request)
    page = open_page(served, f"/#/jobs/{job_id}")
    page.get_by_role("link", name="Edit and run again").click()
    expect(field(page, "/input_text/1")).to_have_value("Ben likes")
    expect(field(page, "/attribution_args/n_samples")).to_have_value("5")
    page.get_by_role("button", name="Attribute", exact=True).click()
    again = opened_job(page)
    assert again != job_id
    assert served.job(again)["request"] == served.job(job_id)["request"]


def test_a_job_that_arrives_late_replaces_nothing_typed(served, open_page):
    """There is no form to type into before the job is there whose request fills it."""
    job_id = served.run(model=LOOKUP, method="dummy", input_text="Ben likes")
    page, held = open_page(served), []
    url = f"**/attribution/jobs/{job_id}"

    def hold(route):  # a function: Playwright sets an attribute on it
        held.append(route)

    page.route(url, hold, times=1)
    with page.expect_request(url):
        page.goto(f"{served.url}/#/?from={job_id}")
    expect(page.get_by_role("main").get_by_text("Loading…")).to_be_visible()
    expect(field(page, "/model")).to_have_count(0)
    held.pop().continue_()
    expect(field(page, "/method")).to_have_value("dummy")


def test_a_failed_job_says_why(served, open_page):
    job_id = served.submit(model="no-such/model", method="dummy", input_text="x")
    served.wait(job_id)
    page = open_page(served, f"/#/jobs/{job_id}")
    expect(page.locator(".job-view .notice")).to_contain_text(served.job(job_id)["error"]["detail"])
    page.goto(f"{served.url}/#/jobs/0")
    expect(page.get_by_role("alert")).to_contain_text("There is no")


def test_everything_is_done_with_the_keyboard(served, open_page):
    page = open_page(served)
    expect(page.get_by_role("button", name="Attribute", exact=True)).to_be_visible()
    for _ in range(100):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Attribute":
            break
    page.keyboard.press("Enter")
    job_id = opened_job(page)
    (sequence,) = served.result(job_id)["sequence_attributions"]
    expect(page.locator("main")).to_be_focused()  # a new view moves the focus to <main>
    expect(page).to_have_title(f"completed: {PROMPT}"[:51])
    for _ in range(100):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.tokens .token')"):
            break
    focused = page.locator(".tokens .token:focus")
    expect(focused).to_have_text("tea")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(focused).to_have_attribute("aria-pressed", "true")
    assert "pos=1" in address(page)
    page.keyboard.press("Home")
    expect_number(page, ".tokens .token:focus", sequence["target_attributions"][0][1])
    for _ in range(100):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('td[data-row]')"):
            break
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect_number(page, "td:focus", sequence["target_attributions"][1][1])
    expect(page.locator(".hovered-score")).to_contain_text(f": {sequence['target_attributions'][1][1]}")


def test_a_key_is_asked_for_kept_in_the_tab_and_forgotten(served, keys, open_page):
    key, secret = keys.create("ann")
    page = open_page(served)
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("API key").fill("iaa_wrong")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("not accepted")
    expect_equal(lambda: page.evaluate("sessionStorage.length"), 0)
    dialog.get_by_label("API key").fill(secret)
    page.keyboard.press("Enter")
    streams = []
    page.on("request", lambda asked: asked.url.endswith("/events") and streams.append(asked.headers["authorization"]))
    # Long enough that the page can open its event stream.
    field(page, "/method").select_option(LONG["method"])
    field(page, "/attribution_args/n_steps").fill("300")
    with page.expect_request("**/events"):
        page.get_by_role("button", name="Attribute", exact=True).click()
    job_id = opened_job(page)
    assert set(streams) == {f"Bearer {secret}"}  # on every connection
    with page.expect_download() as saving:
        page.get_by_role("group", name="Download").get_by_role("link").first.click()
    owned = served.client.get(f"/attribution/jobs/{job_id}/results", headers={"Authorization": f"Bearer {secret}"})
    assert saving.value.path().read_bytes() == owned.content
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    keys.revoke(key.key_id)
    page.get_by_label("Status").select_option("completed")
    expect(dialog).to_be_visible()
    expect_equal(lambda: page.evaluate("sessionStorage.length"), 0)


def test_a_late_answer_to_an_older_key_leaves_the_new_one(served, keys, open_page):
    _, secret = keys.create("ann")
    page = open_page(served)
    held = []

    def hold(route):
        """Hold back the requests with the wrong key, except one, until another key is entered."""
        if "iaa_wrong" in route.request.headers.get("authorization", "") and "/methods" not in route.request.url:
            held.append(route)
        else:
            route.continue_()

    page.route("**/attribution/**", hold)
    dialog = page.get_by_role("dialog")
    for key in ("iaa_wrong", secret):
        dialog.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        if key != secret:
            expect(dialog.get_by_role("alert")).to_contain_text("not accepted")
    expect(page.get_by_role("button", name="Attribute", exact=True)).to_be_visible()
    assert held
    for route in held:
        with page.expect_response(route.request.url) as refused:
            route.continue_()
        assert refused.value.status == 401
    page.get_by_role("button", name="Attribute", exact=True).click()
    opened_job(page)
    expect(dialog).to_have_count(0)
    assert page.evaluate("Object.values(sessionStorage)") == [secret]


def test_the_documentation_loads_from_here_alone(served, open_page):
    page = open_page(served, "/docs")
    expect(page.get_by_role("heading", name="Attribution as a service")).to_be_visible()
    page.locator(".opblock-summary").first.click()
    expect(page.get_by_role("button", name="Try it out")).to_be_visible()


def test_the_modules_of_the_page_stay_small_and_write_no_markup():
    modules = [*(ROOT / "web" / "js").glob("*.js"), *(ROOT / "web" / "css").glob("*.css")]
    assert {path.name: lines for path in modules if (lines := len(path.read_text().splitlines())) > 300} == {}
    # No module turns text into markup, so no token can become markup.
    ways = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function")
    assert [(path.name, way) for path in modules for way in ways if way in path.read_text()] == []


def test_pages_are_cached_by_their_etag_and_run_nothing_inline(served):
    for path in ("/", "/docs", "/static/js/main.js", "/static/vendor/preact.js"):
        answer = served.client.get(path)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-cache"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
        assert "unsafe" not in policy
        again = served.client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    assert served.client.get("/static/js/none.js").headers["content-type"] == "application/problem+json"
    assert served.client.get("/static/%2e%2e/main.py").status_code == 404
