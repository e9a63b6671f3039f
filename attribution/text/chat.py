"""Conversations: rendered by the tokenizer's own chat template, with a mark on each token that the template added.

See https://huggingface.co/docs/transformers/chat_templating. Knows tokenizers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from attribution.text.sandbox import TextSandbox
from problems import InputRejected

Message = dict[str, str]


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation: its text, its ids ([1, length]), and which tokens the template added."""

    text: str
    ids: torch.Tensor
    from_template: list[bool] | None  # for each token; None where the template's tokens cannot be identified


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], variables: dict[str, Any], sandbox: TextSandbox
) -> Conversation:
    """Render the prompt for the assistant's next turn; a conversation that ends with the assistant's turn is continued.

    `variables` are passed to the template (`enable_thinking`, say). Raises `InputRejected` if the tokenizer has no
    template, or the template refuses the messages or exceeds a limit; and `Cancelled`.
    """
    if not tokenizer.chat_template:
        raise InputRejected(
            "This model's tokenizer has no chat template, so it takes no messages: send the prompt as input_text."
        )
    text = sandbox.render(tokenizer, messages, variables)
    # The template writes the special tokens, BOS included: the tokenizer must add none.
    fast = bool(tokenizer.is_fast)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    spans = _written(tokenizer, messages, variables, text, sandbox) if fast else None
    marks = None
    if spans is not None:
        marks = [
            not any(start < end_written and end > start_written for start_written, end_written in spans)
            for start, end in encoded["offset_mapping"]
        ]
    return Conversation(text, torch.tensor([encoded["input_ids"]]), marks)


def _written(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    variables: dict[str, Any],
    text: str,
    sandbox: TextSandbox,
) -> list[tuple[int, int]] | None:
    """The spans [start, end) of the messages' own words in the rendered text; None where the template changes them.

    The conversation is rendered once more with a mark in the place of each message; the text between the marks is the
    template's. A search for the words themselves would confuse a message "user" with the name of its role.
    """
    marks = [f"\ue000{index}\ue001" for index in range(len(messages))]
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    try:
        rest = sandbox.render(tokenizer, marked, variables)
    except InputRejected:
        return None
    spans: list[tuple[int, int]] = []
    position = 0
    for mark, message in zip(marks, messages, strict=True):
        before, found, rest = rest.partition(mark)
        if not found or not text.startswith(before, position):
            return None
        start = position + len(before)
        # Templates may trim what people wrote.
        content = next(
            (each for each in (message["content"], message["content"].strip()) if text.startswith(each, start)), None
        )
        if content is None:
            return None
        position = start + len(content)
        spans.append((start, position))
    return spans if text[position:] == rest else None
