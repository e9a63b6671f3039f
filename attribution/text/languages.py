"""Languages of multilingual translation models: set in the tokenizer, and the token that a translation begins with.

mBART-50, NLLB and M2M100 put the language's token first in source and target, so it is forced as the first generated
token (forced BOS). mBART puts it last, and its decoder starts with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from inseq.models import HuggingfaceModel
from transformers import PreTrainedTokenizerBase

from problems import InputRejected

_EXAMPLES = 12  # codes that an error names
# The source last: setting it also brings the tokenizer back from the target's special tokens.
_ORDER = ("tgt_lang", "src_lang")


@contextmanager
def spoken(model: HuggingfaceModel, languages: dict[str, str]) -> Iterator[dict[str, int]]:
    """Within the block, the tokenizer is set to these languages (`src_lang`, `tgt_lang`); yields the arguments that
    `generate` needs for them.

    The caller holds the model's lock. Raises `InputRejected` for a language that the tokenizer does not know, or a
    tokenizer without languages.
    """
    tokenizer = model.tokenizer
    missing = [name for name in languages if not hasattr(tokenizer, name)]
    if missing or (languages and not model.is_encoder_decoder):
        raise InputRejected(f"This model's tokenizer ({type(tokenizer).__name__}) takes no {', '.join(languages)}.")
    ids = {name: _language_id(tokenizer, name, code) for name, code in languages.items()}
    # Encoding a target also sets the tokenizer's language, if it was not set.
    before = {name: getattr(tokenizer, name) for name in _ORDER if hasattr(tokenizer, name)}
    start = model.bos_token_id
    try:
        for name in _ORDER:
            if name in languages:
                setattr(tokenizer, name, languages[name])
        yield _generation(model, ids["tgt_lang"]) if "tgt_lang" in ids else {}
    finally:
        model.bos_token_id = start
        for name, language in before.items():
            setattr(tokenizer, name, language)


def check_target_language(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `InputRejected` if the target's language is not set: some tokenizers silently use the source's."""
    if needs_target_language(tokenizer):
        raise InputRejected("Give tokenizer_args.tgt_lang: this model needs the language of generated_text.")


def needs_target_language(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer needs a target language that is not set."""
    return getattr(tokenizer, "tgt_lang", "") is None


def _generation(model: HuggingfaceModel, language: int) -> dict[str, int]:
    first = model.tokenizer(text_target="a").input_ids[0]
    if first == language:
        return {"forced_bos_token_id": language}
    # Inseq puts this token in front of forced targets too.
    model.bos_token_id = language
    return {"decoder_start_token_id": language}


def _language_id(tokenizer: PreTrainedTokenizerBase, name: str, code: str) -> int:
    known: dict[str, Any] = getattr(tokenizer, "lang_code_to_id", None) or {}
    token = tokenizer.get_lang_token(code) if known and code in known and hasattr(tokenizer, "get_lang_token") else code
    index = tokenizer.convert_tokens_to_ids(token)
    named = set(known) or {each for each in tokenizer.all_special_tokens if "_" in each}
    if index is None or index == tokenizer.unk_token_id or code not in named:
        examples = sorted(named)
        raise InputRejected(
            f"tokenizer_args.{name}: this model does not know {code!r}. It knows: {', '.join(examples[:_EXAMPLES])}"
            f"{', ...' if len(examples) > _EXAMPLES else ''}."
        )
    return int(index)
