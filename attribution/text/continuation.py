"""The tokens of a text that continues another one, and the difference between a text and what its tokens spell.

A tokenizer writes a space before a text (SentencePiece's dummy prefix), or joins letters on both sides of a border. The
tokens of a prompt followed by those of its continuation must spell both texts, and nothing else. Knows tokenizers only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

# A text behind one of these gets no dummy prefix. Several, since a tokenizer may join one with what follows it.
_ANCHORS = ("\n", ".", "a", "0", "|", "B")
# Decoders that place spaces by rules of their own, so that these say nothing about the text.
_FREE_SPACES = {"NoneType", "WordPiece", "BPEDecoder", "CTC"}
_AROUND, _LONGEST = 12, 60  # characters of a difference that a warning shows


@dataclass(frozen=True)
class Continuation:
    """The ids of a text behind a prompt's, and what the client should know of them."""

    ids: list[int]
    warnings: list[str] = field(default_factory=list)


def texts_to_tokenize(prompt: str, text: str) -> list[str]:
    """Every text that `continued` tokenizes."""
    return [prompt + text, text, *_ANCHORS, *(anchor + text for anchor in _ANCHORS)]


def continued(
    tokenizer: PreTrainedTokenizerBase, prompt: str, prompt_ids: list[int], text: str, name: str = "generated_text"
) -> Continuation:
    """The ids of `text` behind `prompt`, whose ids stay as they are; empty if it has none.

    Of several ways to tokenize it the first is taken that spells the text: as a part of the whole; alone; behind
    another character. Where none does (a normalizer changes it), the first that spells what the whole text is read as.
    """
    whole = _ids(tokenizer, prompt + text)
    candidates = [each for each in _candidates(tokenizer, prompt_ids, text, whole) if each]
    if not candidates:
        return Continuation([])
    wanted, read = spelled(tokenizer, prompt_ids) + text, spelled(tokenizer, whole)
    spellings = [spelled(tokenizer, prompt_ids + each) for each in candidates]
    best = next((spellings.index(each) for each in (wanted, prompt + text, read) if each in spellings), 0)
    ids, warnings = candidates[best], []
    if not _is_same(tokenizer, wanted, spellings[best]):
        warnings.append(
            f"The tokenizer changes {name}: {_difference(wanted, spellings[best])}. The tokens that it makes "
            "are attributed."
        )
    elif prompt_ids + ids != whole and whole[: len(prompt_ids)] == prompt_ids:
        warnings.append(
            f"{name} was tokenized as it is written. The tokenizer would change it here: "
            f"{_difference(wanted, read)}; write it so if the model was trained so."
        )
    elif prompt_ids + ids != whole:
        start = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(whole, prompt_ids, strict=False))))
        shown = " + ".join(repr(spelled(tokenizer, [each])) for each in whole[start : start + 3])
        warnings.append(
            f"The conversation and {name} were tokenized apart, as they are written: as one text, they would "
            f"have other tokens ({shown})."
        )
    return Continuation(ids, warnings)


def change_of(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """What the tokens of a text spell otherwise, in words; None if they spell the text."""
    read = spelled(tokenizer, _ids(tokenizer, text))
    return None if _is_same(tokenizer, text, read) else _difference(text, read)


def change_behind(tokenizer: PreTrainedTokenizerBase, prompt: str, whole: str) -> str | None:
    """As `change_of`, for what the whole text has behind its prompt."""
    wanted = spelled(tokenizer, _ids(tokenizer, prompt)) + whole[len(prompt) :]
    read = spelled(tokenizer, _ids(tokenizer, whole))
    return None if _is_same(tokenizer, wanted, read) else _difference(wanted, read)


def unknown_parts(tokenizer: PreTrainedTokenizerBase, text: str, *, as_target: bool) -> list[str] | None:
    """The parts of an encoder-decoder's text that have no token but the unknown one, which stands for them; None if
    there are none. Empty where the tokenizer does not say which they are.

    What its tokens spell is no measure here: such tokenizers change spaces and decode a source as if it were a target.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in {tokenizer.eos_token_id, tokenizer.pad_token_id} or tokenizer.unk_token in text:
        return None
    given = {"text_target": text} if as_target else {"text": text}
    fast = bool(tokenizer.is_fast)
    found = tokenizer(**given, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    if unknown not in found["input_ids"]:
        return None
    if not fast:
        return []
    offsets = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return list(dict.fromkeys(text[start:end].strip() for index, (start, end) in offsets if index == unknown))


def spelled(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of these ids, special tokens included."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _candidates(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], text: str, whole: list[int]
) -> Iterator[list[int]]:
    if whole[: len(prompt_ids)] == prompt_ids:
        yield whole[len(prompt_ids) :]
    yield _ids(tokenizer, text)
    for anchor in _ANCHORS:
        before, both = _ids(tokenizer, anchor), _ids(tokenizer, anchor + text)
        if both[: len(before)] == before:
            yield both[len(before) :]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def _is_same(tokenizer: PreTrainedTokenizerBase, text: str, read: str) -> bool:
    if text == read:
        return True
    backend = getattr(tokenizer, "backend_tokenizer", None)
    has_free_spaces = type(getattr(backend, "decoder", None)).__name__ in _FREE_SPACES
    return has_free_spaces and "".join(text.split()) == "".join(read.split())


def _difference(text: str, read: str) -> str:
    """The part in which two texts differ, with a little of what stands around it."""
    start = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(text, read, strict=False))))
    rest = zip(reversed(text[start:]), reversed(read[start:]), strict=False)
    end = len(list(takewhile(lambda pair: pair[0] == pair[1], rest)))
    first, behind = max(0, start - _AROUND), max(0, end - _AROUND)
    asked, found = (each[first : len(each) - behind] for each in (text, read))
    return f"{_shown(found)} for {_shown(asked)}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
