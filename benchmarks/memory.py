"""The server's memory over many jobs of a real model, many views of a large result, and many estimates.

`python -m benchmarks.memory [jobs] [views] [estimates]`, with the model of `make smollm2`, or a bundled one without it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

from demo_models.smollm2 import FOLDER, NAME
from tests.conftest import LOOKUP
from tests.serving import Server

MB = 1024**2
METHODS = ("saliency", "input_x_gradient", "attention", "occlusion", "deeplift", "integrated_gradients")
VIEWS = (
    {"format": "html"},
    {"format": "csv"},
    {"format": "inseq"},
    {"format": "parquet"},
    {"granular": True},
    {"aggregator": "subwords,vnorm"},
)
SHARES = 5  # lines of each part


def measured(what: str, number: int, process: psutil.Process, call: Callable[[int], None]) -> None:
    """Call `call` with 0 to number - 1, and print the memory at five places."""
    print(f"{what:10} {0:5}: {process.memory_info().rss / MB:7.0f} MB", flush=True)
    for index in range(number):
        call(index)
        if (index + 1) % max(1, number // SHARES) == 0:
            print(f"{what:10} {index + 1:5}: {process.memory_info().rss / MB:7.0f} MB", flush=True)


def main() -> None:
    jobs, views, estimates = [int(each) for each in sys.argv[1:]] or (1000, 500, 500)
    model = NAME if FOLDER.exists() else LOOKUP
    print(f"model {model}")
    with Server(Path(tempfile.mkdtemp())) as server:
        process = psutil.Process(server.pid)
        text = "The capital of France is"

        def job(index: int) -> None:
            method = METHODS[index % len(METHODS)]
            arguments = {"n_steps": 4} if method == "integrated_gradients" else {}
            body = {
                "model": model,
                "method": method,
                "input_text": f"{text} {index}",
                "generated_text": f"{text} {index} Paris",
            }
            server.run(**body, attribution_args=arguments)

        job(0)
        measured("jobs", jobs, process, job)
        words = " ".join(f"{text} {index}" for index in range(30))
        large = server.run(
            model=model,
            method="saliency",
            input_text=words,
            generation_args={"max_new_tokens": 60, "min_new_tokens": 60},
        )
        tokens = len(server.result(large)["sequence_attributions"][0]["target"])
        print(f"a result of {tokens} tokens, of them 60 generated")

        def view(index: int) -> None:
            answer = server.client.get(f"/attribution/jobs/{large}/results", params=VIEWS[index % len(VIEWS)])
            assert answer.status_code == 200, answer.text

        def estimate(index: int) -> None:
            body = {"model": model, "method": METHODS[index % len(METHODS)], "input_text": f"{words} {index}"}
            answer = server.client.post("/attribution/estimate", json=body)
            assert answer.status_code == 200, answer.text

        measured("views", views, process, view)
        measured("estimates", estimates, process, estimate)


if __name__ == "__main__":
    main()
