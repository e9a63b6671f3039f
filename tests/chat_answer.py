"""The numbers and the picture of docs/chat-answer.md: `make chat-answer`, after `make smollm2`.

One comparison of five methods on SmolLM2-135M's answer to a question, from a real server, drawn by the page.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.browser import browser
from tests.pictures import PICTURES, save
from tests.serving import Server

REQUEST = {
    "model": "smollm2-135m-instruct-q4",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "generation_args": {"max_new_tokens": 12, "do_sample": False},
    "methods": ["attention", "saliency", "input_x_gradient", "integrated_gradients", "occlusion"],
    "n_steps": "auto",
    "step_scores": ["probability"],
}


def main():
    """Print, for the token that answers, the most important tokens of each method; save the page's picture."""
    with tempfile.TemporaryDirectory() as data, Server(Path(data)) as server, browser() as chromium:
        job_id = server.submit(**REQUEST)
        assert server.wait(job_id, timeout=3000)["status"] == "completed"
        for method in REQUEST["methods"]:
            result = server.result(job_id, method=method)
            print(method, json.dumps(strongest(result)), json.dumps(result["info"].get("convergence", "")))
            print("  ", result["info"]["engine"], result["info"]["warnings"])
        print(json.dumps(server.result(job_id).get("agreement", "")))
        page = chromium.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"{server.url}/#/jobs/{job_id}?pos=5")
        page.locator(".tokens").first.wait_for()
        page.locator(".tokens .token").nth(1).hover()
        save(page.screenshot(full_page=True), PICTURES / "chat-answer.png")


def strongest(result, word="Paris", count=6):
    """The tokens of highest score for the generated token that contains this word, with their scores."""
    (sequence,) = result["sequence_attributions"]
    tokens = [each["token"] for each in sequence["target"]]
    generated = tokens[sequence["attr_pos_start"] :]
    column = next(index for index, token in enumerate(generated) if word in token)
    scores = [(row[column], token) for row, token in zip(sequence["target_attributions"], tokens, strict=False)]
    known = [(abs(score), round(score, 3), token) for score, token in scores if score is not None]
    return [[token, score] for _, score, token in sorted(known, reverse=True)[:count]]


if __name__ == "__main__":
    main()
