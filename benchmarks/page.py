"""Measures the page on a long text: `python -m benchmarks.page`.

A real server attributes a prompt of 2,000 tokens and its continuation of 200 on a random GPT-2; a real browser opens
the result. Reports, in milliseconds, the time until the text is drawn; the longest frame after a selection; and the
time between frames while the page scrolls, beside that of another page in the same browser. The last line is JSON.
"""

from __future__ import annotations

import os
import tempfile

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch is imported

import json
import statistics
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.random_models import SIZES, build
from tests.browser import browser
from tests.serving import Server

_WORDS = "The quick brown fox jumps over the lazy dog. It was a bright cold day in April, and the clocks struck."
_PROMPT, _GENERATED = 2000, 200
_SELECTIONS = 40

# For each of these tokens, the longest time between two frames after a click on it, in milliseconds: the page draws at
# most every 16.7, and more where a frame takes longer.
_SELECT = """async (columns) => {
  const frame = () => new Promise(requestAnimationFrame);
  const found = [];
  for (const column of columns) {
    const token = document.querySelector(`.tokens [data-column="${column}"]`);
    let before = await frame();
    token.click();
    let longest = 0;
    for (let count = 0; count < 6; count += 1) {
      const now = await frame();
      longest = Math.max(longest, now - before);
      before = now;
    }
    found.push(longest);
  }
  return found;
}"""
# Milliseconds between frames while the page scrolls to its end and back.
_SCROLL = """async () => {
  const frame = () => new Promise(requestAnimationFrame);
  const found = [];
  const height = document.documentElement.scrollHeight - innerHeight;
  let before = await frame();
  for (let step = 0; step <= 120; step += 1) {
    scrollTo(0, height * Math.abs(Math.sin(step / 40)));
    const now = await frame();
    found.push(now - before);
    before = now;
  }
  return found;
}"""


def _texts(folder: Path) -> tuple[str, str]:
    """A prompt of `_PROMPT` tokens, and the prompt with its continuation."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(" ".join([_WORDS] * 200)).input_ids
    return tokenizer.decode(ids[:_PROMPT]), tokenizer.decode(ids[: _PROMPT + _GENERATED])


def _summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 1),
        "95 %": round(ordered[int(0.95 * (len(ordered) - 1))], 1),
        "longest": round(ordered[-1], 1),
    }


def main() -> None:
    """Measure, and print a line for each quantity."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        build(SIZES[0], Path(scratch) / "models" / "long", positions=2304)
        prompt, full = _texts(Path(scratch) / "models" / "long")
        with (
            Server(Path(scratch) / "data", INSEQ_API_MODEL_DIRS=f"{scratch}/models") as server,
            browser() as chromium,
        ):
            request = {"model": "long", "method": "saliency", "engine": "single_pass"}
            job_id = server.run(**request, input_text=prompt, generated_text=full)
            page = chromium.new_page(viewport={"width": 1280, "height": 900})
            page.goto(f"{server.url}/docs")
            found["frames of another page"] = _summary(page.evaluate(_SCROLL))
            page.goto(f"{server.url}/#/jobs/{job_id}")
            page.locator(".tokens .heat").first.wait_for()
            found["tokens"] = page.locator(".tokens .token").count()
            found["until drawn"] = round(page.evaluate("performance.now()"))
            found["longest frame after a selection"] = _summary(
                page.evaluate(_SELECT, list(range(0, _GENERATED, _GENERATED // _SELECTIONS)))
            )
            found["frames while scrolling"] = _summary(page.evaluate(_SCROLL))
            page.get_by_text("Table of all scores").click()
            page.locator("canvas").wait_for()
            found["with the table"] = _summary(page.evaluate(_SELECT, list(range(0, _GENERATED, 20))))
    for name, value in found.items():
        print(f"{name}: {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
