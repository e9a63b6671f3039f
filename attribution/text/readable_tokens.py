"""Notes beside the raw tokens: their readable text, which are special, which a chat template added, whose turn it is.

Byte-level vocabularies write a space as `Ġ`, and a letter of another script as several unreadable pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from inseq.utils.typing import TokenWithId
from transformers import PreTrainedTokenizerBase

from attribution.text.step_labels import named_tokens
from attribution.text.turns import Turns

Note = dict[str, Any]  # of one token, see `annotate`
CONTRAST = " → "  # between a contrast's token and the token itself, in Inseq's labels
_UNREADABLE = "\ufffd"
# As itself, in the letters of byte-level vocabularies, and in SentencePiece's bytes.
_REPLACEMENT_SPELLED = (_UNREADABLE, "\u00ef\u00bf\u00bd", "<0xEF><0xBF><0xBD>")
_LONGEST_CHARACTER = 4  # a character has at most four bytes, and so at most four tokens


def readable_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[list[str], list[int]]:
    """Each id as text, and the positions that continue a character of the token before, whose text they have too.

    The text of an id that the tokenizer does not have is its name, as in the labels.
    """
    known = tokenizer.convert_ids_to_tokens([int(each) for each in ids])
    raw = named_tokens(known, ids)
    alone = _decoded(tokenizer, [ids[index : index + 1] for index in range(len(ids))])
    texts: list[str] = []
    continues: list[int] = []
    while len(texts) < len(ids):
        first = len(texts)
        texts.append(raw[first])  # bytes that are no character stay as they are in the vocabulary
        if known[first] is None:
            continue
        for end in range(first + 1, min(first + _LONGEST_CHARACTER, len(ids)) + 1):
            text = alone[first] if end == first + 1 else _decoded(tokenizer, [ids[first:end]])[0]
            if text.count(_UNREADABLE) == _written_replacements("".join(raw[first:end])):
                # SentencePiece's decoder drops the space before the first word.
                text = " " + text if raw[first].startswith("▁") and not text.startswith(" ") else text
                texts[first:] = [text] * (end - first)
                continues += range(first + 1, end)
                break
    return texts, continues


def _written_replacements(raw: str) -> int:
    """How many characters U+FFFD these tokens spell: the others of a decoded text stand for bytes that are none."""
    return sum(raw.count(each) for each in _REPLACEMENT_SPELLED)


def _decoded(tokenizer: PreTrainedTokenizerBase, sequences: Sequence[Sequence[int]]) -> list[str]:
    found: list[str] = tokenizer.batch_decode(sequences, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return found


def are_special(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[bool]:
    """Whether each id is a special token's: one that marks a place in a text, such as its end, and has no words."""
    added = tokenizer.added_tokens_decoder
    special = {each for each, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    return [each in special for each in ids]


def annotate(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[TokenWithId],
    from_template: Sequence[bool] | None = None,
    turns: Turns | None = None,
) -> list[Note]:
    """A note for each token: its `text`; `continues`, if it continues a character (see `readable_texts`); `special`,
    if it is a special token; `label`, if it has no id, and then the text of its `contrast`. In tokens that begin with a
    conversation's prompt also `template`, whether a chat template added it, and the number and the role of its `turn`.
    """
    notes = [{} if is_id(each.id) else _note_of_label(tokenizer, each.token) for each in tokens]
    for has_id, run in groupby(range(len(tokens)), key=lambda index: is_id(tokens[index].id)):
        positions = list(run)
        if has_id:
            ids = [tokens[index].id for index in positions]
            texts, rest = readable_texts(tokenizer, ids)
            continues = set(rest)
            for offset, (text, special) in enumerate(zip(texts, are_special(tokenizer, ids), strict=True)):
                notes[positions[offset]] = {
                    "text": text,
                    **({"continues": True} if offset in continues else {}),
                    **({"special": True} if special else {}),
                }
    for index, note in enumerate(notes):
        if from_template is not None:
            note["template"] = index < len(from_template) and from_template[index]
        if turns is not None:
            turn = turns.of_tokens[index] if index < len(turns.of_tokens) else turns.reply
            note |= {"turn": turn.number, "role": turn.role}
    return notes


def _note_of_label(tokenizer: PreTrainedTokenizerBase, label: str) -> Note:
    """The note of a contrast's "that → this", whose text is that of the token itself."""
    parts = label.split(CONTRAST)
    ids = tokenizer.convert_tokens_to_ids(parts)
    if len(parts) != 2 or None in ids:  # noqa: PLR2004 - a contrast and its token
        return {"text": label, "label": True}
    contrast, text = (readable_texts(tokenizer, [each])[0][0] for each in ids)
    return {"text": text, "label": True, "contrast": contrast}


def merge_notes(notes: Sequence[Note], before: Sequence[TokenWithId], after: Sequence[TokenWithId]) -> list[Note]:
    """The notes of the tokens `after` an aggregator merged some of those `before` or left some out."""
    merged = []
    for group in _groups(before, after):
        members = [notes[index] for index in group]
        # All tokens of one character have its text; a merged token has it once.
        note: Note = {
            "text": "".join(each["text"] for i, each in enumerate(members) if not i or "continues" not in each)
        }
        for name in ("continues", "label", "span"):
            if name in members[0]:
                note[name] = True
        if len(members) == 1 and "contrast" in members[0]:
            note["contrast"] = members[0]["contrast"]
        for name in ("special", "prompt"):
            if all(name in each for each in members):
                note[name] = True
        if all("template" in each for each in members):
            note["template"] = all(each["template"] for each in members)
        if "segment" in members[0] and len({each.get("segment") for each in members}) == 1:
            note["segment"] = members[0]["segment"]
        if len({each.get("turn") for each in members}) == 1 and "turn" in members[0]:
            note |= {"turn": members[0]["turn"], "role": members[0]["role"]}
        merged.append(note)
    return merged


def _groups(before: Sequence[TokenWithId], after: Sequence[TokenWithId]) -> list[range]:
    """For each token after an aggregator, the positions before it: its own, or several whose strings were joined."""
    positions = {id(token): index for index, token in enumerate(before)}
    groups = []
    end = 0
    for token in after:
        start, letters = positions.get(id(token), end), 0
        end = start
        while end < len(before) and (end == start or letters < len(token.token)):
            letters += len(before[end].token)
            end += 1
        groups.append(range(start, end))
    return groups


def without_marks(token: str) -> str:
    """A token with spaces and line breaks in the place of its tokenizer's marks, where there is no tokenizer to ask."""
    return token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")


def is_id(value: object) -> bool:
    """Whether a token's id is an index of the vocabulary; contrasts and merged tokens have none."""
    return isinstance(value, int) and value >= 0
