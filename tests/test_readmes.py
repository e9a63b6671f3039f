"""The examples of the original README and of ours run as written, except for the port."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import time

from tests.serving import ROOT

SUBMIT = """
import requests

response = requests.post(
    "http://localhost:8000/attribution/jobs",
    json={
        "model": "distilgpt2",
        "method": "input_x_gradient",
        "input_text": "Feature attribution helps explain model predictions.",
        "step_scores": ["probability", "logit"],
        "force_cpu": True
    }
)

job_id = response.json()["job_id"]
print(f"Job ID: {job_id}")
"""
STATUS = """
response = requests.get(f"http://localhost:8000/attribution/jobs/{job_id}")
status = response.json()["status"]
print(f"Job status: {status}")
"""
RESULTS = """
if status == "completed":
    results = requests.get(f"http://localhost:8000/attribution/jobs/{job_id}/results").json()
    print(results)
"""
METHODS_IT_NAMES = ["input_x_gradient", "saliency", "integrated_gradients", "deep_lift", "lime", "attention"]


def test_the_examples_work_as_written(server, capsys):
    def run(example):
        exec(example.replace("http://localhost:8000", server.url), names)

    names: dict = {}
    run(SUBMIT)
    assert names["response"].status_code == 202
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and names.get("status") not in {"completed", "failed"}:
        run(STATUS)
        time.sleep(0.05)
    run(RESULTS)
    printed = capsys.readouterr().out
    assert f"Job ID: {names['job_id']}" in printed
    assert "Job status: completed" in printed

    results = names["results"]
    assert set(results) == {"sequence_attributions", "step_attributions", "info"}
    (sequence,) = results["sequence_attributions"]
    for name in ("source", "target"):
        assert all(set(token) == {"token", "token_id"} for token in sequence[name])
        assert all(isinstance(token["token_id"], int) for token in sequence[name])
    generated = sequence["attr_pos_end"] - sequence["attr_pos_start"]
    assert generated == 20  # Transformers' own default
    assert set(sequence["step_scores"]) == {"probability", "logit"}
    assert all(len(scores) == generated for scores in sequence["step_scores"].values())
    assert all(0 < value <= 1 for value in sequence["step_scores"]["probability"])
    assert len(sequence["target_attributions"]) == len(sequence["target"])
    assert all(len(row) == generated for row in sequence["target_attributions"])
    assert results["info"]["model_name"] == "distilgpt2"
    assert results["info"]["device"] == "cpu"


def our_examples(document):
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_our_own_first_job_works_as_written(server, capsys):
    example = our_examples("docs/api.md")[0]
    exec(example.replace("http://localhost:8000", server.url), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "' tea' depended on:"
    assert len(lines) == 1 + 10  # a line for each token of the prompt
    scores = {line.split()[0]: float(line.split()[1]) for line in lines[1:]}
    assert scores["tea"] > scores["milk"]


def test_the_client_works_as_written(server, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(our_examples("README.md")[0].replace("http://localhost:8000", server.url), {})
    words = {line.split()[1]: line.split()[2] for line in capsys.readouterr().out.splitlines()[1:]}
    assert words.items() >= {"il": "the", "gatto": "cat", "rosso": "red", "cane": "dog"}.items()
    assert (tmp_path / "heatmap.png").read_bytes().startswith(b"\x89PNG")


def test_our_own_curl_lines_work_as_written(server):
    submit, read = re.findall(r"```\n(curl .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

    def printed(command):
        command = command.replace("http://127.0.0.1:8000", server.url)
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout

    job_id = json.loads(printed(submit))["job_id"]
    assert server.wait(job_id)["status"] == "completed"
    rows = list(csv.DictReader(io.StringIO(printed(read.replace("JOB_ID", job_id)))))
    of_tea = [row for row in rows if row["generated_position"] == "10"]
    assert max(of_tea, key=lambda row: float(row["score"]))["attributed_text"] == " tea"


def test_the_methods_it_names_are_served(server):
    for method in METHODS_IT_NAMES:
        arguments = {"n_samples": 5} if method == "lime" else {}
        job_id = server.run(
            model="distilgpt2", method=method, input_text="The quick", attribution_args=arguments,
            generation_args={"max_new_tokens": 2},
        )  # fmt: skip
        used = server.result(job_id)["info"]["attribution_method"]
        assert used == method.replace("deep_lift", "deeplift")


def test_list_all_jobs(server):
    job_id = server.run(model="distilgpt2", method="dummy", input_text="The quick")
    jobs = server.client.get("/attribution/jobs").json()["jobs"]
    assert job_id in [job["job_id"] for job in jobs]


def test_the_contributors_guide_names_the_tests_of_the_page():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    tests = sorted(path.name for path in (ROOT / "tests").glob("test_page*.py"))
    assert [name for name in tests if f"`tests/{name}`" not in guide] == []
