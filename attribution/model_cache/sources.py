"""Finds a model's files: bundled, in a configured directory, or in the Hugging Face cache, which it can fill.

Decides which names the server serves, and names the revision of the files found. Knows nothing of loading models.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, PretrainedConfig

from problems import ModelNotAllowed, ModelUnavailable
from settings import PROJECT_ROOT, Settings

BUNDLED_DIR = PROJECT_ROOT / "demo_models"

_WEIGHTS = ("*.safetensors", "*.bin")
_FILES = [*_WEIGHTS, "*.json", "*.txt", "*.model", "*.jinja", "*.spm"]


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

    def is_encoder_decoder(self, name: str) -> bool | None:
        """Whether the model is an encoder-decoder, from its config; None if its files are not on this machine."""
        config = self.config(name)
        return None if config is None else bool(config.is_encoder_decoder)

    def config(self, name: str) -> PretrainedConfig | None:
        """The model's configuration; None if its files are not on this machine, or it cannot be read."""
        source = self.on_this_machine(name)
        return None if source is None else _config(source.path, source.revision)

    def revision(self, name: str) -> str | None:
        """The revision of the model's files; None if they are not on this machine."""
        source = self.on_this_machine(name)
        return None if source is None else source.revision

    def on_this_machine(self, name: str) -> ModelSource | None:
        """The model's files without asking the hub; None if they are not here. Raises `ModelNotAllowed`."""
        self.check_allowed(name)
        bare, _, revision = name.partition("@")
        if bare in bundled_models():
            path = BUNDLED_DIR / bare
            return ModelSource(bare, "bundled", path, _checksum(path / "model.safetensors"))
        for root in self._settings.model_dirs:
            path = Path(root) / bare
            # A valid name has no `..`. A link under the root may point anywhere, because the operator made it.
            if (path / "config.json").is_file():
                return ModelSource(bare, "directory", path, _fingerprint(path))
        try:
            path = Path(snapshot_download(bare, revision=revision or None, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
            return None
        # The cache may hold only a part of the repository (the tokenizer, say).
        if not (path / "config.json").is_file() or not any(found for glob in _WEIGHTS for found in path.glob(glob)):
            return None
        return ModelSource(bare, "hub", path, path.name)

    def resolve(self, name: str) -> ModelSource:
        """The model's files, downloaded from the hub if they are not on this machine.

        Raises `ModelNotAllowed` or `ModelUnavailable`.
        """
        return self.on_this_machine(name) or self._fetch(name)

    def _fetch(self, name: str) -> ModelSource:
        bare, _, revision = name.partition("@")
        if constants.HF_HUB_OFFLINE:
            raise ModelUnavailable(
                f"{bare!r} is not on this machine and the server is offline (HF_HUB_OFFLINE). Use one of "
                f"{', '.join(bundled_models())}, or ask the operator to download it."
            )
        try:
            # One short request first: the download's own retries take half a minute to report an unreachable hub.
            info = HfApi().model_info(bare, revision=revision or None, timeout=self._settings.hub_timeout_seconds)
            patterns = [each for each in _FILES if each != "*.bin"] if _has_safetensors(info) else _FILES
            path = snapshot_download(bare, revision=info.sha, allow_patterns=patterns)
        except GatedRepoError as error:
            raise ModelUnavailable(f"{bare!r} is gated: accept its terms on the hub and set HF_TOKEN.") from error
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            what = f"revision {revision!r} of {bare!r}" if isinstance(error, RevisionNotFoundError) else repr(bare)
            raise ModelUnavailable(f"There is no {what} on the Hugging Face Hub, or it is private.") from error
        except Exception as error:  # besides HTTP and file errors, whatever the transport library raises
            raise ModelUnavailable(
                f"{bare!r} is not on this machine and the Hugging Face Hub could not be reached "
                f"({type(error).__name__}). Use one of {', '.join(bundled_models())}, or try again later."
            ) from error
        return ModelSource(bare, "hub", Path(path), str(info.sha))


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


@lru_cache(maxsize=16)
def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _fingerprint(path: Path) -> str:
    """A hash of the names, sizes and modification times of a directory's files, since weights are too large to read."""
    files = sorted(file for file in path.iterdir() if file.is_file())
    entries = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return "local-" + hashlib.sha256(repr(entries).encode()).hexdigest()[:12]


def _has_safetensors(info: Any) -> bool:
    return any(each.rfilename.endswith(".safetensors") for each in info.siblings or [])
