"""GGUF files, llama.cpp's format of weights: what a file's header says, which file of a folder is meant, and its
configuration and tokenizer as Transformers reads them.

The header is read here, because the reader of the package `gguf` makes an object of each of the vocabulary's strings: 6
seconds for a file of 49,152 tokens, against 0.1. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
import tempfile
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from transformers import AutoConfig, AutoTokenizer

from problems import ModelUnavailable

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# The format's numbers of the types of values, as Python's `struct` writes them.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 8
_OPENING = threading.Lock()


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file: its numbers, its bytes, and its type (`F32`, `Q4_1`)."""

    name: str
    count: int
    size: int
    dtype: str


@dataclass(frozen=True)
class Header:
    """A file's metadata without its lists, and its tensors."""

    values: dict[str, Any] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    @property
    def context_length(self) -> int | None:
        return self.values.get(f"{self.architecture}.context_length")


class _Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, data: mmap) -> None:
        self._data = data
        self._at = 0

    def take(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self._data, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return value

    def skip(self, count: int) -> None:
        if count < 0 or self._at + count > len(self._data):
            raise ValueError("it ends too early")
        self._at += count

    def string(self) -> str:
        length = self.take("Q")
        start = self._at
        self.skip(length)
        return self._data[start : self._at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A value of the metadata; None for a list, which is skipped."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.take(_SCALARS[kind])
        inner, count = self.take("I"), self.take("Q")
        if inner in _SCALARS:
            self.skip(count * struct.calcsize(f"<{_SCALARS[inner]}"))
        else:
            for _ in range(count):
                if inner == _STRING:
                    self.skip(self.take("Q"))
                else:
                    self.value(inner)
        return None


@lru_cache(maxsize=64)
def _read_header(path: Path, modified: int) -> Header:  # noqa: ARG001 - part of the key: files change
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        cursor = _Cursor(data)
        if data[:4] != _MAGIC:
            raise ValueError("it does not begin as a GGUF file")
        cursor.skip(4)
        if (version := cursor.take("I")) not in _VERSIONS:
            raise ValueError(f"its version is {version}, and {' and '.join(map(str, _VERSIONS))} can be read")
        tensors, keys = cursor.take("Q"), cursor.take("Q")
        values = {cursor.string(): cursor.value(cursor.take("I")) for _ in range(keys)}
        return Header(values, tuple(_tensor(cursor) for _ in range(tensors)))


def _tensor(cursor: _Cursor) -> Tensor:
    name, dimensions = cursor.string(), cursor.take("I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"its tensor {name} has {dimensions} dimensions")
    count = prod(cursor.take("Q") for _ in range(dimensions))
    kind = GGMLQuantizationType(cursor.take("I"))
    cursor.skip(8)  # where it is
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return Tensor(name, count, count // block * block_bytes, kind.name)


def read_header(path: Path) -> Header:
    """The header of a GGUF file. Raises `OSError`, or `ValueError` with the reason for what is no such file."""
    try:
        return _read_header(path, path.stat().st_mtime_ns)
    except (struct.error, KeyError, RecursionError) as error:
        raise ValueError("it is damaged, or only a part of a file") from error


def files_in(folder: Path) -> list[str]:
    """The names of a folder's GGUF files of language models."""
    return sorted(file.name for file in folder.glob(f"*{SUFFIX}") if is_model(file.name))


def is_model(file: str) -> bool:
    """Whether a file name is a GGUF language model's; `mmproj` files are the image part of another one."""
    return file.endswith(SUFFIX) and not file.lower().startswith("mmproj")


def only_file(name: str, folder: Path) -> str | None:
    """The GGUF file of a folder, None if it has none. Raises `ModelUnavailable` if it has several."""
    files = files_in(folder)
    if len(files) > 1:
        raise ModelUnavailable(
            f"{name!r} holds {len(files)} GGUF files. Name one of them: "
            f"{', '.join(repr(f'{name}/{file}') for file in files)}."
        )
    return files[0] if files else None


def check(name: str, path: Path) -> None:
    """Raise `ModelUnavailable` for a file that is damaged, or one of the parts of a model."""
    try:
        header = read_header(path)
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{name!r}: the GGUF file {path.name} cannot be read: {error}. Copy it again.") from None
    if header.values.get("split.count", 1) > 1:
        raise ModelUnavailable(
            f"{name!r}: the GGUF file {path.name} is one of {header.values['split.count']} parts of a model, which "
            "Transformers does not read. Join them (`llama-gguf-split --merge`)."
        )


@lru_cache(maxsize=1)
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="inseq-api-gguf-")  # removed when the process ends


def opened_already(path: Path, revision: str) -> Path | None:
    """The folder that `opened` wrote, None if it has not."""
    folder = Path(_scratch().name) / f"{path.stem}-{revision}"
    return folder if folder.is_dir() else None


def opened(path: Path, revision: str) -> Path:
    """A temporary folder with the file's configuration and tokenizer as Transformers reads them, which takes half a
    minute; the next calls take none. Raises what Transformers raises.
    """
    with _OPENING:
        if (folder := opened_already(path, revision)) is not None:
            return folder
        folder = Path(_scratch().name) / f"{path.stem}-{revision}"
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            target = Path(unfinished) / "model"
            # A file's own architecture counts, also where a config.json lies beside it.
            AutoConfig.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(target)
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(target)
            target.rename(folder)
    return folder
