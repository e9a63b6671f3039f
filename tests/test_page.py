"""The page at `/` in a real browser: what people see and do there, read back from what is drawn."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from api_keys import ApiKeys
from job_schema import api_keys, open_database
from tests.browser import browser
from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.serving import ROOT, Server

LONG = {"model": LOOKUP, "method": "sequential_integrated_gradients", "attribution_args": {"n_steps": 2000}}
HOSTILE = "<script>window.harmed=1</script>"
IMAGE = "<img/src=x/onerror=window.harmed=1>"


expect.set_options(timeout=20_000)  # a machine may be busy


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("page"), INSEQ_API_WORKERS_PER_DEVICE="2") as running:
        yield running


@pytest.fixture(scope="session")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture
def open_page(chromium):
    """Opens pages that fail the test for an error in the console and for a request that leaves the server."""
    contexts, complaints = [], []

    def opened(server, path="/", **options):
        context = chromium.new_context(reduced_motion="reduce", **options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        # A refused request is told in the page; that the browser notes its status is no error of the page's.
        page.on(
            "console",
            lambda said: said.type == "error" and "status of 4" not in said.text and complaints.append(said.text),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda asked: asked.url.startswith((server.url, "blob:", "data:")) or complaints.append(asked.url),
        )
        page.goto(server.url + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def field(page, pointer):
    return page.locator(f'[data-pointer="{pointer}"]')


def opened_job(page):
    """The id of the job that the page shows, once it shows all of its result."""
    expect(page.locator(".facts .status")).to_have_text("completed")
    expect(page.get_by_text("The tokens that are done")).to_have_count(0)
    expect(page.locator(".tokens").first).to_be_visible()
    return re.search(r"#/jobs/(\w+)", page.url).group(1)


def drawn(page):
    """The numbers of the table of scores, as they are in the cells' data and as they are written."""
    rows = page.locator('table[role="grid"] tbody tr')
    return rows.evaluate_all(
        "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell =>"
        " [cell.dataset.value === undefined ? null : Number(cell.dataset.value), cell.textContent]))"
    )


def attributions(result, sequence=0):
    one = result["sequence_attributions"][sequence]
    return [*(one["source_attributions"] or []), *(one["target_attributions"] or [])]


def expect_number(page, selector, value):
    """Wait until an element has this number: JavaScript and Python write some in different ways."""
    page.wait_for_function(
        "([selector, value]) => Number(document.querySelector(selector)?.dataset.value) === value",
        arg=[selector, value],
    )


def assert_drawn(page, scores):
    cells = drawn(page)
    assert [[value for value, _ in row] for row in cells] == scores
    for row in cells:
        for value, text in row:
            assert text == "" if value is None else float(text) == pytest.approx(value, abs=6e-4, rel=0.05)


def test_the_first_result_is_one_click_away_and_its_numbers_are_the_servers(served, open_page):
    page = open_page(served)
    page.get_by_role("button", name="Attribute", exact=True).click()
    job_id = opened_job(page)
    job = served.job(job_id)
    assert (job["request"]["model"], job["request"]["input_text"]) == (LOOKUP, PROMPT)
    result = served.result(job_id)
    assert_drawn(page, attributions(result))
    (sequence,) = result["sequence_attributions"]
    start = sequence["attr_pos_start"]
    # The first generated token is chosen: every token before it has its number, and its colour is its share of the largest.
    chosen = page.locator('.tokens .token[aria-pressed="true"]')
    expect(chosen).to_have_text("tea")
    lit = page.locator(".tokens .token").evaluate_all(
        "all => all.map(each => [Number(each.dataset.value), Number(each.style.getPropertyValue('--w'))])"
    )[:start]
    scores = [row[0] for row in sequence["target_attributions"][:start]]
    largest = max(value for row in attributions(result) for value in row if value is not None)
    assert [value for value, _ in lit] == scores
    assert [weight for _, weight in lit] == pytest.approx([value / largest for value in scores], abs=1e-4)
    expect(page.locator(".strongest")).to_contain_text(re.compile(r"depended most on\s*tea\s*0\.\d+"))
    bars = page.locator("td.bar").evaluate_all("all => all.map(each => Number(each.dataset.value))")
    assert bars == sequence["step_scores"]["probability"]


def test_a_translation_token_by_token(served, open_page):
    page = open_page(served)
    page.get_by_role("button", name="English to Italian").click()
    page.get_by_role("button", name="Estimate").click()
    expect(page.locator(".estimate")).to_have_text(re.compile(r"on cpu: \d+ passes, \d+ MB"))
    page.get_by_role("button", name="Attribute", exact=True).click()
    job_id = opened_job(page)
    (sequence,) = served.result(job_id)["sequence_attributions"]
    source, target = page.get_by_label("Source: tokens"), page.get_by_label("Target: tokens")
    expect(source.locator(".token-text")).to_have_text(["the", "red", "cat", "sees", "a", "dog", "</s>"])
    target.get_by_role("button", name="rosso").click()
    column = [token["token"] for token in sequence["target"]].index("▁rosso") - sequence["attr_pos_start"]
    values = source.locator(".token").evaluate_all("all => all.map(each => Number(each.dataset.value))")
    assert values == [row[column] for row in sequence["source_attributions"]]
    assert f"pos={column}" in page.url
    source.get_by_role("button", name="red").hover()
    expect(page.locator(".said")).to_have_text(f"“·red” → “·rosso”: {sequence['source_attributions'][1][column]}")
    # The other way round: what a source token had a part in.
    source.get_by_role("button", name="red").click()
    values = target.locator(".generated").evaluate_all("all => all.map(each => Number(each.dataset.value))")
    assert values == sequence["source_attributions"][1]
    expect(page.locator(".strongest")).to_contain_text("had most part in")


def test_a_contrast_is_an_example_too(served, open_page):
    page = open_page(served)
    page.get_by_role("button", name="Why tea and not milk?").click()
    expect(field(page, "/attributed_fn_args/contrast_targets")).to_have_value(f"{PROMPT} milk")
    page.get_by_role("button", name="Attribute", exact=True).click()
    result = served.result(opened_job(page))
    assert result["info"]["arguments"]["attributed_fn"] == "contrast_prob_diff"
    assert_drawn(page, attributions(result))


def test_aggregation_and_normalisation_are_the_servers_and_in_the_address(served, open_page):
    job_id = served.run(model=PHRASEBOOK, method="input_x_gradient", input_text=[SENTENCE, "a dog sees the cat"])
    page = open_page(served, f"/#/jobs/{job_id}")
    assert opened_job(page) == job_id
    page.get_by_role("button", name="Merge into words").click()
    expect(page.locator("tbody th.source")).to_have_count(6)
    merged = served.result(job_id, aggregator="subwords,scores")
    assert_drawn(page, attributions(merged))
    page.get_by_label("Step 1: function").select_option("sum")
    page.get_by_label("Normalise").select_option("false")
    page.get_by_label("Text", exact=True).select_option("1")
    parameters = {"aggregator": "subwords,scores", "aggregate_fn": "sum,", "normalize": False}
    expected = attributions(served.result(job_id, **parameters), sequence=1)
    expect_number(page, "td[data-row='0'][data-column='0']", expected[0][0])
    assert_drawn(page, expected)
    # The address alone shows the same again.
    again = open_page(served, page.url.removeprefix(served.url))
    assert opened_job(again) == job_id
    assert_drawn(again, expected)
    # What cannot be aggregated is told, with a way back.
    page.get_by_label("Step 2: aggregator").select_option("slices")
    expect(page.get_by_role("alert").first).to_be_visible()
    page.get_by_role("button", name="Back to the default view").click()
    expect(page.locator("tbody th.source").last).to_have_text("</s>")


def test_other_scores_of_a_sequence_have_a_table_each(served, open_page):
    job_id = served.run(model=PHRASEBOOK, method="attention", input_text=SENTENCE)
    (sequence,) = served.result(job_id)["sequence_attributions"]
    page = open_page(served, f"/#/jobs/{job_id}?table=no")
    opened_job(page)
    for name, scores in sequence["sequence_scores"].items():
        fold = page.locator("details.all", has_text=name)
        fold.locator("summary").click()
        expect(fold.locator("tbody tr")).to_have_count(len(scores))
        drawn_there = fold.locator("tbody tr").evaluate_all(
            "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => JSON.parse(cell.dataset.value ?? null)))"
        )
        assert drawn_there == scores
    assert len(sequence["sequence_scores"]) == 2


def test_signed_scores_have_a_diverging_scale(served, open_page):
    job_id = served.run(model=LOOKUP, method="input_x_gradient", input_text=PROMPT)
    scores = attributions(served.result(job_id, aggregator="sum"))
    assert any(value < 0 for row in scores for value in row if value is not None)
    page = open_page(served, f"/#/jobs/{job_id}?agg=sum")
    opened_job(page)
    assert_drawn(page, scores)
    signs = page.locator("td[data-value]").evaluate_all(
        "all => all.map(cell => (Number(cell.dataset.value) < 0) === cell.classList.contains('negative'))"
    )
    assert all(signs)
    largest = max(abs(value) for row in scores for value in row if value is not None)
    low, high = (float(text) for text in page.locator(".legend .number").all_inner_texts())
    assert -low == high == pytest.approx(largest, rel=0.01)


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
    page.route("**/attribution/jobs?*", lambda route: None)  # from here on, only events can tell
    view.get_by_role("button", name="Cancel").click()
    expect(view.locator(".facts .status")).to_have_text("cancelled")
    expect(entry.locator(".status")).to_have_text("cancelled")
    view.get_by_role("button", name="Delete").click()
    job_id = re.search(r"#/jobs/(\w+)", page.url).group(1)
    view.get_by_role("button", name="Delete job and result").click()
    expect(page.locator(".job-form")).to_be_visible()
    assert served.client.get(f"/attribution/jobs/{job_id}").status_code == 404


def test_the_tokens_that_are_done_are_shown_before_the_end(served, open_page):
    job_id = served.submit(input_text=[PROMPT] * 4, **LONG | {"attribution_args": {"n_steps": 300}})
    page = open_page(served, f"/#/jobs/{job_id}")
    told = page.get_by_text("The tokens that are done")
    expect(told).to_be_visible()
    expect(page.locator(".tokens .token.heat").first).to_be_visible()
    page.locator(".job-view").get_by_role("button", name="Cancel").click()
    expect(page.locator(".facts .status")).to_have_text("cancelled")
    done = served.result(job_id, partial=True)["info"]["partial"]
    expect(told).to_have_text(f"The tokens that are done: {done['steps_done']} of {done['steps_total']}.")
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
    listed = [link.get_attribute("href").removeprefix("#/jobs/") for link in page.locator(".jobs li a").all()]
    everything = served.client.get("/attribution/jobs", params={"limit": 200}).json()["jobs"]
    assert listed == [job["job_id"] for job in everything][: len(listed)]
    page.get_by_label("Status").select_option("cancelled")
    expect(entries.first.locator("a")).to_have_attribute("href", f"#/jobs/{cancelled}")
    expect(entries.locator(".status:not(.cancelled)")).to_have_count(0)
    # A job that another client submits comes by itself.
    page.get_by_label("Status").select_option("")
    other = served.run(model=LOOKUP, method="dummy", input_text="of another client")
    expect(page.locator(f'.jobs a[href="#/jobs/{other}"]')).to_contain_text("of another client")


def test_bad_input_is_told_at_its_field(served, open_page):
    page = open_page(served)
    field(page, "/method").select_option("integrated_gradients")
    field(page, "/attribution_args/n_steps").fill("many")
    page.get_by_text("Advanced options").click()
    field(page, "/generation_args/max_new_tokens").fill("0")
    page.get_by_text("Advanced options").click()
    page.get_by_role("button", name="Attribute", exact=True).click()
    steps = field(page, "/attribution_args/n_steps")
    expect(steps).to_have_attribute("aria-invalid", "true")
    expect(steps).to_be_focused()
    described = steps.get_attribute("aria-describedby")
    expect(page.locator(f"[id='{described}']")).to_have_text(re.compile("valid integer"))
    tokens = field(page, "/generation_args/max_new_tokens")
    expect(tokens).to_be_visible()  # what was folded around it is open
    expect(tokens).to_have_attribute("aria-invalid", "true")
    assert page.get_by_role("alert").locator("li").count() == 3
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


def test_a_failed_job_says_why(served, open_page):
    job_id = served.submit(model="no-such/model", method="dummy", input_text="x")
    served.wait(job_id)
    page = open_page(served, f"/#/jobs/{job_id}")
    expect(page.locator(".job-view .notice")).to_contain_text(served.job(job_id)["error"]["detail"])
    page.goto(f"{served.url}/#/jobs/0")
    expect(page.get_by_role("alert")).to_contain_text("There is no")


def test_methods_are_compared_side_by_side(served, open_page):
    page = open_page(served)
    page.get_by_role("button", name="Three methods side by side").click()
    expect(page.locator("details.compare")).to_have_attribute("open", "")
    field(page, "/attribution_args/integrated_gradients/n_steps").fill("none")
    page.get_by_role("button", name="Attribute", exact=True).click()
    expect(field(page, "/attribution_args/integrated_gradients/n_steps")).to_be_focused()
    field(page, "/attribution_args/integrated_gradients/n_steps").fill("10")
    page.get_by_role("button", name="Attribute", exact=True).click()
    job_id = opened_job(page)
    methods = ["saliency", "integrated_gradients", "occlusion"]
    request = served.job(job_id)["request"]
    assert request["methods"] == methods
    assert request["attribution_args"]["integrated_gradients"] == {"n_steps": 10}
    result = served.result(job_id)
    # One choice of a token for all methods, each with its own numbers.
    page.get_by_label("occlusion", exact=True).get_by_role("button", name="rosso").first.click()
    for entry in result["comparison"]:
        (sequence,) = entry["sequence_attributions"]
        column = [token["token"] for token in sequence["target"]].index("▁rosso") - sequence["attr_pos_start"]
        shown = page.get_by_label(entry["method"], exact=True).get_by_label("Source: tokens").locator(".token")
        values = shown.evaluate_all("all => all.map(each => Number(each.dataset.value))")
        assert values == [row[column] for row in sequence["source_attributions"]]
    drawn_agreement = page.locator(".agreement tbody tr").evaluate_all(
        "rows => rows.map(row => [row.querySelector('th').textContent,"
        " ...[...row.querySelectorAll('td')].map(cell => cell.dataset.value === undefined ? null : Number(cell.dataset.value))])"
    )
    names = ("spearman", "kendall", "top_overlap")
    assert drawn_agreement == [
        [" and ".join(each["methods"]), *(each[name] for name in names)] for each in result["agreement"]
    ]
    assert len(drawn_agreement) == 3
    axe = [each["id"] for each in Axe().run(page).response["violations"] if each["impact"] in {"serious", "critical"}]
    assert axe == []
    # One of them alone, with all its numbers and formats.
    page.get_by_role("button", name="integrated_gradients").click()
    expect(page.locator('table[role="grid"]')).to_have_count(1)
    assert_drawn(page, attributions(served.result(job_id, method="integrated_gradients")))
    assert page.get_by_role("group", name="Download").get_by_role("link").count() > 1
    page.get_by_role("link", name="Edit and run again").click()
    expect(field(page, "/attribution_args/integrated_gradients/n_steps")).to_have_value("10")
    expect(page.locator("details.compare").get_by_label("occlusion")).to_be_checked()
    page.get_by_role("button", name="Estimate").click()
    expect(page.locator(".estimate")).to_have_text(re.compile(r"on cpu: \d+ passes"))


def test_hostile_tokens_stay_text_and_scripts_of_all_kinds_are_shown(served, open_page):
    text = f"Anna {HOSTILE} {IMAGE} שלום עולם 你好 a\n\tb\u202e"
    job_id = served.run(model=LOOKUP, method="saliency", input_text=text, generation_args={"max_new_tokens": 1})
    page = open_page(served, f"/#/jobs/{job_id}?agg=subwords,scores")
    opened_job(page)
    words = page.locator(".tokens").last.locator(".token-text").all_text_contents()
    assert HOSTILE in words
    assert IMAGE in words
    assert {"שלום", "עולם", "你好"} <= set(words)
    signs = page.locator(".tokens .sign").evaluate_all("all => all.map(each => each.dataset.sign)")
    assert {"↵", "⇥", "·", "U+202E"} <= set(signs)
    assert page.locator(".jobs li").first.locator(".job-text").text_content().startswith(f"Anna {HOSTILE}")
    assert page.locator(".tokens").last.get_attribute("dir") == "ltr"
    assert page.evaluate("window.harmed") is None
    assert page.locator("script:not([src])").count() == 0
    hebrew = served.run(model=LOOKUP, method="saliency", input_text="שלום עולם", generation_args={"max_new_tokens": 1})
    page.goto(f"{served.url}/#/jobs/{hebrew}?agg=subwords,scores")
    expect(page.locator(".tokens").last).to_have_attribute("dir", "rtl")


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
    expect(page.locator("main")).to_be_focused()  # as on a new page
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
    assert "pos=1" in page.url
    page.keyboard.press("Home")
    expect_number(page, ".tokens .token:focus", sequence["target_attributions"][0][1])
    for _ in range(100):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('td[data-row]')"):
            break
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect_number(page, "td:focus", sequence["target_attributions"][1][1])
    expect(page.locator(".said")).to_contain_text(f": {sequence['target_attributions'][1][1]}")


def test_results_are_downloaded_as_they_are_shown(served, open_page, tmp_path):
    job_id = served.run(model=PHRASEBOOK, method="saliency", input_text=SENTENCE)
    page = open_page(served, f"/#/jobs/{job_id}?norm=false")
    opened_job(page)
    offered = page.get_by_role("group", name="Download").get_by_role("link")
    schema = served.client.get("/openapi.json").json()["paths"]["/attribution/jobs/{job_id}/results"]["get"]
    named = next(each["schema"] for each in schema["parameters"] if each["name"] == "format")
    formats = named["anyOf"][0]["enum"]
    assert {"json", "inseq", "csv", "parquet", "html"} <= set(formats)
    assert offered.count() == len(formats)
    for index, name in enumerate(formats):
        with page.expect_download() as saving:
            offered.nth(index).click()
        saving.value.save_as(tmp_path / name)
        parameters = {"format": name} | ({} if name == "inseq" else {"normalize": False})
        answer = served.client.get(f"/attribution/jobs/{job_id}/results", params=parameters)
        assert (tmp_path / name).read_bytes() == answer.content


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(served, open_page, scheme):
    signed = served.run(model=LOOKUP, method="input_x_gradient", input_text=PROMPT, step_scores=["entropy"], reuse=True)
    page = open_page(served, f"/#/jobs/{signed}?agg=sum", color_scheme=scheme)
    opened_job(page)
    scans = [Axe().run(page)]
    page.goto(f"{served.url}/#/")
    page.get_by_text("Advanced options").click()
    field(page, "/seed").fill("x")
    page.get_by_role("button", name="Attribute", exact=True).click()
    expect(field(page, "/seed")).to_have_attribute("aria-invalid", "true")
    scans.append(Axe().run(page))
    page.set_viewport_size({"width": 390, "height": 800})
    scans.append(Axe().run(page))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing sticks out of a phone's screen
    found = [
        each for scan in scans for each in scan.response["violations"] if each["impact"] in {"serious", "critical"}
    ]
    assert [
        (each["id"], [(node["html"][:200], node["failureSummary"]) for node in each["nodes"]]) for each in found
    ] == []


@pytest.fixture
def keys(served):
    """Keys of the server, which is without any again afterwards."""
    yield ApiKeys.of(served.data_dir)
    with open_database(served.data_dir / "jobs.sqlite3").begin() as connection:
        connection.execute(api_keys.delete())


def test_a_key_is_asked_for_kept_in_the_tab_and_forgotten(served, keys, open_page):
    key, secret = keys.create("ann")
    page = open_page(served)
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("API key").fill("iaa_wrong")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("not accepted")
    assert page.evaluate("sessionStorage.length") == 0
    dialog.get_by_label("API key").fill(secret)
    page.keyboard.press("Enter")
    streams = []
    page.on("request", lambda asked: asked.url.endswith("/events") and streams.append(asked.headers["authorization"]))
    page.get_by_role("button", name="Attribute", exact=True).click()
    job_id = opened_job(page)
    assert set(streams) == {f"Bearer {secret}"}  # however often it had to connect
    with page.expect_download() as saving:
        page.get_by_role("group", name="Download").get_by_role("link").first.click()
    owned = served.client.get(f"/attribution/jobs/{job_id}/results", headers={"Authorization": f"Bearer {secret}"})
    assert saving.value.path().read_bytes() == owned.content
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    keys.revoke(key.key_id)
    page.get_by_label("Status").select_option("completed")
    expect(dialog).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_the_documentation_loads_from_here_alone(served, open_page):
    page = open_page(served, "/docs")
    expect(page.get_by_role("heading", name="Attribution as a service")).to_be_visible()
    page.locator(".opblock-summary").first.click()
    expect(page.get_by_role("button", name="Try it out")).to_be_visible()


def test_the_modules_of_the_page_stay_small_and_write_no_markup():
    modules = [*(ROOT / "web" / "js").glob("*.js"), *(ROOT / "web" / "css").glob("*.css")]
    assert {path.name: lines for path in modules if (lines := len(path.read_text().splitlines())) > 300} == {}
    # Text becomes markup nowhere, so that no token can.
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
