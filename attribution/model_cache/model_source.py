"""A model's files on this machine: a folder of weights, a GGUF file, or an adapter and its base model.

Says what the files hold, without loading them. Knows nothing of settings, or of where names are looked up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from attribution.model_cache import adapters, gguf_files, quantized_tensors, weight_files
from attribution.model_cache.weight_files import WEIGHTS

OTHERS = ("*.json", "*.txt", "*.model", "*.jinja", "*.spm")  # besides the weights
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are. `revision` identifies their content: a commit, a checksum or a fingerprint; with an
    adapter, those of base and adapter.
    """

    name: str
    kind: str  # bundled, directory or hub
    path: Path
    revision: str
    gguf: str | None = None  # the file of `path` that has the weights
    adapter: Path | None = None  # a PEFT adapter's folder; `path` is its base model's
    base: str | None = None  # the name of an adapter's base model
    notes: tuple[str, ...] = ()  # what every result says of where the files were found

    @property
    def weights_bytes(self) -> int:
        """The size of the weight files."""
        base = weight_files.size(self.path) if self.gguf is None else (self.path / self.gguf).stat().st_size
        return base + (weight_files.size(self.adapter) if self.adapter else 0)

    @property
    def parameters(self) -> int:
        """The number of parameters, an adapter's included; 0 if the files cannot be read."""
        base = weight_files.parameters(self._weights, self.revision, self._quantization)
        return base + (weight_files.parameters(self.adapter, self.revision) if self.adapter else 0)

    @property
    def quantization(self) -> str | None:
        """The method by which the weights in the files are quantized; None if they are not, or in a GGUF file."""
        return None if self._quantization is None else quantized_tensors.method(self._quantization)

    @property
    def _quantization(self) -> dict[str, Any] | None:
        config = self.config if self.gguf is None else None
        return None if config is None else quantized_tensors.settings(config)

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        """The bytes of the weights in the files, by dtype; empty for pickles."""
        found = Counter(weight_files.bytes_by_dtype(self._weights, self.revision))
        if self.adapter:
            found.update(weight_files.bytes_by_dtype(self.adapter, self.revision))
        return dict(found)

    @property
    def form(self) -> str:
        """What the files are: safetensors, pickle, gguf or adapter."""
        if self.adapter is not None:
            return "adapter"
        if self.gguf is not None:
            return "gguf"
        return "safetensors" if any(self.path.glob("*.safetensors")) else "pickle"

    @property
    def config(self) -> PretrainedConfig | None:
        """The configuration; None if it cannot be read, or is in a GGUF file that was not loaded yet."""
        return _read_folder(_config, self)

    @property
    def generation_config(self) -> GenerationConfig | None:
        """The model's own defaults of generation; None as for `config`."""
        return _read_folder(_generation_config, self)

    @property
    def gguf_header(self) -> gguf_files.Header | None:
        return None if self.gguf is None else gguf_files.read_header(self.path / self.gguf)

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        folders = [each for each in (self.adapter, self.path) if each is not None and weight_files.have_tokenizer(each)]
        if not folders and (header := self.gguf_header) is not None:
            return "tokenizer.chat_template" in header.values
        return bool(folders) and weight_files.have_chat_template(folders[0])

    @property
    def bytes_while_read(self) -> int:
        """The memory that reading the files takes besides the model: Transformers makes all of a GGUF file float32, and
        quantized weights stay until they are wide.
        """
        if self._quantization is not None:
            return weight_files.size(self.path)
        return 0 if self.gguf is None else 4 * weight_files.parameters(self._weights, self.revision)

    @property
    def _weights(self) -> Path:
        return self.path if self.gguf is None else self.path / self.gguf

    @property
    def is_adapter(self) -> bool:
        """Whether the files are those of an adapter alone, whose base is to be found."""
        return self.adapter == self.path

    def config_folder(self) -> Path:
        """The folder of the configuration, which is written first for a GGUF file (half a minute)."""
        return self.path if self.gguf is None else gguf_files.opened(self.path / self.gguf, self.revision)

    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer: the adapter's own if it has one; written first for a GGUF file without one."""
        if self.adapter is not None and weight_files.have_tokenizer(self.adapter):
            return self.adapter
        return self.path if weight_files.have_tokenizer(self.path) else self.config_folder()


def of_folder(name: str, kind: str, path: Path, revision: str | None) -> ModelSource | None:
    """The model or the adapter that a folder holds, None if it holds neither; `revision` is a snapshot's of the hub."""
    has_weights, has_config = weight_files.have_weights(path), (path / "config.json").is_file()
    found = ModelSource(name, kind, path, revision or weight_files.fingerprint(path.iterdir()))
    if adapters.is_adapter(path):
        weights = [file for glob in WEIGHTS for file in path.glob(glob) if not file.name.startswith("adapter_")]
        if has_config and weights:
            raise adapters.refuse_beside_base(name)
        return replace(found, adapter=path)
    if not has_weights and (file := gguf_files.only_file(name, path)):
        return of_gguf(name, kind, path / file, revision)
    # The cache may hold only a part of the repository (the tokenizer, say); a directory is whole, or named incomplete.
    return found if has_config and (has_weights or kind == "directory") else None


def of_gguf(name: str, kind: str, file: Path, revision: str | None) -> ModelSource:
    gguf_files.check(name, file)
    # With the small files beside it: the tokenizer, and the defaults of generation.
    beside = [each for glob in OTHERS for each in file.parent.glob(glob)]
    return ModelSource(name, kind, file.parent, revision or weight_files.fingerprint([file, *beside]), gguf=file.name)


def joined(name: str, base: ModelSource, adapter: ModelSource, notes: tuple[str, ...]) -> ModelSource:
    """Base and adapter as one model."""
    revision = f"{base.revision}+{adapter.revision}"
    return replace(
        base, name=name, kind=adapter.kind, revision=revision, adapter=adapter.path, base=base.name, notes=notes
    )


def names_under(root: Path) -> Iterator[str]:
    """The names of the models and adapters in a model directory: `name`, `org/name`, and GGUF files.

    A folder's only GGUF file has the folder's name.
    """
    for path in _children(root):
        if _holds_a_model(path):
            yield path.name
        inner = [each for each in _children(path) if _holds_a_model(each)]
        is_one = len(inner) == 1 and inner[0].suffix == gguf_files.SUFFIX and not weight_files.have_weights(path)
        if not (is_one and _holds_a_model(path)):
            yield from (f"{path.name}/{each.name}" for each in inner)


def _children(folder: Path) -> list[Path]:
    try:
        return [each for each in folder.iterdir() if not each.name.startswith(".")] if folder.is_dir() else []
    except OSError:
        return []


def _holds_a_model(path: Path) -> bool:
    if path.is_file():
        return gguf_files.is_model(path.name)
    names = ("config.json", adapters.CONFIG)
    return any((path / name).is_file() for name in names) or len(gguf_files.files_in(path)) == 1


def _read_folder(read: Callable[[Path, str], _Read | None], source: ModelSource) -> _Read | None:
    """What `read` reads from the folder of the configuration; None for a GGUF file that was not loaded yet."""
    folder: Path | None = source.path
    if source.gguf is not None:
        folder = gguf_files.opened_already(source.path / source.gguf, source.revision)
    return None if folder is None else read(folder, source.revision)


@lru_cache(maxsize=256)
def _config(path: Path, revision: str) -> PretrainedConfig | None:  # noqa: ARG001 - part of the key: files change
    try:
        found: PretrainedConfig | None = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        found = None
    return found


@lru_cache(maxsize=256)
def _generation_config(path: Path, revision: str) -> GenerationConfig | None:
    """As Transformers does it when it loads a model: from its own file, or else from the configuration."""
    try:
        if (path / "generation_config.json").is_file():
            found: GenerationConfig = GenerationConfig.from_pretrained(path)
        elif (config := _config(path, revision)) is not None:
            found = GenerationConfig.from_model_config(config)
        else:
            return None
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return found
