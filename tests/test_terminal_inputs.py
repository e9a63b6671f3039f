"""Texts, targets and conversations of the command `attribution`: from arguments, files and standard input."""

from __future__ import annotations

import json

import click
import pytest

from attribution_client.terminal import commands, options
from models import AttributionRequest
from tests.command_line import run

PARENT = click.Context(commands.commands, **commands.commands.context_settings)
CONVERSATION = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because"}]


def fields(*arguments):
    """The input fields of the request that `attribute` would send."""
    given = commands.attribute.make_context("attribute", ["-m", "m", *map(str, arguments)], parent=PARENT).params
    found = options.request_fields(given)
    return {name: found[name] for name in ("input_text", "messages", "generated_text") if name in found}


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_a_text_from_a_file_is_exact_but_for_the_line_break_at_its_end(file):
    unix, windows = file("a", "One\n\n two \n"), file("b", "\ufeffOne\r\ntwo\r\n")
    assert fields("--input_file", unix) == {"input_text": "One\n\n two "}
    assert fields("--input-file", unix, windows) == {"input_text": ["One\n\n two ", "One\r\ntwo"]}
    assert fields("-i", "a", "--generated_file", unix) == {"input_text": "a", "generated_text": "One\n\n two "}
    two = file("c", "two line breaks\n\n")
    assert fields("--input_file", two) == {"input_text": "two line breaks\n"}


def test_a_text_that_begins_with_an_at_sign_is_a_text():
    assert fields("-i", "@ben likes tea") == {"input_text": "@ben likes tea"}


def test_conversations(file):
    path = file("m.json", json.dumps(CONVERSATION))
    assert fields("--messages", path) == {"messages": CONVERSATION}
    assert fields("--messages", path, "-g", " it") == {"messages": CONVERSATION, "generated_text": " it"}
    assert fields("--user", "Why?") == {"messages": [{"role": "user", "content": "Why?"}]}
    assert fields("--system", "Be brief.", "--user", "Why?") == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    }
    several = file("several.json", json.dumps([CONVERSATION, CONVERSATION]))
    assert fields("--messages", several) == {"messages": [CONVERSATION, CONVERSATION]}


FROM_STDIN = {
    "a text": (["-i", "-"], b"hello\n", {"input_text": "hello"}),
    "one of the texts": (["-i", "hello", "-"], b"you\n", {"input_text": ["hello", "you"]}),
    "a text as a file": (["--input_file", "-"], b"hello", {"input_text": "hello"}),
    "messages": (["--messages", "-"], json.dumps(CONVERSATION).encode(), {"messages": CONVERSATION}),
    "a question": (["--user", "-"], b"Why?\n", {"messages": [{"role": "user", "content": "Why?"}]}),
}


@pytest.mark.parametrize("name", FROM_STDIN)
def test_standard_input(slow, name):
    arguments, stdin, expected = FROM_STDIN[name]
    done = run(slow, "attribute", "-m", "m", *arguments, "--detach", "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr
    asked = json.loads(done.stdout)["request"]
    request = AttributionRequest(model="m", method="saliency", **expected).model_dump(mode="json")
    assert {each: asked[each] for each in ("input_text", "messages")} == {
        each: request[each] for each in ("input_text", "messages")
    }


WRONG = {
    "no input": ([], "There is nothing to attribute: give --input_texts TEXT, --input_file FILE, --messages FILE, or"),
    "text and file": (["-i", "a", "--input_file", "GOOD"], "--input_texts and --input_file exclude each other"),
    "text and messages": (["-i", "a", "--messages", "GOOD"], "--input_texts and --messages exclude each other"),
    "messages and user": (["--user", "a", "--messages", "GOOD"], "--messages and --user exclude each other"),
    "two kinds of target": (
        ["-i", "a", "-g", "a b", "--generated_file", "GOOD"], "--generated_texts and --generated_file exclude"
    ),
    "system alone": (["--system", "a"], "--system needs --user TEXT"),
    "system beside messages": (["--system", "a", "--messages", "GOOD"], "Beside --messages it has no place"),
    "standard input twice": (["-i", "-", "-g", "-"], "given 2 times: --input_texts, --generated_texts"),
    "no file": (["--input_file", "nowhere.txt"], "--input_file: 'nowhere.txt' cannot be read: No such file"),
    "a folder": (["--messages", "FOLDER"], "cannot be read: Is a directory"),
    "not UTF-8": (["--input_file", "LATIN"], "is not UTF-8 text (byte 4)"),
    "an empty file": (["--input_file", "EMPTY"], "is empty"),
    "empty standard input": (["-i", "-"], "Standard input is empty"),
    "no JSON": (["--messages", "CUT"], "is not JSON (Expecting value at line 2, column 1). It should be a list of"),
    "an object": (["--messages", "OBJECT"], 'is not a list of messages, such as [{"role": "user"'),
    "deep": (["--messages", "DEEP"], "is nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_told_without_a_server(name, file, tmp_path):
    arguments, words = WRONG[name]
    files = {
        "GOOD": json.dumps(CONVERSATION), "LATIN": b"caf\xe9", "EMPTY": "\n", "CUT": "[\n", "OBJECT": "{}",
        "DEEP": "[" * 100_000,
    }  # fmt: skip
    paths = {each: file(each, content) for each, content in files.items()} | {"FOLDER": str(tmp_path)}

    class Nobody:
        url = "http://127.0.0.1:9"

    done = run(Nobody, "attribute", "-m", "m", *(paths.get(each, each) for each in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_wrong_messages_are_told_by_the_server(slow, file):
    done = run(slow, "attribute", "-m", "m", "--messages", file("m.json", '[{"rol": "user", "content": "x"}]'))
    assert done.returncode == 2
    assert "/messages/0/rol: There is no field 'rol' (did you mean 'role'?)" in done.stderr


def test_every_field_of_a_request_has_an_option():
    """With every option of `attribute`, every field is set, but for those that exclude each other."""
    values = {
        "--n_steps": "3",
        "--device": "cpu",
        "--tag": "a=b",
        "--dtype": "float16",
        "--engine": "inseq",
        "--webhook_events": "failed",
        "--segments": "sentences",
    }
    arguments = []
    for each in commands.attribute.params:
        name = max(each.opts, key=len)
        if each.name not in {
            "input_file",
            "messages",
            "user",
            "system",
            "generated_file",
            "detach",
            "as_json",
            "hide_attributions",
        }:
            kind = each.type.name
            given = {"json": "{}", "integer": "1", "float": "0.5", "boolean": "true", "integer range": "1"}.get(
                kind, "a"
            )
            arguments += [name, values.get(name, given)]
    given = commands.attribute.make_context("attribute", arguments, parent=PARENT).params
    found = options.request_fields(given) | {"messages": fields("--user", "a")["messages"], "method": "saliency"}
    # Nobody types ids: they come from a result, by the client's `contrast_request`.
    assert found.keys() == AttributionRequest.model_fields.keys() - {"generated_ids"}
