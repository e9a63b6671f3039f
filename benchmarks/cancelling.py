"""How long a running job takes to end after its cancellation, by method and stage: `python -m benchmarks.cancelling`.

A real server and SmolLM2-135M-Instruct (`make smollm2`), or the bundled lookup-gpt2 where it cannot be had; one
intra-op thread. Each job is cancelled at several times after the stage began, over HTTP; the longest wait counts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "INSEQ_ARTIFACTS_CACHE": tempfile.mkdtemp()}

from demo_models.smollm2 import FOLDER, NAME
from tests.conftest import LOOKUP
from tests.serving import Server

METHODS = (
    "attention", "deeplift", "discretized_integrated_gradients", "dummy", "gradient_shap", "input_x_gradient",
    "integrated_gradients", "layer_deeplift", "layer_gradient_x_activation", "layer_integrated_gradients", "lime",
    "occlusion", "reagent", "saliency", "sequential_integrated_gradients", "value_zeroing",
)  # fmt: skip
_SENTENCE = "Alice was born in Paris, studied medicine in Berlin, and now she works as a doctor in London. "
_POLL = 0.01
_ENDED = ("completed", "failed", "cancelled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--sentences", type=int, default=8, help="of about 22 tokens")
    parser.add_argument("--generated", type=int, default=30)
    parser.add_argument("--after", default="0.2,0.9,2.3", help="seconds after the stage began")
    arguments = parser.parse_args()
    name = NAME if FOLDER.exists() else LOOKUP
    body = {
        "model": name,
        "input_text": _SENTENCE * arguments.sentences,
        "generation_args": {"max_new_tokens": arguments.generated, "min_new_tokens": arguments.generated},
        "reuse": False,
    }
    moments = [float(each) for each in arguments.after.split(",")]
    print(f"{name}\n\n| what | stage | longest wait, s | waits, s |\n|---|---|---|---|")
    for stage in ("loading_model", "generating"):
        waits = []
        for after in moments:
            with tempfile.TemporaryDirectory() as folder, _server(folder) as server:
                waits.append(cancelled(server, body | {"method": "dummy"}, stage, min(after, 1.0)))
        report("dummy", stage, waits)
    with tempfile.TemporaryDirectory() as folder, _server(folder) as server:
        server.run(**(body | {"method": "dummy", "input_text": "Alice"}))
        target = generated_text(server, body)
        for method in arguments.methods.split(","):
            forced = {**body, "method": method, "generated_text": target, "step_scores": ["probability"]}
            del forced["generation_args"]
            waits = [cancelled(server, forced, "attributing", after) for after in moments]
            report(method, "attributing", waits)


def _server(folder: str) -> Server:
    return Server(Path(folder), INSEQ_API_MAX_INPUT_TOKENS="1024")


def generated_text(server: Server, body: dict[str, Any]) -> str:
    """What the model generates, with the prompt."""
    sequence = server.result(server.run(**body, method="dummy"))["sequence_attributions"][0]
    tokens = [each["token"] for each in sequence["target"][sequence["attr_pos_start"] :]]
    return str(body["input_text"]) + "".join(tokens).replace("Ġ", " ").replace("Ċ", " ")


def cancelled(server: Server, body: dict[str, Any], stage: str, after: float) -> float | str:
    """Seconds from the cancellation, `after` seconds into a stage, to the job's end; or its end if that came first."""
    job_id = server.submit(**body)
    while (job := server.job(job_id))["progress"]["stage"] != stage and job["status"] not in _ENDED:
        time.sleep(_POLL)
    time.sleep(after)
    began = time.perf_counter()
    answer = server.client.post(f"/attribution/jobs/{job_id}/cancel")
    if answer.status_code != 202:
        return str(server.job(job_id)["status"])
    job = server.wait(job_id)
    return time.perf_counter() - began if job["status"] == "cancelled" else str(job["status"])


def report(what: str, stage: str, waits: list[float | str]) -> None:
    seconds = [each for each in waits if not isinstance(each, str)]
    listed = ", ".join(each if isinstance(each, str) else f"{each:.2f}" for each in waits)
    print(f"| {what} | {stage} | {max(seconds, default=float('nan')):.2f} | {listed} |", flush=True)


if __name__ == "__main__":
    main()
