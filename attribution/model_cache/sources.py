"""Finds a model's files: bundled, in a configured directory, or in the Hugging Face cache, which it can fill.

Decides which names the server serves, and names the revision of the files found. Knows nothing of loading models.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, scan_cache_dir, snapshot_download
from huggingface_hub.errors import (
    CacheNotFound,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import GenerationConfig, PretrainedConfig

from attribution.model_cache import adapters, gguf_files, quantized, weight_files
from attribution.model_cache.hub_download import NO_SPACE, TOO_LARGE
from attribution.model_cache.model_source import OTHERS, ModelSource, joined, names_under, of_folder, of_gguf
from attribution.model_cache.weight_files import WEIGHTS
from problems import Cancelled, ModelNotAllowed, ModelUnavailable
from settings import PROJECT_ROOT, Settings

BUNDLED_DIR = PROJECT_ROOT / "demo_models"

_DOWNLOAD = Path(__file__).with_name("hub_download.py")
_POLL_SECONDS = 0.1  # between two questions whether to stop
_GIB = 1024**3
_NEAR = 3  # names in a message


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
            names += sorted(names_under(root))
        return [name for name in dict.fromkeys(names) if self._is_allowed(name)]

    def cached_names(self) -> list[str]:
        """The names of the models in the local hub cache that a request may use, and of each of their GGUF files."""
        try:
            repositories = sorted(scan_cache_dir().repos, key=lambda each: each.repo_id)
        except (CacheNotFound, OSError, ValueError):
            return []
        names = []
        for each in repositories:
            if each.repo_type == "model":
                files = {file.file_name for revision in each.revisions for file in revision.files}
                ggufs = sorted(file for file in files if gguf_files.is_model(file))
                has_model = {"config.json", adapters.CONFIG} & files or len(ggufs) == 1
                names += [each.repo_id] if has_model else []
                names += [f"{each.repo_id}/{file}" for file in ggufs] if len(ggufs) > 1 else []
        return [name for name in names if self._is_allowed(name)]

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
        return None if source is None else source.config

    def generation_config(self, name: str) -> GenerationConfig | None:
        """The model's own defaults of generation; None if its files are not on this machine, or cannot be read."""
        source = self.on_this_machine(name)
        return None if source is None else source.generation_config

    def revision(self, name: str) -> str | None:
        """The revision of the model's files; None if they are not on this machine."""
        source = self.on_this_machine(name)
        return None if source is None else source.revision

    def on_this_machine(self, name: str) -> ModelSource | None:
        """The model's files without asking the hub; None if they are not here.

        Raises `ModelNotAllowed`, and `ModelUnavailable` for files that are no model, or an adapter without its base.
        """
        found = self._find(name, self._local)
        if found is not None:
            quantized.check(found)
        return found

    def resolve(self, name: str, should_cancel: Callable[[], bool] = lambda: False) -> ModelSource:
        """The model's files, downloaded from the hub if they are not on this machine.

        Raises `ModelNotAllowed`, `ModelUnavailable`, and `Cancelled` soon after `should_cancel` returned True.
        """
        found = self._find(name, lambda part: self._local(part) or self._fetch(part, should_cancel))
        assert found is not None  # `_fetch` raises
        quantized.check(found)
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
        return joined(f"{first.name}+{second.name}", first, second, notes)

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
            return joined(found.name, base, found, notes)
        if not adapter.is_on_hub or constants.HF_HUB_OFFLINE:
            raise adapters.base_not_found(found.name, adapter)
        wanted = adapter.candidates(())[0]
        self.check_allowed(wanted)
        try:
            base = get(wanted)
        except ModelUnavailable as error:
            raise ModelUnavailable(f"{found.name!r} is a PEFT adapter of {adapter.base!r}. {error}") from error
        return None if base is None else joined(found.name, base, found, ())

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
                return of_gguf(bare, "directory", path, None)
            if path.is_dir() and (found := of_folder(bare, "directory", path, None)):
                return found
        repository, file = bare, None
        if bare.endswith(gguf_files.SUFFIX) and "/" in bare:
            repository, _, file = bare.rpartition("/")
        try:
            path = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
            return None
        if file is not None:
            return of_gguf(bare, "hub", path / file, f"{path.name}-{file}") if (path / file).is_file() else None
        return of_folder(bare, "hub", path, path.name)

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
            "others": OTHERS,
            "most_bytes": self._settings.max_download_bytes,
        }
        answer = _downloaded(json.dumps(asked), should_cancel)
        error = answer.get("error")
        if error == GatedRepoError.__name__:
            raise ModelUnavailable(f"{bare!r} is gated: accept its terms on the hub and set HF_TOKEN.")
        if error in {RepositoryNotFoundError.__name__, RevisionNotFoundError.__name__}:
            what = f"revision {revision!r} of {bare!r}" if error == RevisionNotFoundError.__name__ else repr(bare)
            raise ModelUnavailable(f"There is no {what} on the Hugging Face Hub, or it is private.{self.near(bare)}")
        if error in {TOO_LARGE, NO_SPACE}:
            limit = "allows (INSEQ_API_MAX_DOWNLOAD_BYTES)" if error == TOO_LARGE else "has free on its disk"
            most = self._settings.max_download_bytes if error == TOO_LARGE else answer["free"]
            raise ModelUnavailable(
                f"{bare!r} is a download of {answer['bytes'] / _GIB:.1f} GiB, and the server {limit} "
                f"{most / _GIB:.1f} GiB. Use a smaller model, or ask the operator."
            )
        if error is not None:
            raise ModelUnavailable(
                f"{bare!r} is not on this machine and the Hugging Face Hub could not be reached ({error}). Use one of "
                f"{', '.join(bundled_models())}, or try again later.{self.near(bare)}"
            )
        if found := self._local(f"{bare}@{answer['revision']}"):
            return found
        return ModelSource(bare, "hub", Path(answer["path"]), answer["revision"])  # loading it names what it lacks


def _downloaded(asked: str, should_cancel: Callable[[], bool]) -> dict[str, Any]:
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
        answer: dict[str, Any] = json.loads(output)
    except ValueError:  # it was ended from outside
        return {"error": f"the download ended with status {process.returncode}"}
    return answer


@lru_cache(maxsize=1)
def bundled_models() -> tuple[str, ...]:
    """The names of the models that ship with the project."""
    return tuple(sorted(file.parent.name for file in BUNDLED_DIR.glob("*/config.json")))
