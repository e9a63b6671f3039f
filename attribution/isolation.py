"""Keeps jobs from affecting each other: locks for process-wide state, and restoration of a model after each job.

Inseq was written for scripts. In a process that runs many jobs, its hooks, train mode, random draws and tracing would
leak into later or concurrent jobs. Every attribution runs inside `isolated`. Knows nothing of requests.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from inseq.models import AttributionModel
from transformers import set_seed

from attribution import network_state
from problems import Cancelled

# Random generators are global to the process, so only one thread at a time may draw. Loading a model draws too.
RANDOM_DRAWS = threading.RLock()

_POLL_SECONDS = 0.1  # between two questions whether to stop waiting

ShouldCancel = Callable[[], bool]


def _never() -> bool:
    return False


@contextmanager
def held(lock: Any, should_cancel: ShouldCancel) -> Iterator[None]:
    """Hold a lock within the block. Raises `Cancelled` soon after `should_cancel` returned True while it waits."""
    while not lock.acquire(timeout=_POLL_SECONDS):
        if should_cancel():
            raise Cancelled
    try:
        yield
    finally:
        lock.release()


class ReaderWriterLock:
    """A lock that many threads hold together (`shared`) or one alone (`exclusive`); the latter has priority.

    Not reentrant: a thread that holds it must not ask for it again. Both raise `Cancelled` soon after `should_cancel`
    returned True while they wait.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._waiting = 0

    @contextmanager
    def shared(self, should_cancel: ShouldCancel = _never) -> Iterator[None]:
        """Hold the lock together with other threads, once no thread holds it or waits for it alone."""
        with self._condition:
            self._wait_for(lambda: self._inside >= 0 and not self._waiting, should_cancel)
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @contextmanager
    def exclusive(self, should_cancel: ShouldCancel = _never) -> Iterator[None]:
        """Hold the lock alone."""
        with self._condition:
            self._waiting += 1
            try:
                self._wait_for(lambda: self._inside == 0, should_cancel)
                self._inside = -1
            finally:
                self._waiting -= 1
                self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._inside = 0
                self._condition.notify_all()

    def _wait_for(self, holds: Callable[[], bool], should_cancel: ShouldCancel) -> None:
        while not self._condition.wait_for(holds, _POLL_SECONDS):
            if should_cancel():
                raise Cancelled


# Transformers sets the process-wide default dtype while it builds a model that is not float32, and Inseq's step
# functions create tensors of the default dtype, so such a model is loaded only while no attribution runs.
DEFAULT_DTYPE = ReaderWriterLock()

_HOOK_DICTS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextmanager
def isolated(model: AttributionModel, should_cancel: ShouldCancel = _never) -> Iterator[None]:
    """Restore hooks, modes and attributes of the model, tracing and gradient mode after the block, and undo what the
    last forward changed in the network.

    The caller holds the model's lock. Waits while a model that is not float32 is being loaded; raises `Cancelled` soon
    after `should_cancel` returned True meanwhile.
    """
    with ExitStack() as stack:
        stack.enter_context(DEFAULT_DTYPE.shared(should_cancel))
        stack.callback(network_state.undo, model.model)
        stack.callback(_snapshot(model))
        # Before the snapshot is restored, or a cancelled forward would seem to have changed what the snapshot restores
        # (train mode, after a forward with dropout), and `undo` would put that back.
        stack.callback(network_state.end, model.model)
        stack.callback(sys.settrace, sys.gettrace())
        stack.enter_context(torch.enable_grad())
        yield


def _snapshot(model: AttributionModel) -> Callable[[], None]:
    """Record hooks, modes and attributes of a model; returns the function that restores them."""
    modules = list(model.modules())
    hooks = [(module, name, getattr(module, name).copy()) for module in modules for name in _HOOK_DICTS]
    training = [(module, module.training) for module in modules]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # The wrapper's own state (method, config, interpretable embeddings, flags), without its modules.
    attributes = {name: value for name, value in vars(model).items() if not name.startswith("_") or name == "_device"}

    def restore() -> None:
        for module, name, before in hooks:
            current = getattr(module, name)
            # In place: a hook's handle holds a reference to this dictionary object.
            if current != before:
                current.clear()
                current.update(before)
        for module, mode in training:
            module.training = mode
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        for name in [name for name in vars(model) if not name.startswith("_") and name not in attributes]:
            delattr(model, name)
        vars(model).update(attributes)

    return restore


class RandomState:
    """The state of all random generators, so that a text draws the same numbers whatever ran in between."""

    def __init__(self) -> None:
        self._python: Any = random.getstate()
        self._numpy: Any = np.random.get_state()  # noqa: NPY002 - Captum draws from the global generator
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None

    @classmethod
    def seeded(cls, seed: int) -> RandomState:
        """The state of a new process after `transformers.set_seed(seed)`."""
        set_seed(seed)
        return cls()

    def resume(self) -> None:
        """Set the random generators to this state."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
