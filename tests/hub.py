"""A Hugging Face cache in the hub's layout with a small random GPT-2, which the real loading code reads."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

COMMIT = "2290a62682d06624634c1f46a6ad5be0f47f38aa"
_TEXT = ["Feature attribution helps explain model predictions.", "The quick brown fox jumps over the lazy dog."]


def byte_level_tokenizer(size: int = 400, **special: str) -> PreTrainedTokenizerFast:
    """A GPT-2-like tokenizer that encodes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = list(dict.fromkeys(special.values()))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **special)


def build_small_gpt2(folder: Path, seed: int = 0, *, layers: int = 2, positions: int = 128) -> None:
    """Write a random GPT-2 that generates other tokens than its end token."""
    eos = "<|endoftext|>"
    tokenizer = byte_level_tokenizer(bos_token=eos, eos_token=eos, unk_token=eos)
    tokenizer.model_max_length = positions
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_hub_cache(home: Path) -> Path:
    """Write the model into the hub cache of `home` (an HF_HOME) as `distilgpt2`; returns `home`."""
    repository = home / "hub" / "models--distilgpt2"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    build_small_gpt2(snapshot)
    return home
