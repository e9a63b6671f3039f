"""`FeatureAttributionOutput` <-> stored bytes.

The stored form is safetensors compressed with zstd. It also holds what Inseq's own file loses: `_num_dimensions` and
step attributions.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import inseq.data.attribution as inseq_classes
import torch
import zstandard
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput, FeatureAttributionStepOutput
from inseq.utils.typing import TokenWithId
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from attribution.results import inseq_fields
from attribution.results.inseq_fields import TENSOR_DICTS, TENSOR_FIELDS, TOKEN_FIELDS

RAW_CODEC = "safetensors+zstd"
JSON_CODEC = "json+gzip"


def encode(output: FeatureAttributionOutput) -> bytes:
    """Return the whole output as bytes: unchanged tensors, and the rest as JSON in the safetensors header."""
    tensors: dict[str, torch.Tensor] = {}
    header = {
        "info": output.info,
        "sequences": [_pack(each, f"sequence.{i}", tensors) for i, each in enumerate(output.sequence_attributions)],
        "steps": None
        if output.step_attributions is None
        else [_pack(each, f"step.{i}", tensors) for i, each in enumerate(output.step_attributions)],
    }
    raw = save_tensors(tensors, metadata={"output": json.dumps(header)})
    tensors.clear()  # frees gigabytes for a long text before they are compressed
    return zstandard.ZstdCompressor(level=3).compress(raw)


def decode(content: bytes) -> FeatureAttributionOutput:
    """Return the output that `encode` made these bytes of."""
    raw = zstandard.ZstdDecompressor().decompress(content)
    tensors = load_tensors(raw)
    header_size = int.from_bytes(raw[:8], "little")
    header = json.loads(json.loads(raw[8 : 8 + header_size])["__metadata__"]["output"])
    steps = header["steps"]
    return FeatureAttributionOutput(
        sequence_attributions=[_unpack(each, tensors) for each in header["sequences"]],
        step_attributions=None if steps is None else [_unpack(each, tensors) for each in steps],
        info=header["info"],
    )


def compress(content: bytes) -> bytes:
    """Return the content compressed by gzip with a fixed time stamp, so that equal content gives equal bytes."""
    return gzip.compress(content, compresslevel=6, mtime=0)


def _pack(
    part: FeatureAttributionSequenceOutput | FeatureAttributionStepOutput,
    prefix: str,
    tensors: dict[str, torch.Tensor],
) -> dict[str, Any]:
    entry: dict[str, Any] = {"class": type(part).__name__, "num_dimensions": part._num_dimensions, "tensors": {}}  # noqa: SLF001

    def keep(name: str, tensor: torch.Tensor) -> str:
        key, plain = f"{prefix}.{name}", tensor.detach().cpu().contiguous()
        # Views that share memory are copied, because safetensors refuses them.
        is_whole = plain.untyped_storage().nbytes() == plain.nbytes
        is_shared = any(plain.data_ptr() == each.data_ptr() for each in tensors.values())
        tensors[key] = plain if is_whole and not is_shared else plain.clone()
        return key

    for name in TENSOR_FIELDS:
        if (tensor := getattr(part, name)) is not None:
            entry["tensors"][name] = keep(name, tensor)
    for name in TENSOR_DICTS:
        entry[name] = {score: keep(f"{name}.{score}", tensor) for score, tensor in (getattr(part, name) or {}).items()}
    for name in TOKEN_FIELDS:
        if hasattr(part, name):
            entry[name] = _plain_tokens(getattr(part, name))
    for name in ("attr_pos_start", "attr_pos_end"):
        if hasattr(part, name):
            entry[name] = getattr(part, name)
    return entry


def _unpack(entry: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    cls = getattr(inseq_classes, entry["class"])
    fields: dict[str, Any] = {name: tensors[key] for name, key in entry["tensors"].items()}
    for name in TENSOR_DICTS:
        fields[name] = {score: tensors[key] for score, key in entry[name].items()}
    for name in TOKEN_FIELDS:
        if name in entry:
            fields[name] = _rich_tokens(entry[name])
    for name in ("attr_pos_start", "attr_pos_end"):
        if name in entry:
            fields[name] = entry[name]
    part = cls(**fields, _num_dimensions=entry["num_dimensions"])
    if isinstance(part, FeatureAttributionSequenceOutput):
        inseq_fields.set_own_functions(part)
    return part


def _plain_tokens(tokens: Any) -> Any:
    if isinstance(tokens, TokenWithId):
        return [tokens.token, inseq_fields.token_id(tokens)]
    return None if tokens is None else [_plain_tokens(each) for each in tokens]


def _rich_tokens(tokens: Any) -> Any:
    if tokens is None:
        return None
    if tokens and isinstance(tokens[0], str):
        return TokenWithId(*tokens)
    return [_rich_tokens(each) for each in tokens]
