"""The reading view: a conversation's turns, the whole answer, units of text, large tables."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from attribution_client import AttributionClient, contrast_request
from tests import chat_models
from tests.conftest import LOOKUP, PROMPT
from tests.page import address, expect_values, opened_job, values

MESSAGES = [
    {"role": "system", "content": "The lazy dog."},
    {"role": "user", "content": "The quick brown fox. It jumps!\n\nOver é 漢字 dogs"},
]
REPLY = " The fox jumps over the dog."


@pytest.fixture(scope="module")
def chat(server, model_dir):
    """A job of a conversation on a tiny model, and its result with decoded tokens."""
    if not (folder := model_dir / "chat-qwen2").exists():
        chat_models.build("chat-qwen2", folder)
    job_id = server.run(model="chat-qwen2", method="input_x_gradient", messages=MESSAGES, generated_text=REPLY)
    return job_id, server.result(job_id, decode_tokens=True)["sequence_attributions"][0]


def sums(sequence):
    start = sequence["attr_pos_start"]
    return [sum(each for each in row if each is not None) for row in sequence["target_attributions"][:start]]


def test_turns_are_blocks_and_each_letter_is_drawn_once(server, chat, open_page):
    job_id, _ = chat
    page = open_page(server, f"/#/jobs/{job_id}")
    opened_job(page)
    expect(page.locator(".role")).to_have_text(["system", "user", "assistant"])
    texts = page.locator(".tokens").evaluate_all("all => all.map(each => each.textContent)")
    assert texts == [
        "<|im_start|>system\nThe lazy dog.<|im_end|>\n",
        f"<|im_start|>user\n{MESSAGES[1]['content']}<|im_end|>\n",
        f"<|im_start|>assistant\n{REPLY}",
    ]
    raw = page.locator("main").inner_text()
    assert not any(mark in raw for mark in "ĠĊ▁")


def test_the_whole_answer_is_the_sum_of_its_tokens_without_the_template_if_that_is_hidden(server, chat, open_page):
    job_id, sequence = chat
    page = open_page(server, f"/#/jobs/{job_id}")
    opened_job(page)
    scores = sums(sequence)
    start = sequence["attr_pos_start"]
    given = page.locator(".tokens .given")
    assert values(given) == pytest.approx(scores, abs=1e-6)
    assert values(page.locator(".tokens .generated")) == [None] * (len(sequence["target"]) - start)
    page.get_by_label("hide the chat template").check()
    expect(page.locator(".tokens .template").first).to_be_hidden()
    kept = [
        score
        for score, token in zip(scores, sequence["target"], strict=False)
        if not (token["template"] or token.get("special"))
    ]
    shares = page.locator(".tokens .given:not(.template)").evaluate_all(
        "all => all.map(each => Number(each.style.getPropertyValue('--w')))"
    )
    assert shares == pytest.approx([abs(each) / max(map(abs, kept)) for each in kept], abs=1e-4)
    bars = values(page.locator(".strongest .number"))
    assert bars == pytest.approx(sorted(kept, key=abs, reverse=True)[: len(bars)], abs=1e-6)
    assert Axe().run(page).response["violations"] == []


def test_keys_in_the_text_change_the_selection(server, chat, open_page):
    job_id, sequence = chat
    page = open_page(server, f"/#/jobs/{job_id}")
    opened_job(page)
    start = sequence["attr_pos_start"]
    columns = list(zip(*sequence["target_attributions"], strict=True))
    strongest = max(
        range(len(columns)), key=lambda each: max(abs(value) for value in columns[each] if value is not None)
    )
    page.locator(".tokens .generated").first.focus()
    for key, column in {"s": strongest, "]": strongest + 1, "[": strongest}.items():
        page.keyboard.press(key)
        expect_values(page.locator(".tokens .given"), list(columns[column][:start]))
        assert f"pos={column}" in address(page)
    page.keyboard.press("a")
    expect(page.get_by_role("button", name="Whole answer")).to_have_attribute("aria-pressed", "true")


def test_a_unit_of_text_keeps_the_place(server, chat, open_page):
    """The chosen token's word or message stays chosen, with the sums of its tokens' scores."""
    job_id, sequence = chat
    tokens = sequence["target"][sequence["attr_pos_start"] :]
    column = next(i for i in range(len(tokens)) if "jum" in "".join(token["text"] for token in tokens[: i + 1]))
    page = open_page(server, f"/#/jobs/{job_id}?pos={column}")
    opened_job(page)
    for unit, text in {"Words": " jumps", "Messages": REPLY}.items():
        page.get_by_role("button", name=unit).click()
        chosen = page.locator('.tokens [aria-pressed="true"]')
        expect(chosen).to_have_text(text)
        expect(page.locator(".legend").first).to_contain_text({"Words": "this word", "Messages": "this message"}[unit])
    merged = server.result(job_id, aggregator="messages")["sequence_attributions"][0]
    start = merged["attr_pos_start"]
    expect_values(page.locator(".tokens .given"), [row[0] for row in merged["target_attributions"][:start]])
    assert "value" not in chosen.evaluate("each => ({...each.dataset})")  # a message does not depend on itself
    page.get_by_role("button", name="Tokens").click()
    expect(page.locator('.tokens [aria-pressed="true"]')).to_have_text(
        sequence["target"][sequence["attr_pos_start"]]["text"]
    )


# The colour of a canvas at the middle of a cell.
PIXEL = """(canvas, [row, column, rows, columns]) => {
  const x = Math.floor((column + .5) * canvas.width / columns), y = Math.floor((row + .5) * canvas.height / rows);
  return [...canvas.getContext('2d').getImageData(x, y, 1, 1).data];
}"""


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1920)])
def test_a_large_table_is_drawn_as_pixels_with_numbers_at_the_pointer(server, chat, open_page, scheme, width):
    job_id, sequence = chat
    scores = sequence["target_attributions"]
    rows, columns = len(scores), len(scores[0])
    assert rows * columns > 400
    page = open_page(server, f"/#/jobs/{job_id}", color_scheme=scheme, viewport={"width": width, "height": 900})
    opened_job(page)
    expect(page.locator("details.all")).not_to_have_attribute("open", "")
    page.get_by_text("Table of all scores").click()
    canvas = page.get_by_role("img", name=f"Scores of {rows} attributed tokens for {columns} generated tokens")
    cells = [(row, column) for row in range(rows) for column in range(columns) if scores[row][column] is not None]
    row, column = max(cells, key=lambda cell: abs(scores[cell[0]][cell[1]]))
    tokens = page.locator(".tokens .token.heat")  # the darkest token for this column has the same colour
    page.locator(f'.tokens [data-column="{column}"]').click()
    darkest = max(
        range(tokens.count()),
        key=lambda index: float(tokens.nth(index).evaluate("e => e.style.getPropertyValue('--w') || 0")),
    )
    expected = tokens.nth(darkest).evaluate("""each => {
      const pen = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
      pen.fillStyle = getComputedStyle(each).backgroundColor; pen.fillRect(0, 0, 1, 1);
      return [...pen.getImageData(0, 0, 1, 1).data];
    }""")
    found = canvas.evaluate(PIXEL, [row, column, rows, columns])
    assert all(abs(a - b) <= 2 for a, b in zip(found, expected, strict=True)), (found, expected)
    later = next((r, c) for r in range(rows) for c in range(columns) if scores[r][c] is None)
    assert canvas.evaluate(PIXEL, [*later, rows, columns])[3] == 0  # nothing is drawn where no token was yet
    box = canvas.bounding_box()
    canvas.hover(position={"x": (column + 0.5) * box["width"] / columns, "y": (row + 0.5) * box["height"] / rows})
    expect(page.locator(".hovered-score")).to_contain_text(f": {scores[row][column]}")
    page.get_by_role("region", name="Table of scores as pixels").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".hovered-score")).to_contain_text(f": {scores[1][column]}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert Axe().run(page).response["violations"] == []
    page.get_by_role("button", name="Show the numbers").click()
    expect(page.get_by_role("gridcell")).to_have_count(rows * columns)


def test_a_click_on_a_candidate_asks_why_not_that_token(server, chat, open_page):
    """The new job is the one that the client's `contrast_request` makes, and its head says what is contrasted."""
    job_id, sequence = chat
    column = 1
    page = open_page(server, f"/#/jobs/{job_id}?pos={column}")
    opened_job(page)
    shown = page.locator(".candidates")
    candidates = sequence["candidates"][column]
    assert values(shown.locator(".number")) == [each["probability"] for each in candidates]
    (chosen,) = [each for each in candidates if each["chosen"]]
    other = next(each for each in candidates if not each["chosen"])
    expect(shown.locator("li.chosen")).to_have_count(1)
    shown.get_by_role("button").first.click()
    expect(page.locator(".question")).to_contain_text("contrast_prob_diff")
    made = opened_job(page)
    assert made != job_id
    with AttributionClient(server.url) as client:
        result = client.results(job_id)
        expected = contrast_request(
            client.job(job_id), result, sequence["attr_pos_start"] + column, other["token_id"]
        ).model_dump(exclude={"name", "notes"})
        assert client.job(made).request.model_dump(exclude={"name", "notes"}) == expected
        (contrast,) = client.results(made, decode_tokens=True).sequence_attributions
    assert contrast.target[sequence["attr_pos_start"] + column].contrast == other["text"]
    assert chosen["text"].strip() in page.locator(".strongest h3").inner_text()
    assert f"rather than “\u2068{other['text'].strip()}" in page.locator(".strongest h3").inner_text()
    assert Axe().run(page).response["violations"] == []


def test_a_candidate_without_a_number_is_listed_too(server, chat, open_page):
    job_id, sequence = chat

    def without_numbers(route):
        answer = route.fetch()
        document = answer.json()
        document["sequence_attributions"][0]["candidates"][0][0]["probability"] = None
        route.fulfill(response=answer, json=document)

    page = open_page(server)
    page.route("**/results*", without_numbers)
    page.goto(f"{server.url}/#/jobs/{job_id}?pos=0")
    numbers = page.locator(".candidates .number")
    expect(numbers.first).to_have_text("\N{EN DASH}")
    assert values(numbers) == [None, *(each["probability"] for each in sequence["candidates"][0][1:])]


CHECKED = {
    "one": {"method": "sequential_integrated_gradients", "n_steps": 9},
    "the second": {"methods": ["saliency", "occlusion"]},
}


@pytest.mark.parametrize("name", CHECKED)
def test_a_check_hides_neither_the_text_so_far_nor_what_is_done(server, open_page, name):
    """It counts steps of its own: before a first method there are no scores, before a later one those of the first."""
    done = server.wait(server.submit(model=LOOKUP, input_text=PROMPT, engine="inseq", **CHECKED[name]))
    assert done["status"] == "completed"
    progress = {"stage": "checking", "method": "occlusion" if name == "the second" else None, "steps_done": 2,
                "steps_total": 9, "fraction": 0.5, "eta_seconds": None, "generated_text": ["so far"]}  # fmt: skip
    document = done | {"status": "running", "finished_at": None, "progress": progress}
    page = open_page(server, "/docs")
    page.route(f"**/attribution/jobs/{done['job_id']}", lambda route: route.fulfill(json=document))
    page.route("**/attribution/jobs?*", lambda route: route.fulfill(json={"jobs": [document], "next_cursor": None}))
    page.route("**/events", lambda route: route.abort())
    page.goto(f"{server.url}/#/jobs/{done['job_id']}")
    expect(page.get_by_role("progressbar").first).to_be_visible()
    if name == "one":
        expect(page.locator(".so-far p")).to_have_text("so far")
        expect(page.locator(".result")).to_have_count(0)
    else:
        expect(page.locator(".result .tokens").first).to_be_visible()
        expect(page.locator(".so-far")).to_have_count(0)


def test_the_text_is_read_while_it_is_generated(server, open_page, model_dir):
    job_id = server.submit(
        model="chat-qwen2", method="integrated_gradients", messages=MESSAGES, n_steps=1000, engine="inseq",
        generation_args={"max_new_tokens": 20, "min_new_tokens": 20},
    )  # fmt: skip
    page = open_page(server, f"/#/jobs/{job_id}")
    expect(page.locator(".so-far p")).to_have_text(re.compile(r"\S"))
    server.client.post(f"/attribution/jobs/{job_id}/cancel")
    expect(page.locator(".facts .status")).to_have_text("cancelled")
