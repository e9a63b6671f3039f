"""Shares loaded models among jobs, and evicts the least recently used ones when their memory is needed.

A model is loaded once per revision, device and dtype, however many jobs request it at the same time. Knows nothing of
requests or attribution.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch

from attribution.model_cache.loading import LoadedModel, ModelKey, load
from attribution.model_cache.sources import ModelSources
from settings import Settings


class ModelCache:
    """Loaded models, at most `settings.model_cache_bytes` in all; models in use are never evicted."""

    def __init__(self, settings: Settings) -> None:
        self.sources = ModelSources(settings)
        self._max_bytes = settings.model_cache_bytes
        self._entries: dict[ModelKey, Future[LoadedModel]] = {}
        self._guard = threading.Lock()
        self._clock = 0
        self._loads = 0

    @contextmanager
    def lease(self, name: str, *, device: str, dtype: str) -> Iterator[LoadedModel]:
        """The loaded model, locked for the caller until the end of the block.

        Raises `ModelNotAllowed`, `ModelUnavailable` or `UnsupportedByModel`.
        """
        with self.held(name, device=device, dtype=dtype) as loaded, loaded.lock:
            yield loaded

    @contextmanager
    def held(self, name: str, *, device: str, dtype: str) -> Iterator[LoadedModel]:
        """The loaded model, not evicted until the end of the block.

        It is not locked: the caller must not run it unless it takes `lock`. Raises as `lease`.
        """
        loaded = self._acquire(name, device, dtype)
        try:
            yield loaded
        finally:
            with self._guard:
                loaded.leases -= 1

    def forget_idle(self) -> None:
        """Evict every model that is not in use."""
        with self._guard:
            ready = [future.result() for future in self._entries.values() if future.done()]
            for each in ready:
                if not each.leases:
                    del self._entries[each.key]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def loaded_models(self) -> list[dict[str, Any]]:
        """The models in memory as plain data, most recently used first."""
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
        """How many times a model was read from disk since the process started."""
        return self._loads

    def numbers(self) -> dict[str, float]:
        """Metrics: models in memory, their bytes, cache hits, and loads from disk."""
        with self._guard:
            ready = [future.result() for future in self._entries.values() if future.done()]
        return {
            "models": len(ready),
            "bytes": sum(each.size for each in ready),
            "hits": sum(each.hits for each in ready),
            "loads": self._loads,
        }

    def _acquire(self, name: str, device: str, dtype: str) -> LoadedModel:
        source = self.sources.resolve(name)
        key = ModelKey(source.name, source.revision, device, dtype)
        with self._guard:
            future = self._entries.get(key)
            mine = future is None
            if future is None:
                future = self._entries[key] = Future()
        if mine:
            try:
                self._evict(to_free=source.weights_bytes)
                future.set_result(load(source, key))
                self._loads += 1
            except BaseException as error:
                with self._guard:
                    del self._entries[key]
                future.set_exception(error)
                raise
        loaded = future.result()
        with self._guard:
            if self._entries.get(key) is not future:  # evicted after it was loaded
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
        """Evict idle models, least recently used first, until `to_free` more bytes fit."""
        with self._guard:
            ready = [future.result() for future in self._entries.values() if future.done()]
            used = sum(each.size for each in ready)
            for each in sorted(ready, key=lambda each: each.last_used):
                if used + to_free <= self._max_bytes:
                    break
                if not each.leases:
                    del self._entries[each.key]
                    used -= each.size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
