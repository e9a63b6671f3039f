"""Conversations: rendered by the tokenizer's own chat template, with a mark on each token that the template added.

See https://huggingface.co/docs/transformers/chat_templating. Knows tokenizers only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from attribution.text.readable_tokens import are_special
from attribution.text.sandbox import TextSandbox
from attribution.text.turns import Span, Turns, turns_of
from problems import InputRejected

Message = dict[str, Any]  # `role`, `content` (a text, or None beside tool calls), `name`, `tool_calls`, `tool_call_id`

_PARTS = re.compile(r"""['"]text['"]|\.text\b""")  # in a template that reads parts
# A part of a message that was printed as data, by a template that knows texts alone.
_PRINTED_PART = re.compile("""['"]text['"] *: *['"]\ue000""")


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation: its text, its ids ([1, length]), and which tokens the template added."""

    text: str
    ids: torch.Tensor
    from_template: list[bool] | None  # for each token; None where the template's tokens cannot be identified
    turns: Turns | None  # None where `from_template` is
    warnings: list[str] = field(default_factory=list)


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], variables: dict[str, Any], sandbox: TextSandbox
) -> Conversation:
    """Render the prompt for the assistant's next turn; a conversation that ends with the assistant's turn is continued.

    `variables` are passed to the template (`enable_thinking`, say). Raises `InputRejected` if the tokenizer has no
    template, or the template refuses the messages, leaves some of them out or exceeds a limit; and `Cancelled`.
    """
    if not tokenizer.chat_template:
        raise InputRejected(
            "This model's tokenizer has no chat template, so it takes no messages: send the prompt as input_text."
        )
    rendering = _Rendering(tokenizer, variables, sandbox)
    text, written = rendering.of(messages)
    # The template writes the special tokens, BOS included: the tokenizer must add none.
    fast = bool(tokenizer.is_fast)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    spans = _spans(text, written, messages) if written is not None else None
    marks = turns = None
    if spans is not None and fast:
        offsets, ids = encoded["offset_mapping"], encoded["input_ids"]
        marks = [
            not any(start < end_written and end > start_written for start_written, end_written in spans)
            for start, end in offsets
        ]
        turns = turns_of(messages, text, spans, offsets, are_special(tokenizer, ids))
    warnings = _warnings(text, spans, messages, fast=fast)
    return Conversation(text, torch.tensor([encoded["input_ids"]]), marks, turns, warnings)


@dataclass(frozen=True)
class _Rendering:
    """Renders conversations with one template, with each message's content as a text or as a list with one part."""

    tokenizer: PreTrainedTokenizerBase
    variables: dict[str, Any]
    sandbox: TextSandbox

    def of(self, messages: list[Message]) -> tuple[str, str | None]:
        """The rendered text, and the text with a mark in the place of each message's content: None if the template
        refuses that.

        Raises `InputRejected` if the template refuses the messages, or leaves out one of them, a name or a tool call.
        """
        reasons = list[InputRejected]()
        # Some templates know texts alone, and some parts alone.
        for as_parts in (False, True) if _PARTS.search(str(self.tokenizer.chat_template)) else (False,):
            try:
                return self._as(self._without_nulls(messages, as_parts=as_parts), as_parts=as_parts)
            except InputRejected as reason:
                reasons.append(reason)
        raise reasons[0]

    def _as(self, messages: list[Message], *, as_parts: bool) -> tuple[str, str | None]:
        text = self._rendered(messages, as_parts=as_parts)
        try:
            marked = self._rendered(_marked(messages), as_parts=as_parts)
        except InputRejected:
            if as_parts:  # it cannot be seen whether the parts were printed as data
                raise
            return text, None
        for index, message in enumerate(messages):
            content = (message["content"] or "").strip()
            if content and _mark(index) not in marked and content not in text:
                raise InputRejected(_left_out(f"the content of message {index}", message["role"]))
        if _PRINTED_PART.search(marked):
            raise InputRejected("The model's chat template takes no parts.")
        self._check_names(messages, as_parts=as_parts)
        return text, marked

    def _rendered(self, messages: list[Message], *, as_parts: bool) -> str:
        given = [each | {"content": _parts(each["content"])} for each in messages] if as_parts else messages
        return self.sandbox.render(self.tokenizer, given, self.variables)

    def _without_nulls(self, messages: list[Message], *, as_parts: bool) -> list[Message]:
        """The messages with null contents as the template takes them: null, or empty where it would write "None"."""
        if all(each["content"] is not None for each in messages):
            return messages
        empty = [each | {"content": each["content"] or ""} for each in messages]
        try:
            written = self._rendered(messages, as_parts=as_parts)
            return (
                messages if written.count("None") <= self._rendered(empty, as_parts=as_parts).count("None") else empty
            )
        except InputRejected:
            return empty

    def _check_names(self, messages: list[Message], *, as_parts: bool) -> None:
        """Raise `InputRejected` if the template leaves out a name or a tool call."""
        if not any("name" in each or "tool_calls" in each for each in messages):
            return
        marked, marks = list[Message](), list[tuple[str, str, str]]()
        for index, message in enumerate(messages):
            changed = dict(message)
            if "name" in message:
                changed["name"] = _mark(index)
                marks.append((_mark(index), f"the name of message {index}", message["role"]))
            if "tool_calls" in message:
                changed["tool_calls"] = []
                for number, call in enumerate(message["tool_calls"]):
                    mark = _mark(f"{index}.{number}")
                    changed["tool_calls"].append(call | {"function": call["function"] | {"name": mark}})
                    marks.append((mark, f"a tool call of message {index}", message["role"]))
            marked.append(changed)
        try:
            text = self._rendered(marked, as_parts=as_parts)
        except InputRejected:
            return  # it checks names
        for mark, what, role in marks:
            if mark not in text:
                raise InputRejected(_left_out(what, role))


def _left_out(what: str, role: str) -> str:
    return (
        f"The model's chat template leaves out {what} (counted from 0, role {role!r}): it would not be attributed. "
        "Leave it out, or use a model whose template has it."
    )


def _mark(name: object) -> str:
    return f"\ue000{name}\ue001"


def _parts(content: str | None) -> list[dict[str, str]] | None:
    return None if content is None else [{"type": "text", "text": content}]


def _marked(messages: Sequence[Message]) -> list[Message]:
    """The messages with a mark in the place of each content; empty ones stay, since templates look at that."""
    return [each | ({"content": _mark(index)} if each["content"] else {}) for index, each in enumerate(messages)]


def _spans(text: str, marked: str, messages: Sequence[Message]) -> list[Span] | None:
    """The spans of the messages' own words in the rendered text; None where the template changes them.

    The text between the marks is the template's. A search for the words themselves would confuse a message "user" with
    the name of its role.
    """
    spans: list[Span] = []
    position, rest = 0, marked
    for index, message in enumerate(messages):
        if not message["content"]:
            continue
        before, found, rest = rest.partition(_mark(index))
        if not found or not text.startswith(before, position):
            return None
        start = position + len(before)
        content = next((each for each in _trimmed(message["content"]) if text.startswith(each, start)), None)
        if content is None:
            return None
        position = start + len(content)
        spans.append((start, position))
    return spans if text[position:] == rest else None


def _trimmed(content: str) -> Iterator[str]:
    """The content, and as templates trim it."""
    yield content
    yield content.strip()


def _warnings(text: str, spans: list[Span] | None, messages: list[Message], *, fast: bool) -> list[str]:
    if not fast:
        return ["This tokenizer does not say which characters a token has, so the template's tokens are not marked."]
    if spans is None:
        return ["The chat template changes the messages, so its own tokens could not be marked."]
    written = [each["content"] for each in messages if each["content"]]
    last = messages[-1]
    if last["role"] == "assistant" and last["content"] and text[slice(*spans[-1])] != written[-1]:
        return [f"The chat template trims the assistant's turn that is continued: it ends with {text[-12:]!r}."]
    return []
