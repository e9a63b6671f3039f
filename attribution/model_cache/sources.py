"""Finds a model's files: bundled, in a configured directory, or in the Hugging Face cache, which it can fill.

Decides which names the server serves, and names the revision of the files found. Knows nothing of loading models.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from attribution.model_cache import adapters, gguf_files, weight_files
from attribution.model_cache.weight_files import WEIGHTS
from problems import Cancelled, ModelNotAllowed, ModelUnavailable
from settings import PROJECT_ROOT, Settings

BUNDLED_DIR = PROJECT_ROOT / "demo_models"

_OTHERS = ("*.json", "*.txt", "*.model", "*.jinja", "*.spm")
_DOWNLOAD = Path(__file__).with_name("hub_download.py")
_POLL_SECONDS = 0.1  # between two questions whether to stop
_NEAR = 3  # names in a message
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
    notes: tuple[str, ...] = ()  # what every result says of where the files were found

    @property
    def weights_bytes(self) -> int:
        """The size of the weight files."""
        base = weight_files.size(self.path) if self.gguf is None else (self.path / self.gguf).stat().st_size
        return base + (weight_files.size(self.adapter) if self.adapter else 0)

    @property
    def parameters(self) -> int:
        """The number of parameters, an adapter's included; 0 if the files cannot be read."""
        base = weight_files.parameters(self._weights, self.revision)
        return base + (weight_files.parameters(self.adapter, self.revision) if self.adapter else 0)

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        """The bytes of the weights in the files, by dtype; without those of an adapter's base."""
        return weight_files.bytes_by_dtype(self.adapter or self._weights, self.revision)

    @property
    def bytes_while_read(self) -> int:
        """The memory that reading the files takes besides the model: Transformers makes all of a GGUF file float32."""
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


class ModelSources:
    """Finds models by name, within the operator's settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def check_allowed(self, name: str) -> None:
        """Raise `ModelNotAllowed` if the operator's allow list does not contain the name, or both parts of it."""
        bare = "+".join(part.partition("@")[0] for part in name.split("+"))
        if not self._is_allowed(bare) and not all(map(self._is_allowed, bare.split("+"))):
            raise ModelNotAllowed(
                f"This server does not serve {bare!r}. It serves: {', '.join(bundled_models())}; and names matching "
                f"{', '.join(self._settings.allowed_models) or 'nothing else'}.{self.near(bare)}"
            )

    def _is_allowed(self, bare: str) -> bool:
        names = [bare, bare.rpartition("/")[0]] if bare.endswith(gguf_files.SUFFIX) else [bare]
        return bare in bundled_models() or any(
            fnmatchcase(each, pattern) for each in names if each for pattern in self._settings.allowed_models
        )

    def is_listed(self, name: str) -> bool:
        """Whether the operator made this name known: bundled, in a model directory, or allowed without a wildcard."""
        if name in bundled_models() or name in self._settings.allowed_models:
            return True
        if "+" in name:
            return all(map(self.is_listed, name.split("+")))
        paths = [Path(directory) / name for directory in self._settings.model_dirs]
        return any(path.is_dir() or (path.suffix == gguf_files.SUFFIX and path.is_file()) for path in paths)

    def listed_names(self) -> list[str]:
        """The names that the operator made known, of models that a request may use: see `is_listed`."""
        names = [*bundled_models(), *(each for each in self._settings.allowed_models if not set(each) & set("*?["))]
        for root in map(Path, self._settings.model_dirs):
            names += sorted(_names_under(root))
        return [name for name in dict.fromkeys(names) if self._is_allowed(name)]

    def near(self, name: str) -> str:
        """A sentence with the listed names that are like `name`; empty if there are none."""
        known = {each.lower(): each for each in self.listed_names()}
        ends = {each.rpartition("/")[2]: each for each in known}
        bare = name.lower()
        last = bare.rpartition("/")[2]
        found = get_close_matches(bare, known, _NEAR) + [ends[each] for each in get_close_matches(last, ends, _NEAR)]
        near = [repr(known[each]) for each in dict.fromkeys(found)][:_NEAR]
        return f" Did you mean {' or '.join(near)}?" if near else ""

    def is_encoder_decoder(self, name: str) -> bool | None:
        """Whether the model is an encoder-decoder, from its config; None if its files are not on this machine."""
        config = self.config(name)
        return None if config is None else bool(config.is_encoder_decoder)

    def config(self, name: str) -> PretrainedConfig | None:
        """The model's configuration; None if its files are not on this machine, or it cannot be read."""
        source = self.on_this_machine(name)
        return None if source is None else _of_folder(_config, source)

    def generation_config(self, name: str) -> GenerationConfig | None:
        """The model's own defaults of generation; None if its files are not on this machine, or cannot be read."""
        source = self.on_this_machine(name)
        return None if source is None else _of_folder(_generation_config, source)

    def revision(self, name: str) -> str | None:
        """The revision of the model's files; None if they are not on this machine."""
        source = self.on_this_machine(name)
        return None if source is None else source.revision

    def on_this_machine(self, name: str) -> ModelSource | None:
        """The model's files without asking the hub; None if they are not here.

        Raises `ModelNotAllowed`, and `ModelUnavailable` for files that are no model, or an adapter without its base.
        """
        return self._find(name, self._local)

    def resolve(self, name: str, should_cancel: Callable[[], bool] = lambda: False) -> ModelSource:
        """The model's files, downloaded from the hub if they are not on this machine.

        Raises `ModelNotAllowed`, `ModelUnavailable`, and `Cancelled` soon after `should_cancel` returned True.
        """
        found = self._find(name, lambda part: self._local(part) or self._fetch(part, should_cancel))
        assert found is not None  # `_fetch` raises
        return found

    def _find(self, name: str, get: Callable[[str], ModelSource | None]) -> ModelSource | None:
        """The model of a name whose parts `get` finds."""
        self.check_allowed(name)
        part, _, wanted = name.partition("+")
        first = get(part)
        if first is None:
            return None
        if not wanted:
            return self._with_base(first, get) if first.is_adapter else first
        second = get(wanted)
        if second is None:
            return None
        if first.is_adapter or not second.is_adapter:
            raise ModelUnavailable(
                f"{name!r}: {(second if not second.is_adapter else first).name!r} is "
                f"{'no PEFT adapter' if not second.is_adapter else 'a PEFT adapter'}. Write BASE+ADAPTER."
            )
        adapter = adapters.read(second.name, second.path)
        notes: tuple[str, ...] = ()
        if adapter.base and adapter.base_label.rpartition("/")[2] != first.name.rpartition("/")[2]:
            notes = (
                f"The adapter {second.name!r} was trained on {adapter.base_label!r}, and is used on {first.name!r}.",
            )
        return _joined(f"{first.name}+{second.name}", first, second, notes)

    def _with_base(self, found: ModelSource, get: Callable[[str], ModelSource | None]) -> ModelSource | None:
        """An adapter with the base model that its configuration names; None if `get` does not find that yet."""
        adapter = adapters.read(found.name, found.path)
        for name in adapter.candidates(self._settings.model_dirs):
            base = self._local(name)
            if base is None or base.path == found.path:
                continue
            if found.kind == "hub":  # others than the operator may have written it
                self.check_allowed(base.name)
            if base.is_adapter:
                raise ModelUnavailable(
                    f"{found.name!r} is a PEFT adapter of {base.name!r}, which is an adapter itself. Merge that into "
                    "its base model (`merge_and_unload()`, then `save_pretrained`) first."
                )
            notes: tuple[str, ...] = ()
            if name.partition("@")[0] != (adapter.base or "").partition("@")[0]:
                notes = (f"The base of {found.name!r}, {adapter.base_label!r}, was taken from {base.name!r}.",)
            return _joined(found.name, base, found, notes)
        if not adapter.is_on_hub or constants.HF_HUB_OFFLINE:
            raise adapters.base_not_found(found.name, adapter)
        wanted = adapter.candidates(())[0]
        self.check_allowed(wanted)
        try:
            base = get(wanted)
        except ModelUnavailable as error:
            raise ModelUnavailable(f"{found.name!r} is a PEFT adapter of {adapter.base!r}. {error}") from error
        return None if base is None else _joined(found.name, base, found, ())

    def _local(self, name: str) -> ModelSource | None:
        """The files of one part of a name, on this machine."""
        bare, _, revision = name.partition("@")
        if bare in bundled_models():
            path = BUNDLED_DIR / bare
            return ModelSource(bare, "bundled", path, weight_files.checksum(path / "model.safetensors"))
        for root in self._settings.model_dirs:
            # A valid name has no `..`. A link under the root may point anywhere, because the operator made it.
            path = Path(root) / bare
            if path.suffix == gguf_files.SUFFIX and path.is_file():
                return _of_gguf(bare, "directory", path, None)
            if path.is_dir() and (found := _of_folder_of_files(bare, "directory", path, None)):
                return found
        repository, file = bare, None
        if bare.endswith(gguf_files.SUFFIX) and "/" in bare:
            repository, _, file = bare.rpartition("/")
        try:
            path = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
            return None
        if file is not None:
            return _of_gguf(bare, "hub", path / file, f"{path.name}-{file}") if (path / file).is_file() else None
        return _of_folder_of_files(bare, "hub", path, path.name)

    def _fetch(self, name: str, should_cancel: Callable[[], bool]) -> ModelSource:
        bare, _, revision = name.partition("@")
        if constants.HF_HUB_OFFLINE:
            raise ModelUnavailable(
                f"{bare!r} is not on this machine and the server is offline (HF_HUB_OFFLINE). Use one of "
                f"{', '.join(bundled_models())}, or ask the operator to download it.{self.near(bare)}"
            )
        is_file = bare.endswith(gguf_files.SUFFIX) and "/" in bare
        repository, _, file = bare.rpartition("/") if is_file else (bare, "", "")
        asked = {
            "name": repository,
            "revision": revision or None,
            "timeout": self._settings.hub_timeout_seconds,
            "weights": [file] if is_file else WEIGHTS,
            "others": _OTHERS,
        }
        answer = _downloaded(json.dumps(asked), should_cancel)
        error = answer.get("error")
        if error == GatedRepoError.__name__:
            raise ModelUnavailable(f"{bare!r} is gated: accept its terms on the hub and set HF_TOKEN.")
        if error in {RepositoryNotFoundError.__name__, RevisionNotFoundError.__name__}:
            what = f"revision {revision!r} of {bare!r}" if error == RevisionNotFoundError.__name__ else repr(bare)
            raise ModelUnavailable(f"There is no {what} on the Hugging Face Hub, or it is private.{self.near(bare)}")
        if error is not None:
            raise ModelUnavailable(
                f"{bare!r} is not on this machine and the Hugging Face Hub could not be reached ({error}). Use one of "
                f"{', '.join(bundled_models())}, or try again later.{self.near(bare)}"
            )
        if found := self._local(f"{bare}@{answer['revision']}"):
            return found
        return ModelSource(bare, "hub", Path(answer["path"]), answer["revision"])  # loading it names what it lacks


def _downloaded(asked: str, should_cancel: Callable[[], bool]) -> dict[str, str]:
    """What `hub_download` says. Raises `Cancelled` soon after `should_cancel` returned True; the download then ends."""
    with subprocess.Popen(  # noqa: S603 - this package's own script
        [sys.executable, "-P", str(_DOWNLOAD), asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal is for the server
    ) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if should_cancel():
                    process.kill()
                    raise Cancelled from None
            else:
                break
    try:
        answer: dict[str, str] = json.loads(output)
    except ValueError:  # it was ended from outside
        return {"error": f"the download ended with status {process.returncode}"}
    return answer


def _of_folder_of_files(name: str, kind: str, path: Path, revision: str | None) -> ModelSource | None:
    """The model or the adapter that a folder holds, None if it holds neither; `revision` is a snapshot's of the hub."""
    has_weights, has_config = weight_files.have_weights(path), (path / "config.json").is_file()
    found = ModelSource(name, kind, path, revision or weight_files.fingerprint(path.iterdir()))
    if adapters.is_adapter(path):
        weights = [file for glob in WEIGHTS for file in path.glob(glob) if not file.name.startswith("adapter_")]
        if has_config and weights:
            raise adapters.refuse_beside_base(name)
        return replace(found, adapter=path)
    if not has_weights and (file := gguf_files.only_file(name, path)):
        return _of_gguf(name, kind, path / file, revision)
    # The cache may hold only a part of the repository (the tokenizer, say); a directory is whole, or named incomplete.
    return found if has_config and (has_weights or kind == "directory") else None


def _of_gguf(name: str, kind: str, file: Path, revision: str | None) -> ModelSource:
    gguf_files.check(name, file)
    # With the small files beside it: the tokenizer, and the defaults of generation.
    beside = [each for glob in _OTHERS for each in file.parent.glob(glob)]
    return ModelSource(name, kind, file.parent, revision or weight_files.fingerprint([file, *beside]), gguf=file.name)


def _joined(name: str, base: ModelSource, adapter: ModelSource, notes: tuple[str, ...]) -> ModelSource:
    """Base and adapter as one model."""
    revision = f"{base.revision}+{adapter.revision}"
    return replace(base, name=name, kind=adapter.kind, revision=revision, adapter=adapter.path, notes=notes)


def _names_under(root: Path) -> Iterator[str]:
    """The names of the models and adapters in a model directory: `name`, `org/name`, and each GGUF file."""
    for path in _children(root):
        if _holds_a_model(path):
            yield path.name
        yield from (f"{path.name}/{each.name}" for each in _children(path) if _holds_a_model(each))


def _children(folder: Path) -> list[Path]:
    try:
        return [each for each in folder.iterdir() if not each.name.startswith(".")] if folder.is_dir() else []
    except OSError:
        return []


def _holds_a_model(path: Path) -> bool:
    if path.suffix == gguf_files.SUFFIX:
        return path.is_file() and bool(gguf_files.files_in(path.parent)) and not path.name.lower().startswith("mmproj")
    return path.is_dir() and any((path / name).is_file() for name in ("config.json", adapters.CONFIG))


@lru_cache(maxsize=1)
def bundled_models() -> tuple[str, ...]:
    """The names of the models that ship with the project."""
    return tuple(sorted(file.parent.name for file in BUNDLED_DIR.glob("*/config.json")))


def _of_folder(read: Callable[[Path, str], _Read | None], source: ModelSource) -> _Read | None:
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
