"""The sandbox's process: runs a model's chat template or tokenizer within limits of time and memory.

`attribution.text.sandbox` starts this file as a script. It reads one question a line from stdin and writes one answer a
line to stdout, both JSON, and ends when stdin is closed. It never imports torch.

Question: `seconds` of processor time, and what to do: `template` with `special_tokens`, `messages`, `variables` and
`continues` renders a chat template; `tokenizer` (a directory) with `revision`, `calls` (each the keyword arguments of
one call) and `languages` (`src_lang`, `tgt_lang`) tokenizes. With both, the rendered text is tokenized too.
Answer: `text`, the rendered one, and `tokens`, the largest number of tokens of a call; or `refused`, the reason; or
`memory` if the limit was reached.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

# Transformers imports torch wherever it finds it, which takes seconds and hundreds of MB.
sys.modules["torch"] = None  # type: ignore[assignment]

from transformers import AutoTokenizer, PreTrainedTokenizerBase  # noqa: E402 - after torch is blocked

_OPENING_SECONDS = 30.0  # of processor time, to open a tokenizer
_MOST_CHARACTERS = 16 * 1024**2  # of a rendered text: several times what a request's body may have
_LONGEST_REASON = 500  # characters


class _Template:
    """As much of a tokenizer as `apply_chat_template` needs to render."""

    get_chat_template = PreTrainedTokenizerBase.get_chat_template
    apply_chat_template = PreTrainedTokenizerBase.apply_chat_template

    def __init__(self, chat_template: str | dict[str, str], special_tokens: dict[str, Any]) -> None:
        self.chat_template = chat_template
        self.special_tokens_map = special_tokens


@lru_cache(maxsize=2)
def _tokenizer(folder: str, revision: str) -> PreTrainedTokenizerBase:  # noqa: ARG001 - files change with the revision
    _limit_time(_OPENING_SECONDS)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    calls = list(question.get("calls", ()))
    if "template" in question:
        continues = question["continues"]
        text = _Template(question["template"], question["special_tokens"]).apply_chat_template(
            question["messages"],
            tokenize=False,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            **question["variables"],
        )
        if len(text) > _MOST_CHARACTERS:
            return {"refused": f"the rendered text has {len(text)} characters; at most {_MOST_CHARACTERS} are possible"}
        answer["text"] = text
        calls.append({"text": text, "add_special_tokens": False})
    if "tokenizer" in question:
        tokenizer = _tokenizer(question["tokenizer"], question["revision"])
        _limit_time(question["seconds"])
        with _speaking(tokenizer, question.get("languages", {})):
            answer["tokens"] = max((_count(tokenizer, each) for each in calls), default=0)
    return answer


@contextmanager
def _speaking(tokenizer: PreTrainedTokenizerBase, languages: dict[str, str]) -> Iterator[None]:
    """Set the languages of a translation model's tokenizer within the block, the source's last as in `languages.py`."""
    before = {name: getattr(tokenizer, name) for name in ("tgt_lang", "src_lang") if hasattr(tokenizer, name)}
    try:
        for name, language in (before | languages).items():
            with suppress(KeyError, ValueError):  # a language that it does not know is refused before it is used
                setattr(tokenizer, name, language)
        yield
    finally:
        for name, language in before.items():
            with suppress(KeyError, ValueError):
                setattr(tokenizer, name, language)


def _count(tokenizer: PreTrainedTokenizerBase, call: dict[str, Any]) -> int:
    """The number of tokens, or 0 for a call that raises: it raises the same for the server, which has the reason."""
    try:
        return len(tokenizer(**call, truncation=False, verbose=False)["input_ids"])
    except MemoryError:
        raise
    except Exception:
        return 0


def _limited(question: dict[str, Any]) -> dict[str, Any]:
    """The answer, or why there is none."""
    _limit_time(question["seconds"])
    try:
        return _answer(question)
    except MemoryError:
        return {"memory": True}
    except BaseException as error:  # a panic of the tokenizers library is no `Exception`
        return {"refused": _reason(error)[:_LONGEST_REASON]}


def _limit_time(seconds: float) -> None:
    """Let the kernel end this process after so many more seconds of processor time, rounded up."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    named = type(error).__module__.startswith("jinja2") or isinstance(error, ValueError | TypeError | KeyError)
    return text if named and text else f"{type(error).__name__}: {text}"


def _limit_process(memory: int) -> None:
    """Limit the address space to `memory` bytes more than it has now, and forbid files and core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with suppress(OSError, ValueError):  # other systems than Linux have no /proc, and macOS no such limit
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
    with suppress(OSError):  # where the machine's memory ends first, the kernel ends this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    # What libraries print must not mix with the answers.
    answers: IO[str] = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    _limit_process(int(sys.argv[1]))
    answers.write("{}\n")  # ready
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(_limited(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
