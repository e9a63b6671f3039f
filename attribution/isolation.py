"""What keeps one job from disturbing another: locks, and the restoration of everything that Inseq leaves behind.

Inseq was written for scripts. In a process that serves many jobs its hooks, train mode, random draws and tracing would
leak from one job into the next (or into the one beside it). `isolated` is the one way into an attribution.
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

# Random generators are one per process, not per thread: whoever draws, draws alone. Loading a model draws too.
RANDOM_DRAWS = threading.RLock()


class SharedGate:
    """Many may pass together, or one alone: who waits to be alone goes before newcomers."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._waiting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: self._inside >= 0 and not self._waiting)
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._condition:
            self._waiting += 1
            self._condition.wait_for(lambda: self._inside == 0)
            self._waiting -= 1
            self._inside = -1
        try:
            yield
        finally:
            with self._condition:
                self._inside = 0
                self._condition.notify_all()


# Transformers sets the process-wide default dtype while it builds a model that is not float32, and Inseq's step
# functions make tensors of the default dtype: such a load waits until nothing is attributed.
DEFAULT_DTYPE = SharedGate()

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
def isolated(model: AttributionModel) -> Iterator[None]:
    """Run an attribution such that the model and the process are afterwards as they were before.

    The caller holds the model's lock.
    """
    with ExitStack() as stack:
        stack.enter_context(DEFAULT_DTYPE.shared())
        stack.callback(_snapshot(model))
        stack.callback(sys.settrace, sys.gettrace())
        stack.enter_context(torch.enable_grad())
        yield


def _snapshot(model: AttributionModel) -> Callable[[], None]:
    """Remember hooks, modes and attributes of a model; returns the function that brings them back."""
    modules = list(model.modules())
    hooks = [(module, name, getattr(module, name).copy()) for module in modules for name in _HOOK_DICTS]
    training = [(module, module.training) for module in modules]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # The wrapper's own state (method, config, interpretable embeddings, flags), not its modules.
    attributes = {name: value for name, value in vars(model).items() if not name.startswith("_") or name == "_device"}

    def restore() -> None:
        for module, name, before in hooks:
            current = getattr(module, name)
            # In place: a hook's handle holds a reference to this very dictionary.
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
    """Where the random generators stand, so that a text draws the same numbers whatever is done in between."""

    def __init__(self) -> None:
        self._python: Any = random.getstate()
        self._numpy: Any = np.random.get_state()  # noqa: NPY002 - Captum draws from the global generator
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None

    @classmethod
    def seeded(cls, seed: int) -> RandomState:
        """The state that a fresh script has after `transformers.set_seed(seed)`."""
        set_seed(seed)
        return cls()

    def resume(self) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
