"""The turn of each token of a rendered conversation: the message that it belongs to, the template's tokens included.

Between the words of two messages, a template writes the end of one turn (`<|im_end|>`) and the head of the next
(`<|im_start|>user`). The first special token there ends the turn, unless it names the role of the next one. A message
without words, such as a tool call, has the tokens from the special token that names its role.
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
    # A conversation that ends with the assistant's words is continued.
    is_continued = messages[-1]["role"] == "assistant" and spoken[-1:] == [last]
    reply = Turn(last, "assistant") if is_continued else Turn(last + 1, "assistant")
    if not spoken:
        return Turns([reply] * len(offsets), reply)
    every = [Turn(number, message["role"]) for number, message in enumerate(messages)]
    rendered = _Rendered(text, offsets, is_special)
    # Each turn that begins between the words of two messages: those of messages without words, and the next one.
    first, *later = [every[begin:end] for begin, end in pairwise([0, *(number + 1 for number in spoken)])]
    later.append([*every[spoken[-1] + 1 :], reply])
    heads = rendered.first_heads(spans[0][0], first)
    for (_, end), (start, _), turns in zip(spans, [*spans[1:], (len(text), 0)], later, strict=True):
        heads += rendered.heads(end, start, turns, heads[-1])
    turns = [*first, *(turn for each in later for turn in each)]
    of_tokens = [Turn(BY_ITSELF, "system")] * heads[0]
    for turn, (begin, end) in zip(turns, pairwise([*heads, len(offsets)]), strict=True):
        of_tokens += [turn] * (end - begin)
    return Turns(of_tokens, reply)


@dataclass(frozen=True)
class _Rendered:
    """A rendered conversation, in which the first tokens of turns are found."""

    text: str
    offsets: Sequence[Span]
    is_special: Sequence[bool]

    def first_heads(self, start: int, turns: Sequence[Turn]) -> list[int]:
        """The first token of each turn up to the one whose words begin at `start`, the first in the text."""
        before = [index for index, span in enumerate(self.offsets) if span[1] <= start]
        named = [piece for piece in self._pieces(before) if self._names(piece, turns[0].role)]
        head = 0
        if named:
            head = named[-1 if len(turns) == 1 else 0][0]
            # A template may begin with words of its own; what has none, such as BOS, is the first message's.
            has_words = any(not self.is_special[index] and self._of(index).strip() for index in before[:head])
            head = head if has_words else 0
        return self._with_others([head], before, turns[1:])

    def heads(self, end: int, start: int, turns: Sequence[Turn], least: int) -> list[int]:
        """The first token of each turn that begins behind the words that end at `end` and before those at `start`."""
        between = [index for index, span in enumerate(self.offsets) if span[0] >= end and span[1] <= start]
        behind = next((index for index, span in enumerate(self.offsets) if span[0] >= start), len(self.offsets))
        head = self._head(between, turns[0].role) if between else behind
        return self._with_others([max(head, least)], between, turns[1:])

    def _with_others(self, heads: list[int], among: Sequence[int], turns: Sequence[Turn]) -> list[int]:
        """The heads, and behind them those of the turns whose roles are named there; one that is not is empty, or has
        the tokens of an empty one before it.
        """
        for turn in turns:
            pieces = [piece for piece in self._pieces(among) if piece[0] > heads[-1]]
            head = next((piece[0] for piece in pieces if self._names(piece, turn.role)), heads[-1])
            heads.append(head)
        return heads

    def _head(self, between: Sequence[int], role: str) -> int:
        """The first token of the next turn, whose speaker is `role`, among the tokens between the words of two
        messages.
        """
        ends = next((index for index in between if self.is_special[index]), None)
        if ends is None or self._names([ends], role):
            return between[0]
        behind = ends + 1
        while behind in between and not self._of(behind).strip():
            behind += 1
        return behind

    def _pieces(self, among: Sequence[int]) -> list[list[int]]:
        """The tokens from each special one to the next."""
        pieces: list[list[int]] = []
        for index in among:
            if self.is_special[index]:
                pieces.append([])
            if pieces:
                pieces[-1].append(index)
        return pieces

    def _names(self, piece: Sequence[int], role: str) -> bool:
        text = self.text[self.offsets[piece[0]][0] : self.offsets[piece[-1]][1]]
        return role.casefold() in text.casefold()

    def _of(self, index: int) -> str:
        return self.text[slice(*self.offsets[index])]
