"""The page's list of jobs as a list of runs: search and filters, names and notes, selection, and several jobs compared."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.page import address, expect_equal, values

OTHER = "Anna likes milk. Ben likes tea. Anna likes"


@pytest.fixture
def runs(served):
    """Four jobs, by a letter, of two models and methods; the first is the oldest."""
    asked = {
        "a": {"model": LOOKUP, "method": "saliency", "input_text": PROMPT, "tags": {"study": "tea", "draft": ""}},
        "b": {"model": LOOKUP, "method": "input_x_gradient", "input_text": PROMPT, "name": "The product", "tags": {"study": "tea"}},
        "c": {"model": LOOKUP, "method": "saliency", "input_text": OTHER, "seed": 1, "tags": {"study": "milk"}},
        "d": {"model": PHRASEBOOK, "method": "saliency", "input_text": SENTENCE},
    }  # fmt: skip
    return {letter: served.run(**fields) for letter, fields in asked.items()}


def listed(page):
    """The ids of the jobs in the list, those that are pinned above it included."""
    return page.locator(".jobs a.job").evaluate_all("all => all.map(each => each.hash.replace('#/jobs/', ''))")


def expect_listed(page, runs, letters):
    expect_equal(lambda: listed(page), [runs[each] for each in letters])


def row(page, job_id):
    return page.locator(f'.jobs li[data-id="{job_id}"]')


def select(page, *job_ids):
    for each in job_ids:
        row(page, each).get_by_role("checkbox").click()


def assert_accessible(page):
    """Axe finds nothing serious, and nothing is wider than the page: light at 1280 px, dark at 390 px."""
    for width, scheme in ((1280, "light"), (390, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        found = [each for each in Axe().run(page).response["violations"] if each["impact"] in {"serious", "critical"}]
        assert [
            (each["id"], [(node["html"][:200], node["failureSummary"]) for node in each["nodes"]]) for each in found
        ] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_jobs_are_searched_and_filtered_and_the_address_has_it(runs, served, open_page):
    page = open_page(served)
    jobs = page.locator(".jobs")
    expect_listed(page, runs, "dcba")
    said = row(page, runs["b"])
    expect(said.locator(".job-text")).to_have_text("The product")
    expect(said.locator(".job-meta")).to_have_text(f"input_x_gradient · {LOOKUP}")
    expect(said.locator(".tag")).to_have_text(["study: tea"])
    expect(page.locator(".jobs .status")).to_have_count(0)  # all have completed
    page.get_by_label("Search jobs").fill("ANNA")
    expect_listed(page, runs, "cba")
    jobs.get_by_label("Method").select_option("saliency")
    expect_listed(page, runs, "ca")
    jobs.get_by_label("Tag").select_option("study: tea")
    expect_listed(page, runs, "a")
    assert "?search=ANNA&method=saliency&tag=study%3Atea#/" in address(page) + "#/"
    # The open job is in the list, also where no filter finds it; a reload and a link keep the filters.
    page.goto(f"{address(page).split('#')[0]}#/jobs/{runs['d']}")
    opened = page.get_by_role("list", name="Open")
    expect(opened.locator("a.job")).to_have_attribute("aria-current", "page")
    page.reload()
    expect_listed(page, runs, "da")
    expect(page.get_by_label("Search jobs")).to_have_value("ANNA")
    page.get_by_label("Search jobs").fill("zebra")
    expect(page.get_by_text("No job matches.")).to_be_visible()
    page.get_by_role("button", name="Clear search and filters").click()
    expect_listed(page, runs, "dcba")
    expect(opened).to_have_count(0)
    assert "?" not in address(page)
    jobs.get_by_label("Status").select_option("failed")
    expect_listed(page, runs, "d")  # pinned
    jobs.get_by_label("Status").select_option("")
    jobs.get_by_label("Model").select_option(PHRASEBOOK)
    expect_listed(page, runs, "d")
    assert jobs.get_by_label("Tag").locator("option").all_text_contents() == [
        "all",
        "draft",
        "study",
        "study: milk",
        "study: tea",
    ]


def test_a_job_is_named_in_place(runs, served, open_page):
    page = open_page(served, f"/#/jobs/{runs['a']}")
    view = page.locator(".job-view")
    expect(view.locator(".job-notes code")).to_have_text(runs["a"])
    edit = view.get_by_role("button", name="Edit name, notes and tags")
    edit.click()
    expect(view.get_by_role("textbox", name="Name")).to_be_focused()
    page.keyboard.type("Baseline")
    view.get_by_role("textbox", name="Notes").fill("first line\nsecond <b>line</b>")
    expect(view.get_by_role("textbox", name="Tags")).to_have_value("study: tea\ndraft")
    view.get_by_role("textbox", name="Tags").fill("study: tea: green\nby: me")
    assert_accessible(page)
    page.keyboard.press("Control+Enter")
    expect(view.locator(".notes")).to_have_text("first line\nsecond <b>line</b>")
    expect(edit).to_be_focused()
    expect(page.get_by_role("heading", level=1)).to_have_text("Baseline")
    expect(row(page, runs["a"]).locator(".job-text")).to_have_text("Baseline")
    expect(row(page, runs["a"]).locator(".tag")).to_have_text(["study: tea: green", "by: me"])
    job = served.job(runs["a"])
    assert (job["name"], job["tags"]) == ("Baseline", {"study": "tea: green", "by": "me"})
    assert "by: me" in page.locator(".jobs").get_by_label("Tag").locator("option").all_text_contents()
    # A refusal is said and keeps what was typed; Escape leaves the job as it is.
    edit.click()
    view.get_by_role("textbox", name="Tags").fill("not a name!")
    view.get_by_role("button", name="Save").click()
    expect(view.get_by_role("alert")).to_contain_text("not a name!")
    expect(view.get_by_role("textbox", name="Tags")).to_have_value("not a name!")
    view.get_by_role("textbox", name="Name").fill("other")
    page.keyboard.press("Escape")
    expect(view.get_by_role("heading", level=1)).to_have_text("Baseline")
    assert served.job(runs["a"]) == job


def test_tags_that_are_not_edited_stay_as_they_are(served, open_page):
    """Values with line breaks, blanks or quotes are read back as they are, and a change is of nothing else."""
    tags = {"lines": "one\ntwo: three", "blanks": " x ", "quoted": '"y"', "half": 'a "b', "plain": "z: z", "old": ""}
    job_id = served.run(model=LOOKUP, method="dummy", input_text=PROMPT, tags=tags, notes="first\r\nsecond")
    page = open_page(served, f"/#/jobs/{job_id}")
    view = page.locator(".job-view")
    view.get_by_role("button", name="Edit name, notes and tags").click()
    written = view.get_by_role("textbox", name="Tags")
    expect(written).to_have_value(
        'lines: "one\\ntwo: three"\nblanks: " x "\nquoted: "\\"y\\""\nhalf: a "b\nplain: z: z\nold'
    )
    # Meanwhile somebody else changes the name and another tag.
    served.client.patch(f"/attribution/jobs/{job_id}", json={"name": "Theirs", "tags": {"theirs": "1", "half": "c"}})
    written.fill(written.input_value().replace("z: z\nold", 'zz\nmore: "1\\n2"\nopen: "q'))
    with page.expect_request(lambda request: request.method == "PATCH") as sent:
        view.get_by_role("button", name="Save").click()
    assert sent.value.post_data_json == {"tags": {"plain": "zz", "old": None, "more": "1\n2", "open": '"q'}}
    expect(page.get_by_role("heading", level=1)).to_have_text("Theirs")
    job = served.job(job_id)
    kept = {name: tags[name] for name in ("lines", "blanks", "quoted")}
    assert job["tags"] == kept | {"half": "c", "theirs": "1", "plain": "zz", "more": "1\n2", "open": '"q'}
    assert job["request"]["notes"] == "first\r\nsecond"


def test_several_jobs_are_selected_with_the_keyboard_and_deleted(runs, served, open_page):
    page = open_page(served)
    expect_listed(page, runs, "dcba")
    bar = page.get_by_role("group", name="Selected jobs")
    bar.get_by_role("checkbox").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")  # the first row's checkbox
    expect(row(page, runs["d"]).get_by_role("checkbox")).to_be_checked()
    page.keyboard.press("ArrowRight")  # its link
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(row(page, runs["b"]).get_by_role("link")).to_be_focused()
    tabbable = page.locator('.jobs li [tabindex="0"]')  # the Tab key enters one row, that of the focus
    expect(tabbable).to_have_count(2)
    expect(row(page, runs["b"]).locator('[tabindex="0"]')).to_have_count(2)
    page.keyboard.press("Space")
    page.keyboard.press("End")
    expect(row(page, runs["a"]).get_by_role("link")).to_be_focused()
    expect(bar.get_by_role("status")).to_have_text("2 selected")
    expect(bar.get_by_role("link", name="Compare")).to_have_attribute("href", f"#/compare?jobs={runs['d']},{runs['b']}")
    row(page, runs["b"]).get_by_role("checkbox").click()  # no longer selected
    expect(bar.get_by_role("button", name="Compare")).to_be_disabled()
    row(page, runs["a"]).get_by_role("checkbox").click(modifiers=["Shift"])  # from b to a
    expect(bar.get_by_role("status")).to_have_text("3 selected")
    bar.get_by_role("button", name="Delete").click()
    bar.get_by_role("button", name="Keep").click()
    expect_listed(page, runs, "dcba")
    bar.get_by_role("button", name="Delete").click()
    assert_accessible(page)
    bar.get_by_role("button", name="Delete 3 jobs and results").click()
    expect_listed(page, runs, "c")
    assert [served.client.get(f"/attribution/jobs/{runs[each]}").status_code for each in "abcd"] == [404, 404, 200, 404]
    expect(bar.get_by_role("status")).to_contain_text("Select all")


def test_several_jobs_are_cancelled_and_what_is_refused_is_said(runs, served, open_page):
    slow = {"method": "sequential_integrated_gradients", "n_steps": 2000, "engine": "inseq"}
    running = [served.submit(model=LOOKUP, input_text=PROMPT, **slow) for _ in range(2)]
    page = open_page(served)
    bar = page.get_by_role("group", name="Selected jobs")
    expect(row(page, running[0])).to_be_visible()
    bar.get_by_role("checkbox").click()  # all that are shown
    expect(bar.get_by_role("status")).to_have_text("6 selected")
    bar.get_by_role("button", name="Cancel 2").click()
    for job_id in running:
        expect(row(page, job_id).locator(".status")).to_have_text("cancelled")
    expect(bar.get_by_role("status")).to_have_text("4 selected")
    # Of two that another client has deleted or made busy, the page says which was not deleted.
    refused = {"job_id": runs["a"], "outcome": "conflict", "error": {"detail": "The job is running; cancel it first."}}
    done = [{"job_id": runs[each], "outcome": "done", "error": None} for each in "bcd"]
    page.route("**/attribution/jobs/delete", lambda route: route.fulfill(json={"outcomes": [refused, *done]}))
    bar.get_by_role("button", name="Delete").click()
    bar.get_by_role("button", name="Delete 4 jobs and results").click()
    expect(bar.get_by_role("alert")).to_contain_text("1 of 4 jobs were not deleted")
    expect(bar.get_by_role("alert")).to_contain_text("cancel it first")


def test_two_methods_are_compared_token_by_token(runs, served, open_page):
    page = open_page(served)
    select(page, runs["a"], runs["b"])
    page.get_by_role("link", name="Compare").click()
    expect(page.locator("main")).to_be_focused()
    rows = page.locator(".differences tbody tr")
    expect(rows).to_have_count(2)
    assert [each.all_text_contents() for each in (rows.nth(0).locator("th, td"), rows.nth(1).locator("th, td"))] == [
        ["method", "saliency", "input_x_gradient"], ["tags.draft", "empty", "\N{EN DASH}"]
    ]  # fmt: skip
    columns = page.locator(".compare-runs .column")
    expect(columns).to_have_count(2)
    assert columns.locator("h3 a").all_text_contents() == [f"saliency, {LOOKUP}", "The product"]
    sequences = [served.result(runs[each])["sequence_attributions"][0] for each in "ab"]
    # The second generated token, chosen in the second result, is chosen in the first too.
    start = sequences[0]["attr_pos_start"]
    generated = [column.locator(".token.generated") for column in columns.all()]
    generated[1].nth(1).click()
    for column, sequence in zip(generated, sequences, strict=True):
        expect(column.nth(1)).to_have_attribute("aria-pressed", "true")
        tokens = columns.nth(sequences.index(sequence)).locator(".tokens .token")
        wanted = [scores[1] for scores in sequence["target_attributions"][: start + 1]]
        expect_equal(lambda tokens=tokens: values(tokens)[: start + 1], wanted)
    assert "pos=1" in address(page)
    assert "of=1" in address(page)
    page.reload()
    expect(generated[0].nth(1)).to_have_attribute("aria-pressed", "true")
    (told,) = served.client.get("/attribution/agreement", params={"jobs": f"{runs['a']},{runs['b']}"}).json()[
        "agreement"
    ]
    cells = page.locator(".agreement tbody td")
    expect(cells).to_have_count(3)
    assert values(cells) == [told[name] for name in ("spearman", "kendall", "top_overlap")]


def test_other_prompts_and_models_are_compared_by_the_words_they_share(runs, served, open_page):
    joint = served.run(model=PHRASEBOOK, methods=["saliency", "occlusion"], input_text=[SENTENCE, "the cat"])
    jobs = ",".join([runs["a"], runs["c"], joint])
    page = open_page(served, f"/#/compare?jobs={jobs}")
    columns = page.locator(".compare-runs .column")
    expect(columns).to_have_count(4)
    expect(page.locator(".agreement tbody tr")).to_have_count(1)  # the methods of one job have the same tokens
    expect(page.locator(".agreement")).to_contain_text("different tokens")
    names = page.locator(".differences tbody th").all_text_contents()
    assert {"model", "method", "input_text", "seed"} <= set(names)
    marked = page.locator(".differences tr", has=page.get_by_text("input_text")).locator("mark")
    assert marked.count() in {0, 3}
    # A prompt's token is followed to where the other prompt has it; where there is none, that is said.
    prompt = columns.nth(0).locator(".token", has_text="milk").first
    prompt.click()
    expect(columns.nth(1).locator('.token[aria-pressed="true"]')).to_contain_text("milk")
    expect(columns.nth(2).get_by_role("status")).to_have_text("The selected token is not in this text.")
    expect(columns.nth(2).locator('.token[aria-pressed="true"]')).to_have_count(0)
    assert_accessible(page)
    page.locator(".compare .switch select").select_option(label="2")
    expect(columns.nth(0)).to_contain_text("no text of this number")
    expect(columns.nth(3).locator(".tokens").first).to_contain_text("cat")


def test_what_differs_is_the_whole_answer_and_not_who_is_told(served, open_page):
    """Jobs of which one attributes a part of the answer, whose ids are given, and has a webhook."""
    text = f"{PROMPT} tea. Ben likes milk."
    written = served.run(model=LOOKUP, method="saliency", input_text=PROMPT, generated_text=text)
    (sequence,) = served.result(written)["sequence_attributions"]
    ids = [each["token_id"] for each in sequence["target"]]
    last = sequence["attr_pos_end"] - 1
    whole = served.run(model=LOOKUP, method="saliency", input_text=PROMPT, generated_ids=[ids])
    part = served.run(model=LOOKUP, method="saliency", input_text=PROMPT, generated_ids=[ids], attr_pos_start=last)
    other = served.run(model=LOOKUP, method="saliency", input_text=PROMPT, generated_ids=[[*ids[:-2], ids[0], ids[-1]]])

    def with_webhook(route):
        answer = route.fetch()
        document = answer.json()
        document["request"] |= {"webhook": "https://hooks.example.com/x", "webhook_events": ["failed"]}
        route.fulfill(response=answer, json=document)

    page = open_page(served)
    page.route(f"**/attribution/jobs/{part}", with_webhook)
    page.goto(f"{served.url}/#/compare?jobs={whole},{part}")
    names = page.locator(".differences tbody th")
    expect(names.first).to_be_visible()
    assert names.all_text_contents() == ["attr_pos_start"]
    page.goto(f"{served.url}/?again#/compare?jobs={part},{other}")
    differing = page.locator(".differences tr", has=page.get_by_text("text of the model", exact=True)).locator("td")
    expect(differing).to_have_count(2)
    texts = [
        "".join(
            each["text"]
            for each in served.result(job, decode_tokens=True)["sequence_attributions"][0]["target"]
            if not each.get("prompt") and not each.get("special")
        ).strip()
        for job in (part, other)
    ]
    assert differing.all_text_contents() == texts
    assert texts[0] == text.removeprefix(PROMPT).strip()


def test_what_cannot_be_compared_says_why(runs, served, open_page):
    page = open_page(served, f"/#/compare?jobs={runs['a']},none")
    expect(page.get_by_role("alert")).to_contain_text("There is no job 'none'")
    page.goto(f"{served.url}/#/compare")
    expect(page.get_by_role("alert")).to_contain_text("Select two or more completed jobs")
    cancelled = served.submit(
        model=LOOKUP, method="sequential_integrated_gradients", n_steps=2000, input_text=PROMPT, engine="inseq"
    )
    served.client.post(f"/attribution/jobs/{cancelled}/cancel")
    served.wait(cancelled)
    page.goto(f"{served.url}/#/compare?jobs={runs['a']},{cancelled}")
    expect(page.get_by_role("alert").first).to_contain_text("The job was cancelled")
    expect(page.locator(".compare-runs .column")).to_have_count(1)
