"""Load, place, share and evict models.

A name is resolved to a directory (bundled, under a configured root, or a snapshot in the Hugging Face cache), and
loaded once per revision, device and dtype however many jobs ask at once. Knows nothing of requests or attribution.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from inseq.models import HuggingfaceModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from attribution.corrections.embeddings import EmbeddingsFix, embeddings_fix
from attribution.isolation import DEFAULT_DTYPE, RANDOM_DRAWS
from attribution.model_cache.attention_outputs import Places, find_places
from problems import ModelNotAllowed, ModelUnavailable
from settings import PROJECT_ROOT, Settings

BUNDLED_DIR = PROJECT_ROOT / "demo_models"

# `from_pretrained` is not safe in two threads at once: it builds models under process-wide state.
_LOADING = threading.Lock()

_WEIGHTS = ("*.safetensors", "*.bin")
_FILES = [*_WEIGHTS, "*.json", "*.txt", "*.model", "*.jinja", "*.spm"]


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are. `revision` pins their content: a commit of the hub, a checksum, or a fingerprint."""

    name: str
    kind: str  # bundled, directory or hub
    path: Path
    revision: str


@dataclass(frozen=True)
class ModelKey:
    """What makes two loaded models interchangeable."""

    name: str
    revision: str
    device: str
    dtype: str


@dataclass(eq=False)
class LoadedModel:
    """A model in memory, wrapped by Inseq. Whoever attributes with it holds `lock`."""

    key: ModelKey
    source: ModelSource
    model: HuggingfaceModel
    size: int  # bytes of parameters and buffers
    embeddings_fix: EmbeddingsFix = field(default_factory=EmbeddingsFix)
    attention: Places = field(default_factory=Places)
    verdicts: dict[Any, Any] = field(default_factory=dict)  # which engine may run on it, see `verdicts`
    lock: threading.Lock = field(default_factory=threading.Lock)
    leases: int = 0
    hits: int = 0
    last_used: int = 0

    @property
    def network(self) -> PreTrainedModel:
        """The Transformers model inside Inseq's wrapper."""
        return self.model.model

    @property
    def limit(self) -> int | None:
        """Positions the model has, or None where it has no such limit (relative positions)."""
        limit = getattr(self.network.config, "max_position_embeddings", None)
        return int(limit) if limit else None


class ModelCache:
    """Models by name, at most `settings.model_cache_bytes` of them, least recently used out first, never one in use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._entries: dict[ModelKey, Future[LoadedModel]] = {}
        self._guard = threading.Lock()
        self._clock = 0
        self._loads = 0

    def check_allowed(self, name: str) -> None:
        """Raises `ModelNotAllowed` when the operator's allow list does not have the name."""
        bare = name.partition("@")[0]
        if bare in bundled_models():
            return
        if not any(fnmatchcase(bare, pattern) for pattern in self._settings.allowed_models):
            raise ModelNotAllowed(
                f"This server does not serve {bare!r}. It serves: {', '.join(bundled_models())}; and names matching "
                f"{', '.join(self._settings.allowed_models) or 'nothing else'}."
            )

    def is_encoder_decoder(self, name: str) -> bool | None:
        """Whether the model is an encoder-decoder, if that can be told at once; None for one not on this machine."""
        source = self.on_this_machine(name)
        return None if source is None else _config_kind(source.path)

    def revision(self, name: str) -> str | None:
        """What pins the model's files, if they are on this machine."""
        source = self.on_this_machine(name)
        return None if source is None else source.revision

    @contextmanager
    def lease(self, name: str, *, device: str, dtype: str) -> Iterator[LoadedModel]:
        """The model, loaded and for the caller alone until the end of the block.

        Raises `ModelUnavailable` when it cannot be had.
        """
        with self.held(name, device=device, dtype=dtype) as loaded, loaded.lock:
            yield loaded

    @contextmanager
    def held(self, name: str, *, device: str, dtype: str) -> Iterator[LoadedModel]:
        """The model, kept in memory until the end of the block; another may be running it, so it is only looked at."""
        loaded = self._acquire(name, device, dtype)
        try:
            yield loaded
        finally:
            with self._guard:
                loaded.leases -= 1

    def forget_idle(self) -> None:
        """Give back the memory of every model that nobody uses."""
        with self._guard:
            ready = [future.result() for future in self._entries.values() if future.done()]
            for each in ready:
                if not each.leases:
                    del self._entries[each.key]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def describe(self) -> list[dict[str, Any]]:
        """The models in memory, as plain data, most recently used first."""
        with self._guard:
            ready = [future.result() for future in self._entries.values() if future.done()]
        return [
            {
                "name": each.source.name,
                "kind": each.source.kind,
                "revision": each.source.revision,
                "class": type(each.network).__name__,
                "is_encoder_decoder": each.model.is_encoder_decoder,
                "device": each.key.device,
                "dtype": each.key.dtype,
                "bytes": each.size,
                "in_use": each.leases > 0,
                "hits": each.hits,
            }
            for each in sorted(ready, key=lambda each: -each.last_used)
        ]

    @property
    def loads(self) -> int:
        """How many times a model was read from disk since the start."""
        return self._loads

    def numbers(self) -> dict[str, float]:
        """For the metrics: how many models are in memory, their bytes, and how often one was asked for or read."""
        with self._guard:
            ready = [future.result() for future in self._entries.values() if future.done()]
        return {
            "models": len(ready),
            "bytes": sum(each.size for each in ready),
            "hits": sum(each.hits for each in ready),
            "loads": self._loads,
        }

    # Finding

    def on_this_machine(self, name: str) -> ModelSource | None:
        """Where the model is, if that can be told without the hub."""
        try:
            return self._resolve_locally(name)
        except ModelUnavailable:
            return None

    def resolve(self, name: str) -> ModelSource:
        """Where the model is, fetching it from the hub if it is not on this machine. Raises `ModelUnavailable`."""
        return self._resolve_locally(name) or self._fetch(name)

    def _resolve_locally(self, name: str) -> ModelSource | None:
        self.check_allowed(name)
        bare, _, revision = name.partition("@")
        if bare in bundled_models():
            path = BUNDLED_DIR / bare
            return ModelSource(bare, "bundled", path, _checksum(path / "model.safetensors"))
        for root in self._settings.model_dirs:
            path = Path(root) / bare
            # A name has no `..`, but a link under the root may point anywhere: it is the operator's.
            if (path / "config.json").is_file():
                return ModelSource(bare, "directory", path, _fingerprint(path))
        try:
            path = Path(snapshot_download(bare, revision=revision or None, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
            return None
        # The cache may hold a part of a repository only (a tokenizer, say).
        if not (path / "config.json").is_file() or not any(found for glob in _WEIGHTS for found in path.glob(glob)):
            return None
        return ModelSource(bare, "hub", path, path.name)

    def _fetch(self, name: str) -> ModelSource:
        bare, _, revision = name.partition("@")
        if constants.HF_HUB_OFFLINE:
            raise ModelUnavailable(
                f"{bare!r} is not on this machine and the server is offline (HF_HUB_OFFLINE). Use one of "
                f"{', '.join(bundled_models())}, or have the operator download it."
            )
        try:
            # One quick question first: the download's own retries take half a minute to find that nobody answers.
            info = HfApi().model_info(bare, revision=revision or None, timeout=self._settings.hub_timeout_seconds)
            patterns = [each for each in _FILES if each != "*.bin"] if _has_safetensors(info) else _FILES
            path = snapshot_download(bare, revision=info.sha, allow_patterns=patterns)
        except GatedRepoError as error:
            raise ModelUnavailable(f"{bare!r} is gated: accept its terms on the hub and set HF_TOKEN.") from error
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            what = f"revision {revision!r} of {bare!r}" if isinstance(error, RevisionNotFoundError) else repr(bare)
            raise ModelUnavailable(f"There is no {what} on the Hugging Face Hub, or it is private.") from error
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise ModelUnavailable(
                f"{bare!r} is not on this machine and the Hugging Face Hub could not be reached "
                f"({type(error).__name__}). Use one of {', '.join(bundled_models())}, or try again later."
            ) from error
        except Exception as error:
            raise ModelUnavailable(
                f"{bare!r} is not on this machine and the Hugging Face Hub could not be reached "
                f"({type(error).__name__}). Use one of {', '.join(bundled_models())}, or try again later."
            ) from error
        return ModelSource(bare, "hub", Path(path), str(info.sha))

    # Loading

    def _acquire(self, name: str, device: str, dtype: str) -> LoadedModel:
        source = self.resolve(name)
        key = ModelKey(source.name, source.revision, device, dtype)
        with self._guard:
            future = self._entries.get(key)
            mine = future is None
            if future is None:
                future = self._entries[key] = Future()
        if mine:
            try:
                self._evict(to_free=sum(file.stat().st_size for glob in _WEIGHTS for file in source.path.glob(glob)))
                future.set_result(load(source, key))
                self._loads += 1
            except BaseException as error:
                with self._guard:
                    del self._entries[key]
                future.set_exception(error)
                raise
        loaded = future.result()
        with self._guard:
            if self._entries.get(key) is not future:  # evicted between the two
                evicted = True
            else:
                evicted = False
                self._clock += 1
                loaded.leases += 1
                loaded.hits += not mine
                loaded.last_used = self._clock
        if evicted:
            return self._acquire(name, device, dtype)
        self._evict(to_free=0)
        return loaded

    def _evict(self, to_free: int) -> None:
        """Forget idle models, least recently used first, until `to_free` more bytes fit."""
        with self._guard:
            ready = [future.result() for future in self._entries.values() if future.done()]
            used = sum(each.size for each in ready)
            for each in sorted(ready, key=lambda each: each.last_used):
                if used + to_free <= self._settings.model_cache_bytes:
                    break
                if not each.leases:
                    del self._entries[each.key]
                    used -= each.size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@lru_cache(maxsize=1)
def bundled_models() -> tuple[str, ...]:
    """The names of the models that ship with the project."""
    return tuple(sorted(file.parent.name for file in BUNDLED_DIR.glob("*/config.json")))


def load(source: ModelSource, key: ModelKey) -> LoadedModel:
    """Read a model from its directory, wrap it with Inseq and place it.

    Raises `ModelUnavailable`, or `UnsupportedByModel` for one whose scores Inseq would get wrong.
    """
    dtype = getattr(torch, key.dtype)
    alone = nullcontext() if dtype == torch.float32 else DEFAULT_DTYPE.alone()
    try:
        with _LOADING, alone, RANDOM_DRAWS:
            config = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
            auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            network = auto_class.from_pretrained(
                source.path, config=config, dtype=dtype, attn_implementation="eager", trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=False)
            # `device` and the mutable defaults of Inseq's constructor are avoided: the first moves the model to a GPU
            # of its own choice, the second are shared by all models of the process.
            with _some_bos(network):
                model = HuggingfaceModel.load(
                    network, "dummy", tokenizer=tokenizer, device="cpu", model_kwargs={}, tokenizer_kwargs={}
                )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a damaged file or an unknown architecture raises whatever its reader does
        raise ModelUnavailable(f"{source.name!r} could not be loaded: {_first_line(error)}") from error
    model.model_name = source.name
    model.tokenizer_name = source.name
    network.to(key.device)
    model._device = key.device  # noqa: SLF001 - Inseq's setter refuses `cuda:0`
    if not model.is_encoder_decoder and network.config.bos_token_id is None:
        model.bos_token_id = None
    model.eval()  # the wrapper too, which Inseq leaves in train mode
    network.requires_grad_(False)
    size = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
    loaded = LoadedModel(key, source, model, size)
    with DEFAULT_DTYPE.shared():
        warm_up(loaded)
        loaded.embeddings_fix = embeddings_fix(model)
    return loaded


@contextmanager
def _some_bos(network: PreTrainedModel) -> Iterator[None]:
    """Inseq cannot wrap a model that has no BOS token, as some chat models have none: another stands in meanwhile."""
    config = network.config
    if config.is_encoder_decoder or config.bos_token_id is not None:
        yield
        return
    config.bos_token_id = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id or 0
    try:
        yield
    finally:
        config.bos_token_id = None


@torch.no_grad()
def warm_up(loaded: LoadedModel) -> None:
    """Have Transformers install its permanent output-capturing hooks now, before any snapshot of hooks is taken; and
    see where the network's attention weights come from.
    """
    ids = torch.full((1, 2), int(loaded.model.bos_token_id or 0), device=loaded.key.device)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if loaded.model.is_encoder_decoder else {})
    forward = partial(loaded.network, **inputs, output_attentions=True, output_hidden_states=True)
    loaded.attention = find_places(loaded.network, forward)


@lru_cache(maxsize=256)
def _config_kind(path: Path) -> bool | None:
    try:
        return bool(AutoConfig.from_pretrained(path, trust_remote_code=False).is_encoder_decoder)
    except (OSError, ValueError, KeyError):
        return None


@lru_cache(maxsize=16)
def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _fingerprint(path: Path) -> str:
    """Of a directory's files by size and time of change: weights of many gigabytes are not read for it."""
    files = sorted(file for file in path.iterdir() if file.is_file())
    entries = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return "local-" + hashlib.sha256(repr(entries).encode()).hexdigest()[:12]


def _has_safetensors(info: Any) -> bool:
    return any(each.rfilename.endswith(".safetensors") for each in info.siblings or [])


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
