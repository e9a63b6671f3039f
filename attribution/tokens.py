"""Tokens as people read them, and which of them a chat template added: kept beside the raw ones, through aggregation.

Byte-level vocabularies write a space as `Ġ`, and a letter of another script as several unreadable pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inseq.utils.typing import TokenWithId
from transformers import PreTrainedTokenizerBase

_UNREADABLE = "\ufffd"
_LONGEST_CHARACTER = 4  # a character has at most four bytes, and so at most four tokens


def readable(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[list[str], list[int]]:
    """Each id as text, and the positions that continue the character of the token before, and read as that one."""
    texts: list[str] = []
    continues: list[int] = []
    while len(texts) < len(ids):
        first = len(texts)
        token = str(tokenizer.convert_ids_to_tokens(int(ids[first])))
        texts.append(token)  # bytes that are no character stay as they are in the vocabulary
        for end in range(first + 1, min(first + _LONGEST_CHARACTER, len(ids)) + 1):
            text = tokenizer.decode(ids[first:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if _UNREADABLE not in text:
                # SentencePiece's decoder drops the space before the first word.
                text = " " + text if token.startswith("▁") and not text.startswith(" ") else text
                texts[first:] = [text] * (end - first)
                continues += range(first + 1, end)
                break
    return texts, continues


def annotate(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[TokenWithId], from_template: Sequence[bool] | None
) -> dict[str, Any]:
    """What is known of tokens beside their ids: `text`, `continues` (positions, see `readable`), and `template` (a flag
    for each) where they began with a conversation's prompt.
    """
    if all(isinstance(each.id, int) and each.id >= 0 for each in tokens):
        texts, continues = readable(tokenizer, [each.id for each in tokens])
    else:  # a contrast's "this → that" has no id
        texts, continues = [each.token for each in tokens], []
    found: dict[str, Any] = {"text": texts, "continues": continues}
    if from_template is not None:
        found["template"] = [*from_template, *[False] * (len(tokens) - len(from_template))][: len(tokens)]
    return found


def merged_annotations(
    annotations: dict[str, Any], raw: Sequence[TokenWithId], merged: Sequence[TokenWithId]
) -> list[dict[str, Any]]:
    """The annotations of `raw` tokens as they apply to those that an aggregator merged them into."""
    texts, continues, template = annotations["text"], set(annotations["continues"]), annotations.get("template")
    found = []
    for group in _groups(raw, merged):
        # A character's parts all read as it; in one token it stands once.
        text = "".join(texts[index] for index in group if index not in continues or index == group[0])
        entry: dict[str, Any] = {"text": text}
        if template is not None:
            entry["template"] = all(template[index] for index in group)
        found.append(entry)
    return found


def _groups(raw: Sequence[TokenWithId], merged: Sequence[TokenWithId]) -> list[range]:
    """The positions of the raw tokens that each merged token is made of: Inseq joins their strings."""
    groups = []
    end = 0
    for token in merged:
        start, letters = end, 0
        while end < len(raw) and (end == start or letters < len(token.token)):
            letters += len(raw[end].token)
            end += 1
        groups.append(range(start, end))
    return groups
