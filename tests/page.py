"""Reads the page for tests: its form fields, the job that it shows, and the scores that it draws."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import expect

expect.set_options(timeout=180_000)  # a machine may be busy


def field(page, pointer):
    return page.locator(f'[data-pointer="{pointer}"]')


def opened_job(page):
    """Wait until the page shows the complete result of a job; returns the job's id."""
    expect(page.locator(".facts .status")).to_have_text("completed")
    expect(page.get_by_text("Tokens attributed so far")).to_have_count(0)
    expect(page.locator(".tokens").first).to_be_visible()
    return re.search(r"#/jobs/(\w+)", address(page)).group(1)


def address(page):
    """The current address. `page.url` may still be the previous one."""
    return page.evaluate("location.href")


def drawn(page):
    """The cells of the table of scores, by row: `[score, text]`, where the score is None in an empty cell."""
    rows = page.locator('table[role="grid"] tbody tr')
    return rows.evaluate_all(
        "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell =>"
        " [cell.dataset.value === undefined ? null : Number(cell.dataset.value), cell.textContent]))"
    )


def attributions(result, sequence=0):
    one = result["sequence_attributions"][sequence]
    return [*(one["source_attributions"] or []), *(one["target_attributions"] or [])]


def expect_number(page, selector, value):
    """Wait until an element has this number in its data. Compares numbers, as JavaScript and Python format some differently."""
    page.wait_for_function(
        "([selector, value]) => Number(document.querySelector(selector)?.dataset.value) === value",
        arg=[selector, value],
    )


def values(locator):
    """The numbers in the data of elements."""
    return locator.evaluate_all(
        "all => all.map(each => each.dataset.value === undefined ? null : Number(each.dataset.value))"
    )


def expect_values(locator, expected):
    """Wait until elements have these numbers."""
    expect_equal(lambda: values(locator), expected)


def expect_equal(found, expected):
    """Wait until `found()` returns this, and fail with what it returns instead after a minute."""
    deadline = time.monotonic() + 60
    while (actual := found()) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert actual == expected


def assert_drawn(page, scores):
    """Wait until the table has these scores; the texts of its cells must agree with them."""
    expect_equal(lambda: [[value for value, _ in row] for row in drawn(page)], scores)
    for row in drawn(page):
        for value, text in row:
            assert text == "" if value is None else float(text) == pytest.approx(value, abs=6e-4, rel=0.05)
