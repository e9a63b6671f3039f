"""Shared by the benchmarks of the engines: random GPT-2s of two sizes, their texts, and process memory."""

from __future__ import annotations

import ctypes
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.hub import byte_level_tokenizer


@dataclass(frozen=True)
class Size:
    """A random GPT-2, and the lengths of a prompt and its continuation in tokens."""

    name: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    prompt: int
    generated: int
    rounds: int

    @property
    def label(self) -> str:
        return f"{self.layers} layers, d {self.width}, vocabulary {self.vocabulary // 1000}k"

    @property
    def block(self) -> int:
        """Weights of one block: multiplications for each position."""
        return 12 * self.width**2

    @property
    def head(self) -> int:
        return self.vocabulary * self.width


SIZES = (
    Size("small", 2000, 64, 2, 4, prompt=64, generated=32, rounds=5),
    Size("medium", 50_000, 768, 6, 12, prompt=64, generated=16, rounds=2),
)


def texts(size: Size) -> tuple[str, str]:
    """A prompt, and the prompt with its continuation, of random digits: each is one token."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 10, (size.prompt + size.generated,), generator=generator)
    full = "".join(map(str, drawn.tolist()))
    return full[: size.prompt], full


def build(size: Size, folder: Path, *, positions: int = 512) -> None:
    """Write a random GPT-2 of this size, with this many positions, and its tokenizer into `folder`."""
    eos = "<|endoftext|>"
    tokenizer = byte_level_tokenizer(bos_token=eos, eos_token=eos, unk_token=eos)
    tokenizer.model_max_length = positions
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=size.vocabulary, n_positions=positions, n_embd=size.width, n_layer=size.layers, n_head=size.heads,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def reset_peak() -> int:
    """Reset the peak of this process's memory (Linux); returns the memory that it uses now, in bytes."""
    ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system, so that every measurement starts alike
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The peak of this process's memory since `reset_peak`, in bytes."""
    return _status("VmHWM")


def _status(name: str) -> int:
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(name))
    return int(line.split()[1]) * 1024


def quiet() -> None:
    """Silence warnings, and set one intra-op thread."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
