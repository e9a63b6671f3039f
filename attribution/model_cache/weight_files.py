"""What the files of weights say of themselves, without reading the weights: sizes, numbers, dtypes, and a fingerprint.

Knows nothing of names or of where models are.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from attribution.model_cache import gguf_files, quantized_tensors

WEIGHTS = ("*.safetensors", "*.bin")
_LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library
_OF_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def have_weights(folder: Path) -> bool:
    """Whether the folder has weights that Transformers reads by itself (safetensors or pickles)."""
    return any(found for glob in WEIGHTS for found in folder.glob(glob))


def have_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _OF_TOKENIZERS)


def have_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a folder has a chat template, in a file of its own or in its configuration."""
    if any(
        (folder / name).exists() for name in ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
    ):
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def size(folder: Path) -> int:
    """The bytes of a folder's safetensors and pickles."""
    return sum(file.stat().st_size for glob in WEIGHTS for file in folder.glob(glob))


@lru_cache(maxsize=16)
def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of the names, sizes and modification times of files, since weights are too large to read."""
    entries = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files) if file.is_file()]
    return "local-" + hashlib.sha256(repr(entries).encode()).hexdigest()[:12]


def parameters(path: Path, revision: str, quantization: dict[str, Any] | None = None) -> int:
    """The number of parameters in a folder's safetensors or pickles, or in a GGUF file.

    `quantization` is what the configuration of a quantized checkpoint says. 0 if they cannot be read: loading the model
    then reports the reason.
    """
    tensors = _tensors(path, revision)
    if quantization is None:
        counted = sum(each.count for each in tensors)
    else:
        counted = quantized_tensors.parameters(quantization, tensors)
    return counted or sum(file.stat().st_size for file in path.glob("*.bin")) // 4  # as if they were float32


def bytes_by_dtype(path: Path, revision: str) -> dict[str, int]:
    """The bytes of the weights by their dtype in the files (`float32`, `bfloat16`, `Q4_1`); empty for pickles."""
    found: Counter[str] = Counter()
    for tensor in _tensors(path, revision):
        found[tensor.dtype] += tensor.size
    return dict(found)


# https://huggingface.co/docs/safetensors/index#format
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


@lru_cache(maxsize=256)
def _tensors(path: Path, revision: str) -> tuple[gguf_files.Tensor, ...]:  # noqa: ARG001 - files change with it
    """The tensors of a GGUF file or of a folder's safetensors; none if a file cannot be read."""
    try:
        if path.suffix == gguf_files.SUFFIX:
            return gguf_files.read_header(path).tensors
        return tuple(tensor for file in path.glob("*.safetensors") for tensor in _of_safetensors(file))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ()


def _of_safetensors(file: Path) -> Iterator[gguf_files.Tensor]:
    """The tensors that the JSON header of a safetensors file names.

    A shape, which compressed-tensors keeps as a tensor beside packed weights, counts as many numbers as it describes.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header: dict[str, Any] = json.loads(opened.read(min(length, _LONGEST_HEADER)))
        for name, each in header.items():
            if name != "__metadata__":
                start, end = each["data_offsets"]
                count = prod(each["shape"])
                if name.endswith(".weight_shape") and each["dtype"] == "I64":
                    opened.seek(8 + length + start)
                    count = prod(memoryview(opened.read(end - start)).cast("q"))
                yield gguf_files.Tensor(name, count, end - start, _DTYPES.get(each["dtype"], each["dtype"]))
