"""Chat templates and tokenizers run with limits of time and memory, and give what Transformers gives."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from attribution.engine import AttributionEngine
from attribution.model_cache.model_source import ModelSource
from attribution.text.sandbox import Sandboxes, TextSandbox
from models import AttributionRequest
from problems import Cancelled, InputRejected, ServerBusy
from settings import Settings
from tests import chat_models
from tests.conftest import LOOKUP, PROMPT

MIB = 1024**2
MESSAGES = [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": 'Say "hé" <b>&漢</b>'}]
CONTINUED = [*MESSAGES, {"role": "assistant", "content": "Hé"}]

# For each feature that Transformers gives to templates, one that uses it.
TEMPLATES = {
    "chatml": chat_models.CHATML,
    "llama3": chat_models.LLAMA3,
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2, sort_keys=true, separators=(',', ':')) }}"
    "{{ messages[1].content | tojson(ensure_ascii=true) }}{{ {'content': messages[-1].content} | tojson }}",
    "strftime_now": "{{ strftime_now('%Y-%m-%d') }}{{ messages[-1].content }}",
    "loopcontrols": "{% for m in messages %}{% if loop.index0 == 0 %}{% continue %}{% endif %}{{ m.content }}"
    "{% break %}{% endfor %}{{ messages[-1].content }}",
    "generation": "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}"
    "{% endfor %}{{ ns.n }}{{ dict(a=1) }}{{ messages[-1].content }}",
    "macro": "{% macro turn(m) -%}\n  [{{ m.role | upper }}] {{ m.content | trim }}\n{%- endmacro %}\n"
    "{% for m in messages %}\n    {{ turn(m) }}\n{% endfor %}",
    "variables": "{{ bos_token }}{{ eos_token }}{{ enable_thinking }}{{ nested.a[1] | default('none') }}"
    "{{ tools | tojson }}{{ documents }}{{ add_generation_prompt }}{{ unknown is defined }}{{ messages[-1].content }}",
    "several": {"default": "D{{ messages[-1].content }}", "tool_use": "T{{ tools | tojson }}{{ messages[-1].content }}"},
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
VARIABLES = [{}, {"enable_thinking": False, "nested": {"a": [1, 2.5, None]}, "bos_token": "<B>", "tools": [TOOL],
                  "documents": [{"title": "t", "text": "x"}]}]  # fmt: skip


@pytest.fixture(scope="module")
def sandboxes():
    return Sandboxes(seconds=30, memory=512 * MIB)


@pytest.fixture(scope="module")
def chat_folder(model_dir):
    folder = model_dir / "chat-llama3"
    return folder if folder.exists() else chat_models.build("chat-llama3", folder)


def sandbox_of(sandboxes, folder, should_cancel=lambda: False):
    return TextSandbox(sandboxes, ModelSource(folder.name, "directory", folder, "1"), should_cancel)


def hostile(model_dir, chat_folder, name, change):
    """The chat model with a changed tokenizer, as a model of the server's directory."""
    folder = model_dir / name
    if not folder.exists():
        folder.mkdir()
        for file in chat_folder.iterdir():
            (folder / file.name).symlink_to(file)
        tokenizer = AutoTokenizer.from_pretrained(chat_folder)
        change(tokenizer)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / file).unlink()
        tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("variables", VARIABLES, ids=["plain", "variables"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_what_transformers_renders(sandboxes, chat_folder, name, variables, continued):
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    tokenizer.chat_template = TEMPLATES[name]
    messages = CONTINUED if continued else MESSAGES
    sandbox = sandbox_of(sandboxes, chat_folder)
    if name == "variables" and not variables:
        with pytest.raises(InputRejected, match="'nested' is undefined"):
            sandbox.render(tokenizer, messages, variables)
        return
    expected = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=not continued, continue_final_message=continued, **variables
    )
    assert sandbox.render(tokenizer, messages, variables) == expected


# What a hostile model may bring: a chat template, or a tokenizer's rule.

FILL_MEMORY = "{{ 'a' * 3000000000 }}{{ messages[0].content }}"
LOOP = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
DEEP = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}{{ messages[0].content }}"
DIVIDE = "{{ 1 // 0 }}{{ messages[0].content }}"
LONG = "{% for i in range(20000) %}{{ 'a' * 1000 }}{% endfor %}{{ messages[0].content }}"


def with_template(template):
    return lambda tokenizer: setattr(tokenizer, "chat_template", template)


def expanding(tokenizer):
    """Each letter becomes a megabyte."""
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "x" * MIB)


def panicking(tokenizer):
    """A pattern that the regex library gives up on, which the tokenizers library turns into a panic."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(a+)+$"), "isolated")


def searching(tokenizer):
    """A pattern that is searched for seconds, below the regex library's own limit, at each of many places."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(a+)+$"), "isolated")


HOSTILE = {
    "memory": (with_template(FILL_MEMORY), "hello", "chat template was stopped: it needs more than 1024 MiB"),
    "loop": (with_template(LOOP), "hello", "chat template was stopped: it took more than 2 seconds"),
    "recursion": (with_template(DEEP), "hello", "chat template refuses these texts: RecursionError"),
    "division": (with_template(DIVIDE), "hello", "chat template refuses these texts: ZeroDivisionError"),
    "long": (with_template(LONG), "hello", "chat template refuses these texts: the rendered text has 20000005 char"),
    # Which limit it meets first depends on how fast the machine gives memory out.
    "expanding": (expanding, "a" * 5000, r"was stopped: it (needs more than 1024 MiB|took more than 2 seconds)"),
    "panicking": (panicking, "a" * 50 + "!", "retry-limit-in-match over"),
    "searching": (searching, ("a" * 20 + "!") * 20000, "was stopped: it took more than 2 seconds"),
}


# Each takes seconds of processor time by nature; the others show the same limit.
COSTLY = {"expanding", "searching"}


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.slow) if each in COSTLY else each for each in HOSTILE]
)
def test_a_hostile_model_fails_its_own_job_only(server, model_dir, chat_folder, name):
    change, text, reason = HOSTILE[name]
    folder = hostile(model_dir, chat_folder, f"hostile-{name}", change)
    pid = server.pid
    body = {"model": folder.name, "method": "dummy", "messages": [{"role": "user", "content": text}],
            "generated_text": "b"}  # fmt: skip
    bad = server.submit(**body)
    good = server.submit(model=LOOKUP, method="dummy", input_text=PROMPT)
    job = server.wait(bad)
    assert (job["status"], job["error"]["type"]) == ("failed", "/problems/input-rejected"), job
    assert re.search(reason, job["error"]["detail"])
    assert len(job["error"]["detail"]) < 1000
    assert server.wait(good)["status"] == "completed"
    if name in {"expanding", "panicking"}:  # as a plain text too
        plain = body | {"messages": None, "input_text": text, "generated_text": text + "b"}
        assert re.search(reason, server.wait(server.submit(**plain))["error"]["detail"])
    answer = server.client.post("/attribution/estimate", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == "/problems/input-rejected"
    assert server.client.get("/health/ready").status_code == 200  # every worker lives
    assert server.pid == pid


def test_the_limit_of_memory(model_dir, chat_folder):
    folder = hostile(model_dir, chat_folder, "hostile-expanding", expanding)
    sandbox = sandbox_of(Sandboxes(seconds=3600, memory=256 * MIB), folder)
    with pytest.raises(InputRejected, match="tokenizer was stopped: it needs more than 256 MiB of memory"):
        sandbox.check_texts([{"text": "a" * 5000}], {})


def test_a_rendering_is_cancelled(chat_folder):
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    tokenizer.chat_template = LOOP
    asked = []
    sandbox = sandbox_of(
        Sandboxes(seconds=3600, memory=512 * MIB), chat_folder, should_cancel=lambda: len(asked) > 3 or asked.append(1)
    )
    with pytest.raises(Cancelled):
        sandbox.render(tokenizer, MESSAGES, {})


def test_a_process_that_was_killed_is_replaced(chat_folder):
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    pool = Sandboxes(seconds=30, memory=512 * MIB)
    sandbox = sandbox_of(pool, chat_folder)
    first = sandbox.render(tokenizer, MESSAGES[:1], {})
    (process,) = pool._idle
    process._process.kill()
    process._process.wait()
    assert sandbox.render(tokenizer, MESSAGES[:1], {}) == first


def test_texts_are_rendered_at_the_same_time(sandboxes, chat_folder):
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    sandbox = sandbox_of(sandboxes, chat_folder)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda n: sandbox.render(tokenizer, [{"role": "user", "content": n}], {}), "abcdefgh"))
    assert [text.split("user<|end_header_id|>\n\n")[1][0] for text in texts] == list("abcdefgh")
    assert len(sandboxes._idle) <= 2


def test_secrets_do_not_reach_the_process(sandboxes, chat_folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "abracadabra")
    monkeypatch.setenv("INSEQ_API_DATA_DIR", "abracadabra")
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    pool = Sandboxes(seconds=30, memory=512 * MIB)
    sandbox_of(pool, chat_folder).render(tokenizer, MESSAGES[:1], {})
    environment = Path(f"/proc/{pool._idle[0]._process.pid}/environ").read_text()
    assert "abracadabra" not in environment
    assert "PATH=" in environment


# Estimates


def test_slow_estimates_end_together_and_starve_nobody(tmp_path, model_dir, chat_folder):
    """However many estimates of a slow template are asked for, each is refused after its time limit."""
    hostile(model_dir, chat_folder, "hostile-loop", with_template(LOOP))
    engine = AttributionEngine(
        Settings(data_dir=tmp_path, model_dirs=[str(model_dir)], estimate_seconds=1, text_seconds=3600)
    )
    request = engine.check(AttributionRequest(model="hostile-loop", method="dummy", messages=MESSAGES[:1]))

    def refused(_):
        with pytest.raises((InputRejected, ServerBusy)) as found:
            engine.estimate(request)
        return type(found.value), found.value.detail

    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(refused, range(40)))
    (reason,) = {detail for kind, detail in found if kind is InputRejected}
    assert reason == (
        "An estimate may take 1 seconds to render and tokenize its texts, and these take longer. Send fewer or shorter "
        "texts, or submit the job without an estimate (INSEQ_API_ESTIMATE_SECONDS sets the limit)."
    )
    engine.estimate(engine.check(AttributionRequest(model=LOOKUP, method="dummy", input_text=PROMPT)))
