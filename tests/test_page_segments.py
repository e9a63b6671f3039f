"""Segments on the page at `/` in a real browser: the form's field, the unit of text, and texts to copy."""

from __future__ import annotations

import json

from playwright.sync_api import expect

from tests.conftest import LOOKUP, PROMPT
from tests.page import assert_drawn, attributions, field, opened_job
from tests.test_page_form import WRITE, as_json, fold, python, shell, submitted

SEGMENTS = [{"name": "the first", "text": "Anna likes tea."}, {"text": "Ben likes milk."}, {"start": 8, "pinned": True}]


def test_a_form_sends_segments_and_the_result_is_read_by_them(served, open_page):
    page = open_page(served)
    field(page, "/input_text").fill(PROMPT)
    field(page, "/method").select_option("shapley")
    fold(page, "Positions and tokens").click()
    field(page, "/segments").fill(json.dumps(SEGMENTS))
    request = submitted(served, page)
    assert [
        {name: each[name] for name in given} for each, given in zip(request["segments"], SEGMENTS, strict=True)
    ] == SEGMENTS
    job = opened_job(page)
    page.get_by_role("button", name="Segments", exact=True).click()
    result = served.result(job, aggregator="segments", decode_tokens=True)
    assert_drawn(page, attributions(result))
    expect(page.locator(".reading, .sequence").first).to_contain_text("the first")
    expect(page.locator(".legend").first).to_contain_text("sum of 2 tokens")


def test_a_unit_is_a_segment_too_and_a_job_without_segments_has_no_button(served, open_page):
    page = open_page(served)
    field(page, "/input_text").fill(PROMPT)
    fold(page, "Positions and tokens").click()
    field(page, "/segments").fill("sentences")
    assert submitted(served, page)["segments"] == "sentences"
    expect(page.get_by_role("button", name="Segments", exact=True)).to_be_visible()
    plain = open_page(served, f"/#/jobs/{served.run(model=LOOKUP, method='saliency', input_text=PROMPT)}")
    expect(plain.get_by_role("button", name="Sentences")).to_be_visible()
    expect(plain.get_by_role("button", name="Segments", exact=True)).to_have_count(0)


def test_copied_texts_have_the_segments(served, open_page):
    page = open_page(served)
    body = {"model": LOOKUP, "method": "banzhaf", "input_text": PROMPT, "segments": SEGMENTS}
    for name, run in {
        "curlText": lambda text: json.loads(shell(text)),
        "pythonText": python,
        "commandText": lambda text: json.loads(shell(as_json(text))),
    }.items():
        result = run(page.evaluate(WRITE, [name, {"request": body}]))
        assert [each["name"] for each in result["info"]["segments"][0]] == [
            "the first",
            "Ben likes milk.",
            "Anna likes",
        ], name
