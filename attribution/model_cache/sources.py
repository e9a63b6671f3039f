"""Finds a model's files: bundled, in a configured directory, or in the Hugging Face cache, which it can fill.

Decides which names the server serves, and names the revision of the files found. Knows nothing of loading models.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from math import prod
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from problems import Cancelled, ModelNotAllowed, ModelUnavailable
from settings import PROJECT_ROOT, Settings

BUNDLED_DIR = PROJECT_ROOT / "demo_models"

_WEIGHTS = ("*.safetensors", "*.bin")
_OTHERS = ("*.json", "*.txt", "*.model", "*.jinja", "*.spm")
_LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library
_DOWNLOAD = Path(__file__).with_name("hub_download.py")
_POLL_SECONDS = 0.1  # between two questions whether to stop


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are. `revision` identifies their content: a commit, a checksum or a fingerprint."""

    name: str
    kind: str  # bundled, directory or hub
    path: Path
    revision: str

    @property
    def weights_bytes(self) -> int:
        """The size of the weight files."""
        return sum(file.stat().st_size for glob in _WEIGHTS for file in self.path.glob(glob))

    @property
    def parameters(self) -> int:
        """The number of parameters; 0 if the files cannot be read."""
        return _parameters(self.path, self.revision)


class ModelSources:
    """Finds models by name, within the operator's settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def check_allowed(self, name: str) -> None:
        """Raise `ModelNotAllowed` if the operator's allow list does not contain the name."""
        bare = name.partition("@")[0]
        if bare in bundled_models():
            return
        if not any(fnmatchcase(bare, pattern) for pattern in self._settings.allowed_models):
            raise ModelNotAllowed(
                f"This server does not serve {bare!r}. It serves: {', '.join(bundled_models())}; and names matching "
                f"{', '.join(self._settings.allowed_models) or 'nothing else'}."
            )

    def is_listed(self, name: str) -> bool:
        """Whether the operator made this name known: bundled, in a model directory, or allowed without a wildcard."""
        if name in bundled_models() or name in self._settings.allowed_models:
            return True
        return any((Path(directory) / name).is_dir() for directory in self._settings.model_dirs)

    def is_encoder_decoder(self, name: str) -> bool | None:
        """Whether the model is an encoder-decoder, from its config; None if its files are not on this machine."""
        config = self.config(name)
        return None if config is None else bool(config.is_encoder_decoder)

    def config(self, name: str) -> PretrainedConfig | None:
        """The model's configuration; None if its files are not on this machine, or it cannot be read."""
        source = self.on_this_machine(name)
        return None if source is None else _config(source.path, source.revision)

    def generation_config(self, name: str) -> GenerationConfig | None:
        """The model's own defaults of generation; None if its files are not on this machine, or cannot be read."""
        source = self.on_this_machine(name)
        return None if source is None else _generation_config(source.path, source.revision)

    def revision(self, name: str) -> str | None:
        """The revision of the model's files; None if they are not on this machine."""
        source = self.on_this_machine(name)
        return None if source is None else source.revision

    def on_this_machine(self, name: str) -> ModelSource | None:
        """The model's files without asking the hub; None if they are not here.

        Raises `ModelNotAllowed`, and `ModelUnavailable` for files that are no model of their own.
        """
        self.check_allowed(name)
        bare, _, revision = name.partition("@")
        if bare in bundled_models():
            path = BUNDLED_DIR / bare
            return ModelSource(bare, "bundled", path, _checksum(path / "model.safetensors"))
        for root in self._settings.model_dirs:
            path = Path(root) / bare
            # A valid name has no `..`. A link under the root may point anywhere, because the operator made it.
            if path.is_dir():
                _refuse_what_is_no_model(bare, path)
            if (path / "config.json").is_file():
                return ModelSource(bare, "directory", path, _fingerprint(path))
        try:
            path = Path(snapshot_download(bare, revision=revision or None, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
            return None
        _refuse_what_is_no_model(bare, path)
        # The cache may hold only a part of the repository (the tokenizer, say).
        if not (path / "config.json").is_file() or not any(found for glob in _WEIGHTS for found in path.glob(glob)):
            return None
        return ModelSource(bare, "hub", path, path.name)

    def resolve(self, name: str, should_cancel: Callable[[], bool] = lambda: False) -> ModelSource:
        """The model's files, downloaded from the hub if they are not on this machine.

        Raises `ModelNotAllowed`, `ModelUnavailable`, and `Cancelled` soon after `should_cancel` returned True.
        """
        return self.on_this_machine(name) or self._fetch(name, should_cancel)

    def _fetch(self, name: str, should_cancel: Callable[[], bool]) -> ModelSource:
        bare, _, revision = name.partition("@")
        if constants.HF_HUB_OFFLINE:
            raise ModelUnavailable(
                f"{bare!r} is not on this machine and the server is offline (HF_HUB_OFFLINE). Use one of "
                f"{', '.join(bundled_models())}, or ask the operator to download it."
            )
        asked = {
            "name": bare,
            "revision": revision or None,
            "timeout": self._settings.hub_timeout_seconds,
            "weights": _WEIGHTS,
            "others": _OTHERS,
        }
        answer = _downloaded(json.dumps(asked), should_cancel)
        error = answer.get("error")
        if error == GatedRepoError.__name__:
            raise ModelUnavailable(f"{bare!r} is gated: accept its terms on the hub and set HF_TOKEN.")
        if error in {RepositoryNotFoundError.__name__, RevisionNotFoundError.__name__}:
            what = f"revision {revision!r} of {bare!r}" if error == RevisionNotFoundError.__name__ else repr(bare)
            raise ModelUnavailable(f"There is no {what} on the Hugging Face Hub, or it is private.")
        if error is not None:
            raise ModelUnavailable(
                f"{bare!r} is not on this machine and the Hugging Face Hub could not be reached ({error}). Use one of "
                f"{', '.join(bundled_models())}, or try again later."
            )
        _refuse_what_is_no_model(bare, Path(answer["path"]))
        return ModelSource(bare, "hub", Path(answer["path"]), answer["revision"])


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


def _refuse_what_is_no_model(name: str, path: Path) -> None:
    """Raise `ModelUnavailable` for a PEFT adapter, also beside its base model, and for weights in GGUF alone."""
    if (path / "adapter_config.json").is_file():
        beside = " beside a base model, and would be ignored" if (path / "config.json").is_file() else ""
        raise ModelUnavailable(
            f"{name!r} holds a PEFT adapter (adapter_config.json){beside}. Merge it into its base model "
            "(`merge_and_unload()`, then `save_pretrained`), and serve the merged folder."
        )
    if any(path.glob("*.gguf")) and not any(found for glob in _WEIGHTS for found in path.glob(glob)):
        raise ModelUnavailable(
            f"{name!r} holds weights in the GGUF format alone, which this server does not read. Take the model's "
            "safetensors files."
        )


@lru_cache(maxsize=1)
def bundled_models() -> tuple[str, ...]:
    """The names of the models that ship with the project."""
    return tuple(sorted(file.parent.name for file in BUNDLED_DIR.glob("*/config.json")))


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


@lru_cache(maxsize=16)
def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _fingerprint(path: Path) -> str:
    """A hash of the names, sizes and modification times of a directory's files, since weights are too large to read."""
    files = sorted(file for file in path.iterdir() if file.is_file())
    entries = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return "local-" + hashlib.sha256(repr(entries).encode()).hexdigest()[:12]


@lru_cache(maxsize=256)
def _parameters(path: Path, revision: str) -> int:  # noqa: ARG001 - part of the cache key: files change with it
    """The number of parameters in a model's files, from the JSON headers of its safetensors.

    0 if they cannot be read: loading the model then reports the reason.
    """
    count = 0
    try:
        for file in path.glob("*.safetensors"):
            with file.open("rb") as opened:
                header = json.loads(opened.read(min(int.from_bytes(opened.read(8), "little"), _LONGEST_HEADER)))
            count += sum(prod(each["shape"]) for name, each in header.items() if name != "__metadata__")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return 0
    return count or sum(file.stat().st_size for file in path.glob("*.bin")) // 4
