"""The trace on the page: its spans, hops and colours, its address, by keyboard, on a narrow screen."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests import chat_models
from tests.conftest import LOOKUP
from tests.page import address, expect_values, opened_job
from tests.test_trace_views import ANSWER, TEXT

SUMMARY = "Trace an answer back through the reasoning"


@pytest.fixture(scope="module")
def job(server):
    return server.run(model=LOOKUP, method="input_x_gradient", input_text=TEXT, generated_text=TEXT + ANSWER)


def part(page, label):
    return page.locator(".trace-part", has=page.get_by_role("heading", name=label)).locator(".token")


def texts(page, label):
    return part(page, label).evaluate_all("all => all.map(each => each.textContent)")


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1920)])
def test_an_answer_is_traced_hop_by_hop(server, job, open_page, scheme, width):
    page = open_page(server, f"/#/jobs/{job}", color_scheme=scheme, viewport={"width": width, "height": 900})
    opened_job(page)
    page.get_by_text(SUMMARY).click()
    (found,) = server.result(job, trace="22:23")["traces"]
    expect_values(part(page, "Input"), found["scores"])
    assert texts(page, "Answer") == [" milk"]
    expect_values(part(page, "Reasoning"), found["reasoning_scores"])
    assert "trace=22%3A23" in address(page)
    shares = part(page, "Input").evaluate_all("all => all.map(each => Number(each.style.getPropertyValue('--w')))")
    assert shares == pytest.approx([each / max(found["scores"]) for each in found["scores"]], abs=1e-4)
    hops = page.get_by_role("list", name="Hops")
    numbers = hops.locator(".number").evaluate_all("all => all.map(each => Number(each.dataset.value))")
    listed = [each for hop in found["hops"] for each in (hop["prompt"], hop["reasoning"])]
    assert numbers[:2] == [pytest.approx(1), 0]
    assert numbers[2:] == listed[: len(numbers) - 2]
    # By keyboard: the first hop colours the text alone.
    hops.get_by_role("button", name="1", exact=True).focus()
    page.keyboard.press("Enter")
    expect_values(part(page, "Input"), found["hops"][1]["scores"])
    expect_values(part(page, "Reasoning"), found["hops"][1]["reasoning_scores"])
    expect(hops.get_by_role("button", name="1", exact=True)).to_have_attribute("aria-pressed", "true")
    assert "hop=1" in address(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert Axe().run(page).response["violations"] == []
    # The address is all of it: another page shows the same.
    again = open_page(server, address(page).removeprefix(server.url), viewport={"width": width, "height": 900})
    expect_values(part(again, "Input"), found["hops"][1]["scores"])
    page.get_by_text(SUMMARY).click()
    expect(page.locator(".trace-shown")).to_have_count(0)
    assert not re.search("trace=|hop=", address(page))


def test_spans_are_written_or_taken_from_the_text(server, job, open_page):
    page = open_page(server, f"/#/jobs/{job}?trace=22:23")
    opened_job(page)
    page.get_by_label("From (the answer)").fill("text[0]:likes")
    page.get_by_label("Through (the reasoning)").fill("between:milk, likes")
    page.keyboard.press("Enter")
    (found,) = server.result(job, trace="text[0]:likes", through="between:milk, likes")["traces"]
    expect_values(part(page, "Input"), found["scores"])
    assert (texts(page, "Answer"), texts(page, "Reasoning")) == ([" likes"], [".", " Anna"])
    assert found["elsewhere"] > 0
    expect(page.locator("details.trace")).to_contain_text(f"{found['elsewhere']:.1%} ended on other generated tokens")
    # A token that is chosen in the text, and several that are selected.
    page.locator('.reading [data-column="6"]').click()
    page.get_by_role("button", name="Take what is selected in the text").first.click()
    expect(page.get_by_label("From (the answer)")).to_have_value("20:21")
    page.evaluate("""() => {
      const tokens = document.querySelectorAll('.reading [data-column]');
      getSelection().setBaseAndExtent(tokens[1].firstChild, 0, tokens[3].firstChild, 1);
    }""")
    page.get_by_role("button", name="Take what is selected in the text").last.click()
    expect(page.get_by_label("Through (the reasoning)")).to_have_value("15:18")
    (found,) = server.result(job, trace="20:21", through="15:18")["traces"]
    expect_values(part(page, "Input"), found["scores"])
    # What the server refuses is said, and the words stay.
    page.get_by_label("From (the answer)").fill("text:rice")
    page.get_by_role("button", name="Trace", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("'rice' does not occur")
    expect(page.get_by_label("From (the answer)")).to_have_value("text:rice")


def test_a_chain_of_thought_is_the_reasoning_and_the_template_can_be_left_out(server, model_dir, open_page):
    if not (folder := model_dir / "chat-qwen2").exists():
        chat_models.build("chat-qwen2", folder)
    job_id = server.run(
        model="chat-qwen2", method="saliency", messages=[{"role": "user", "content": "The quick brown fox."}],
        generated_text="<think> It jumps.</think> Over the dog.",
    )  # fmt: skip
    page = open_page(server, f"/#/jobs/{job_id}")
    opened_job(page)
    page.get_by_text(SUMMARY).click()
    expect(page.get_by_label("From (the answer)")).to_have_value("after:</think>")
    expect(page.get_by_label("Through (the reasoning)")).to_have_value("between:<think>,</think>")
    asked = {"trace": "after:</think>", "through": "between:<think>,</think>"}
    (found,) = server.result(job_id, **asked)["traces"]
    expect_values(part(page, "Input"), found["scores"])
    assert "".join(texts(page, "Answer")) == " Over the dog."
    page.get_by_label("no share for the template").check()
    (bare,) = server.result(job_id, **asked, without_template=True)["traces"]
    expect_values(part(page, "Input"), bare["scores"])
    expect(page.locator("details.trace")).to_contain_text(
        f"{bare['dropped']} special and template tokens got no share."
    )


def test_of_several_texts_the_shown_one_is_traced(server, open_page):
    """Positions of the second text need not be there in the first."""
    short = "Anna likes tea. Anna likes"
    job_id = server.run(
        model=LOOKUP, method="saliency", input_text=[short, TEXT], generated_text=[f"{short} tea.", TEXT + ANSWER]
    )
    page = open_page(server, f"/#/jobs/{job_id}?seq=1&trace=22:23")
    opened_job(page)
    (found,) = server.result(job_id, trace="22:23", sequence=1)["traces"]
    expect_values(part(page, "Input"), found["scores"])
    refused = server.client.get(f"/attribution/jobs/{job_id}/results", params={"trace": "22:23"})
    assert refused.status_code == 422


def test_the_html_view_fits_a_narrow_screen(server, job, open_page):
    page = open_page(server, "/docs", viewport={"width": 390, "height": 800})
    page.goto("about:blank")
    page.set_content(server.client.get(
        f"/attribution/jobs/{job}/results", params={"trace": "22:23", "through": "20:22", "format": "html"}
    ).text)  # fmt: skip
    expect(page.get_by_role("heading", name="Answer")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert Axe().run(page).response["violations"] == []
