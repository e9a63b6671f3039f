"""The turn of each token of a rendered conversation: the message that it belongs to, the template's tokens included.

Between the words of two messages, a template writes the end of one turn (`<|im_end|>`) and the head of the next
(`<|im_start|>user`). The first special token there ends the turn, unless it names the role of the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Span = tuple[int, int]  # [start, end) in the rendered text


BY_ITSELF = -1  # the number of what a template says in front of the messages


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation: its number, counted from 0, and the role that speaks."""

    number: int
    role: str


@dataclass(frozen=True)
class Turns:
    """The turn of each token of a prompt, and the one that the model writes or continues."""

    of_tokens: list[Turn]
    reply: Turn


def turns_of(
    messages: Sequence[dict[str, Any]],
    text: str,
    spans: Sequence[Span],
    offsets: Sequence[Span],
    is_special: Sequence[bool],
) -> Turns:
    """Return the turns of a rendered conversation.

    spans: those of the messages' words in `text`, in order, of the messages that have words. offsets: the span of each
    token in `text`. is_special: for each token.
    """
    spoken = [number for number, message in enumerate(messages) if message["content"]]
    last = len(messages) - 1
    if not spoken:
        return Turns([Turn(last + 1, "assistant")] * len(offsets), Turn(last + 1, "assistant"))
    # A conversation that ends with the assistant's words is continued.
    is_continued = messages[-1]["role"] == "assistant" and spoken[-1:] == [last]
    reply = Turn(last, "assistant") if is_continued else Turn(last + 1, "assistant")
    found = [Turn(number, messages[number]["role"]) for number in spoken]
    heads = [0]  # the first token of each turn
    for (_, end), (start, _), turn in zip(spans, [*spans[1:], (len(text), 0)], [*found[1:], reply], strict=True):
        between = [index for index, span in enumerate(offsets) if span[0] >= end and span[1] <= start]
        behind = next((index for index, span in enumerate(offsets) if span[0] >= start), len(offsets))
        head = _head(between, offsets, text, is_special, turn.role) if between else behind
        heads.append(max(head, heads[-1]))
    turns = [*found, reply]
    if first := _first_head(spans[0][0], offsets, text, is_special, found[0].role):
        turns, heads = [Turn(BY_ITSELF, "system"), *turns], [0, first, *heads[1:]]
    of_tokens = [
        turn
        for turn, (first, end) in zip(turns, pairwise([*heads, len(offsets)]), strict=True)
        for _ in range(first, end)
    ]
    return Turns(of_tokens, reply)


def _first_head(start: int, offsets: Sequence[Span], text: str, is_special: Sequence[bool], role: str) -> int:
    """The first token of the first message, whose words begin at `start`, where the template says something in front of
    it by itself, such as a default system prompt; else 0.
    """
    before = [index for index, (_, end) in enumerate(offsets) if end <= start]
    named = (
        index
        for index in reversed(before)
        if is_special[index] and role.casefold() in text[offsets[index][0] : start].casefold()
    )
    head = next(named, 0)
    words = (text[slice(*offsets[index])] for index in range(head) if not is_special[index])
    return head if any(each.strip() for each in words) else 0


def _head(between: Sequence[int], offsets: Sequence[Span], text: str, is_special: Sequence[bool], role: str) -> int:
    """The first token of the next turn, whose speaker is `role`, among the tokens between the words of two messages."""
    ends = next((index for index in between if is_special[index]), None)
    if ends is None or role.casefold() in text[slice(*offsets[ends])].casefold():  # as in <|Assistant|>
        return between[0]
    behind = ends + 1
    while behind in between and not text[slice(*offsets[behind])].strip():
        behind += 1
    return behind
