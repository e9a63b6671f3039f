"""Shares loaded models among jobs, and evicts the least recently used ones when their memory is needed.

A model is loaded once per revision, device and dtype, however many jobs request it at the same time. Knows nothing of
requests or attribution.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

import torch

from attribution.isolation import held
from attribution.model_cache import half_precision
from attribution.model_cache.device_memory import memory_of
from attribution.model_cache.loading import LoadedModel, ModelKey, load
from attribution.model_cache.model_source import ModelSource
from attribution.model_cache.sources import ModelSources
from problems import Cancelled, OutOfMemory
from settings import Settings

_GIB = 1024**3
_POLL_SECONDS = 0.1  # between two questions whether to stop waiting


class _Loading(Future[LoadedModel]):
    """A model that is being loaded, or was."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0  # callers

    def wait(self, should_cancel: Callable[[], bool]) -> LoadedModel:
        """The model. Raises what loading it raised, and `Cancelled` soon after `should_cancel` returned True."""
        while not wait([self], timeout=_POLL_SECONDS).done:
            if should_cancel():
                raise Cancelled
        return self.result()


class ModelCache:
    """Loaded models, at most `settings.model_cache_bytes` in all; models in use are never evicted."""

    def __init__(self, settings: Settings) -> None:
        self.sources = ModelSources(settings)
        self._max_bytes = settings.model_cache_bytes
        self._cpu_half = settings.cpu_half
        self._entries: dict[ModelKey, _Loading] = {}
        self._guard = threading.Lock()
        self._clock = 0
        self._loads = 0

    @contextmanager
    def lease(
        self, name: str, *, device: str, dtype: str, should_cancel: Callable[[], bool] = lambda: False
    ) -> Iterator[LoadedModel]:
        """The loaded model, locked for the caller until the end of the block.

        Raises `ModelNotAllowed`, `ModelUnavailable` or `UnsupportedByModel`, and `Cancelled` soon after `should_cancel`
        returned True while it waits. A model that is being loaded then is loaded to the end, for other jobs.
        """
        with (
            self.in_use(name, device=device, dtype=dtype, should_cancel=should_cancel) as loaded,
            held(loaded.lock, should_cancel),
        ):
            yield loaded

    @contextmanager
    def in_use(
        self, name: str, *, device: str, dtype: str, should_cancel: Callable[[], bool] = lambda: False
    ) -> Iterator[LoadedModel]:
        """The loaded model, not evicted until the end of the block.

        It is not locked: the caller must not run it unless it takes `lock`. Raises as `lease`.
        """
        loaded = self._acquire(name, device, dtype, should_cancel)
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
                "quantization": each.source.quantization,
                "class": type(each.network).__name__,
                "is_encoder_decoder": each.model.is_encoder_decoder,
                "device": each.key.device,
                "dtype": each.key.dtype,
                "compute_dtype": each.compute_dtype,
                "bytes": each.size,
                "in_use": each.leases > 0,
                "hits": each.hits,
            }
            for each in sorted(ready, key=lambda each: -each.last_used)
        ]

    def compute_dtype(self, dtype: str, device: str) -> str:
        """The dtype in which a model with weights in `dtype` is computed on a device."""
        return half_precision.compute_dtype(dtype, device, self._cpu_half)

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

    def _acquire(self, name: str, device: str, dtype: str, should_cancel: Callable[[], bool]) -> LoadedModel:
        source = self.sources.resolve(name, should_cancel)
        key = ModelKey(source.name, source.revision, device, dtype)
        while True:
            with self._guard:
                loading = self._entries.get(key)
                mine = loading is None
                if loading is None:
                    loading = self._entries[key] = _Loading()
                loading.waiting += 1
            if mine:
                # On a thread of its own, because nothing can interrupt it: who waits for it can stop waiting.
                arguments = (loading, source, key, torch.get_num_threads())
                threading.Thread(target=self._load, args=arguments, name=f"load-{name}", daemon=True).start()
            try:
                loaded = loading.wait(should_cancel)
            except Cancelled:  # of this job, or of all that waited before it came
                if should_cancel():
                    raise
                continue
            finally:
                with self._guard:
                    loading.waiting -= 1
            with self._guard:
                if self._entries.get(key) is loading:  # else it was evicted after it was loaded
                    self._clock += 1
                    loaded.leases += 1
                    loaded.hits += not mine
                    loaded.last_used = self._clock
                    break
        self._evict(to_free=0)
        return loaded

    def _load(self, loading: _Loading, source: ModelSource, key: ModelKey, threads: int) -> None:
        torch.set_num_threads(threads)  # of this thread
        try:
            dtype = self.compute_dtype(key.dtype, key.device)
            self._evict(to_free=max(source.weights_bytes, source.parameters * getattr(torch, dtype).itemsize))
            self._check_memory(source, dtype)
            loaded = load(source, key, should_cancel=lambda: not loading.waiting, compute_dtype=dtype)
            self._loads += 1
        except BaseException as error:
            with self._guard:
                del self._entries[key]
            loading.set_exception(error)
        else:
            loading.set_result(loaded)

    def _check_memory(self, source: ModelSource, dtype: str) -> None:
        """Raise `OutOfMemory` if the weights, which are first read into CPU memory, exceed what is free of it."""
        weights = source.parameters * getattr(torch, dtype).itemsize
        needed = weights + source.bytes_while_read
        if needed > memory_of("cpu").free:
            self.forget_idle()
        if needed > (free := memory_of("cpu").free):
            reading = f", {needed / _GIB:.1f} GiB while the files are read" if needed > weights else ""
            raise OutOfMemory(
                f"The weights of {source.name!r} take {weights / _GIB:.1f} GiB in {dtype}{reading}, and "
                f"{free / _GIB:.1f} GiB of memory are free. Use a smaller dtype or model, or try again when other jobs "
                "have ended."
            )

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
