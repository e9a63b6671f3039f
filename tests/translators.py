"""Tiny random translation models with the real multilingual tokenizer classes, which have a token for each language.

`build(name, folder)` writes `nllb`, `mbart50`, `mbart` or `m2m100`, with its Transformers config and tokenizer classes.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece
import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

_TEXT = ["the red cat sees a dog", "il gatto rosso vede un cane", "le chat rouge voit un chien"]
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
_SIZE = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
         "init_std": 0.25, "scale_embedding": True}  # fmt: skip
_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
# Each tokenizer's codes of English and Italian.
CODES = {
    "nllb": ("eng_Latn", "ita_Latn"),
    "mbart50": ("en_XX", "it_IT"),
    "mbart": ("en_XX", "it_IT"),
    "m2m100": ("en", "it"),
}


def build(name: str, folder: Path) -> Path:
    """Write the model and its tokenizer into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = {"nllb": _nllb, "mbart50": _mbart50, "mbart": _mbart, "m2m100": _m2m100}[name](folder)
    # `vocab_size` of M2M100's tokenizer includes neither its 100 languages nor its 8 made-up words.
    size = tokenizer.vocab_size + 108 if name == "m2m100" else len(tokenizer)
    torch.manual_seed(5)
    if name in {"nllb", "m2m100"}:
        model = t.M2M100ForConditionalGeneration(t.M2M100Config(vocab_size=size, **_SIZE, **_IDS))
    else:
        model = t.MBartForConditionalGeneration(t.MBartConfig(vocab_size=size, **_SIZE, **_IDS, forced_eos_token_id=2))
    model.generation_config = t.GenerationConfig(**_IDS, max_length=20)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _nllb(_: Path) -> t.NllbTokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        _TEXT, trainers.BpeTrainer(vocab_size=80, special_tokens=_SPECIAL, show_progress=False)
    )
    model = json.loads(tokenizer.to_str())["model"]
    return t.NllbTokenizer(vocab=model["vocab"], merges=[tuple(each) for each in model["merges"]])


def _pieces() -> list[tuple[str, float]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=_SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_TEXT * 5, trainer)
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def _mbart50(_: Path) -> t.MBart50Tokenizer:
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES

    return t.MBart50Tokenizer(vocab=_pieces() + [(code, 0.0) for code in FAIRSEQ_LANGUAGE_CODES])


def _mbart(_: Path) -> t.MBartTokenizer:
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

    return t.MBartTokenizer(vocab=_pieces() + [(code, 0.0) for code in FAIRSEQ_LANGUAGE_CODES])


def _m2m100(folder: Path) -> t.M2M100Tokenizer:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT * 20), model_writer=written, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    (folder / "sentencepiece.bpe.model").write_bytes(written.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    vocabulary = list(dict.fromkeys([*_SPECIAL, *pieces]))
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(vocabulary)}))
    return t.M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"))
