"""The input of a request: texts and conversations from arguments, from files and from standard input (`-`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

STDIN = "-"
_ANY = "--input_texts TEXT, --input_file FILE, --messages FILE, or --user TEXT"
# Where `-` may stand, and the option's name: each reads standard input to its end, so that only one of them can.
_FROM_STDIN = {
    "input_texts": "--input_texts",
    "input_file": "--input_file",
    "generated_texts": "--generated_texts",
    "generated_file": "--generated_file",
    "messages": "--messages",
    "system": "--system",
    "user": "--user",
}


def input_fields(given: dict[str, Any]) -> dict[str, Any]:
    """The request's `input_text` or `messages`, and its `generated_text`, from the parameters of a command.

    Raises `click.UsageError` for options that exclude each other, and for files that cannot be read.
    """
    _check(given)
    targets = _texts(given["generated_texts"], given["generated_file"], "--generated")
    fields = {"generated_text": _one_or_all(targets)} if targets else {}
    if given["messages"] is not None:
        return fields | {"messages": _conversation(given["messages"])}
    if given["user"] is not None:
        turns = (("system", given["system"]), ("user", given["user"]))
        spoken = [{"role": role, "content": _argument(text, f"--{role}")} for role, text in turns if text is not None]
        return fields | {"messages": spoken}
    return fields | {"input_text": _one_or_all(_texts(given["input_texts"], given["input_file"], "--input"))}


def _check(given: dict[str, Any]) -> None:
    """Raise `click.UsageError` unless there is one kind of input, and at most one reader of standard input."""
    is_given = {name: given[name] not in (None, ()) for name in _FROM_STDIN}
    kinds = [_FROM_STDIN[name] for name in ("input_texts", "input_file", "messages", "user") if is_given[name]]
    if len(kinds) > 1:
        raise _wrong(f"{' and '.join(kinds)} exclude each other: give one of them.")
    if is_given["system"] and not is_given["user"]:
        beside = f" Beside {kinds[0]} it has no place." if kinds else ""
        raise _wrong(f"--system needs --user TEXT, the turn after it.{beside}")
    if not kinds:
        raise _wrong(f"There is nothing to attribute: give {_ANY}.")
    if is_given["generated_texts"] and is_given["generated_file"]:
        raise _wrong("--generated_texts and --generated_file exclude each other: give one of them.")
    readers = [
        option
        for name, option in _FROM_STDIN.items()
        for each in (given[name] if isinstance(given[name], tuple) else [given[name]])
        if each == STDIN
    ]
    if len(readers) > 1:
        raise _wrong(f"Standard input can be read once, and `-` is given {len(readers)} times: {', '.join(readers)}.")


def _texts(arguments: Sequence[str], files: Sequence[str], option: str) -> list[str]:
    given = [_argument(each, f"{option}_texts") for each in arguments]
    return given + [_content(each, f"{option}_file") for each in files]


def _argument(text: str, option: str) -> str:
    """A text that is an argument; `-` is standard input."""
    return _content(STDIN, option) if text == STDIN else text


def _content(path: str, option: str) -> str:
    """The text of a file, without the line break at its end, which editors and `echo` add. `-` is standard input."""
    text = _read(path, option)
    text = text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
    if not text:
        raise _wrong(f"{_called(path)} is empty.")
    return text


def _conversation(path: str) -> list[Any]:
    """The messages of a file: a list of them, or a list of such lists. The server checks each message."""
    shape = 'a list of messages, such as [{"role": "user", "content": "Why is the sky blue?"}]'
    try:
        found = json.loads(_read(path, "--messages"))
    except json.JSONDecodeError as error:
        place = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise _wrong(f"{_called(path)} is not JSON ({place}). It should be {shape}.") from error
    except RecursionError as error:
        raise _wrong(f"{_called(path)} is nested too deeply. It should be {shape}.") from error
    if not isinstance(found, list) or not all(isinstance(each, dict | list) for each in found):
        raise _wrong(f"{_called(path)} is not {shape}.")
    return found


def _read(path: str, option: str) -> str:
    """The text of a file as it is, line breaks included. Raises `click.UsageError`."""
    try:
        content = _standard_input() if path == STDIN else Path(path).read_bytes()
    except OSError as error:
        raise _wrong(f"{option}: {path!r} cannot be read: {error.strerror or error}.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong(f"{_called(path)} is not UTF-8 text (byte {error.start + 1}).") from error


def _standard_input() -> bytes:
    if sys.stdin.isatty():
        sys.stderr.write("Write the text, then press Ctrl-D on an empty line.\n")
    return sys.stdin.buffer.read()


def _called(path: str) -> str:
    return "Standard input" if path == STDIN else repr(path)


def _one_or_all(texts: list[str]) -> str | list[str]:
    return texts[0] if len(texts) == 1 else texts


def _wrong(message: str) -> click.UsageError:
    return click.UsageError(message, click.get_current_context(silent=True))
