"""Tiny tokenizers of every kind that chat models have, built in milliseconds."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_TEXT = ["The capital of France is Paris.", "Because the quick brown fox jumps over the lazy dog.", "user: assistant:"]
_SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _byte_level(*, prefix: bool = False, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def _metaspace(scheme: str, *, legacy: bool = False) -> Tokenizer:
    """SentencePiece's layout: `▁` for a space, unknown characters as bytes; `legacy`: the dummy prefix of Llama's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "first")
    plain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(plain if scheme == "never" else [*plain, decoders.Strip(" ", 1, 0)])
    return tokenizer


KINDS = {
    "byte level": _byte_level,
    "byte level with a prefix": lambda: _byte_level(prefix=True),
    "byte level of NFC": lambda: _byte_level(normalizer=normalizers.NFC()),
    "byte level of lower case": lambda: _byte_level(normalizer=normalizers.Lowercase()),
    "metaspace always": lambda: _metaspace("always"),
    "metaspace first": lambda: _metaspace("first"),
    "metaspace never": lambda: _metaspace("never"),
    "prepended": lambda: _metaspace("always", legacy=True),
}
CHANGES_TEXT = {"byte level of NFC", "byte level of lower case"}


@cache
def tiny_tokenizer(kind: str, *, ends_texts: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of this kind (see `KINDS`); `ends_texts`: it adds EOS behind each text."""
    tokenizer = KINDS[kind]()
    is_byte_level = kind.startswith("byte level")
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=_SPECIAL if is_byte_level else _SPECIAL + _BYTES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if is_byte_level else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 3, trainer)
    if ends_texts:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=256, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
