"""Undoes what a network's forward changes in the network itself.

Some families change themselves for good at the first input of a kind: BigBird-Pegasus takes full attention once a text
was short, dynamic rotary positions keep the frequencies of the longest text, RecurrentGemma keeps its last state.
Numbers would depend on what ran before on the same loaded model. So what a forward changes in attributes, buffers,
submodules and configurations is put back before the next forward and when a job ends. Not earlier: Captum keeps in
attributes what a backward pass needs. What changes between forwards stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import starmap
from operator import is_not
from typing import Any

import torch
from transformers import PretrainedConfig

_ATTRIBUTE = "_attribution_network_state"
# Set by Transformers once its output-capturing hooks are installed, which stay.
_KEPT = {"_output_capturing_hooks_installed", _ATTRIBUTE}
# Of a module's own tables, those that a forward may replace things in; the others hold hooks and modes.
_TABLES = ("_parameters", "_buffers", "_modules")
_INTERNAL = set(vars(torch.nn.Module())) | _KEPT
_MISSING = object()

Namespace = dict[str, Any]


def watch(network: torch.nn.Module) -> None:
    """Undo, from now on, what forwards of this network change in it."""
    state = _NetworkState(network)
    setattr(network, _ATTRIBUTE, state)
    network.register_forward_pre_hook(lambda *_: state.begin(), prepend=True)
    network.register_forward_hook(lambda *_: state.end(), always_call=True)


def as_one_call(network: torch.nn.Module) -> AbstractContextManager[None]:
    """Within the block, several forwards (or those of a part of the network) count as one: generation's depend on
    each other.
    """
    state: _NetworkState | None = getattr(network, _ATTRIBUTE, None)
    return nullcontext() if state is None else state.one_call()


def end(network: torch.nn.Module) -> None:
    """End a forward that a cancelled job left, whose end torch does not report. Whoever restores what they changed in
    the network around a forward calls this first: what changes from here on is not the forward's.
    """
    state: _NetworkState | None = getattr(network, _ATTRIBUTE, None)
    if state is not None:
        state.end()


def undo(network: torch.nn.Module) -> None:
    """Put back at once what the last forward changed."""
    state: _NetworkState | None = getattr(network, _ATTRIBUTE, None)
    if state is not None:
        state.undo()


class _NetworkState:
    """What a network is made of, and what its last forward changed of that."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network
        self._is_open = False  # a forward has begun, and its end was not seen
        self._is_one_call = False
        self._changes: list[Callable[[], None]] = []
        self._draws: torch.Tensor | None = None  # the random generator's state at the beginning of a forward
        self._record()

    @contextmanager
    def one_call(self) -> Iterator[None]:
        self.begin()
        self._draws = None  # generation may sample
        self._is_one_call = True
        try:
            yield
        finally:
            self._is_one_call = False
            self.end()

    def begin(self) -> None:
        if self._is_one_call:
            return
        self.undo()
        if self._differs():
            self._record()
        self._draws = torch.get_rng_state()
        self._is_open = True

    def end(self) -> None:
        if self._is_one_call or not self._is_open:
            return
        self._is_open = False
        if self._versions(self._parameters) != self._parameter_versions:
            # The forward prepared the weights (RWKV rescales them): its marks belong to them.
            self._record()
        elif self._differs():
            self._changes = [*self._changed_contents(), *self._changed_names()]
            if self._draws is not None and self._has_new_modules():
                torch.set_rng_state(self._draws)

    def undo(self) -> None:
        self.end()  # of a forward that was cancelled
        changes, self._changes = self._changes, []
        for put_back in changes:
            put_back()

    def _record(self) -> None:
        modules = list(self._network.modules())
        spaces: list[Namespace] = []
        for module in modules:
            own = vars(module)
            spaces += [own, *(own[name] for name in _TABLES if own[name])]
        spaces += [vars(each) for each in _configs(modules)]
        self._spaces = [(space, dict(space)) for space in spaces]
        containers = [
            value
            for _, before in self._spaces
            for name, value in before.items()
            if name not in _INTERNAL and type(value) in {list, dict, set}
        ]
        self._containers = [(each, each.copy()) for each in containers]
        self._parameters = list(self._network.parameters())
        self._parameter_versions = self._versions(self._parameters)
        skipped = {id(each) for each in self._parameters}
        self._tensors = [
            (before, name, value)
            for _, before in self._spaces
            for name, value in before.items()
            if isinstance(value, torch.Tensor) and id(value) not in skipped and not value.is_inference()
        ]
        self._copies = [value.detach().clone() for *_, value in self._tensors]
        self._tensor_versions = self._versions([value for *_, value in self._tensors])

    @staticmethod
    def _versions(tensors: list[Any]) -> list[int]:
        """How often each tensor was changed in place."""
        return [each._version for each in tensors]  # noqa: SLF001 - torch's only counter of it

    def _differs(self) -> bool:
        if any(
            len(space) != len(before) or any(map(is_not, space.values(), before.values()))
            for space, before in self._spaces
        ):
            return True
        if self._versions([value for *_, value in self._tensors]) != self._tensor_versions:
            return True
        return any(starmap(_is_other, self._containers))

    def _has_new_modules(self) -> bool:
        """Whether the forward built modules, whose first weights were drawn, and drew nothing else."""
        modules = {id(each) for _, before in self._spaces for each in before.values()}
        found = list(self._network.modules())[1:]
        return any(id(each) not in modules for each in found) and not any(each.training for each in found)

    def _changed_names(self) -> Iterator[Callable[[], None]]:
        for space, before in self._spaces:
            for name in {*space, *before} - _KEPT:
                now, was = space.get(name, _MISSING), before.get(name, _MISSING)
                if now is not was:
                    yield _put_back(space, name, now, was)

    def _changed_contents(self) -> Iterator[Callable[[], None]]:
        spaces = {id(before): space for space, before in self._spaces}
        changed = zip(self._tensors, self._copies, self._tensor_versions, strict=True)
        for (before, name, tensor), copy, version in changed:
            if tensor._version != version:  # noqa: SLF001
                # Another tensor: a backward pass may still need this one as it is.
                before[name] = copy
                yield _put_back(spaces[id(before)], name, spaces[id(before)].get(name, _MISSING), copy)
        for container, copy in self._containers:
            if _is_other(container, copy):
                yield _refill(container, copy)


def _configs(modules: list[torch.nn.Module]) -> list[PretrainedConfig]:
    """The configurations that the modules hold, with those inside them."""
    found: dict[int, PretrainedConfig] = {}
    left = [value for module in modules for value in vars(module).values()]
    while left:
        each = left.pop()
        if isinstance(each, PretrainedConfig) and id(each) not in found:
            found[id(each)] = each
            left += vars(each).values()
    return list(found.values())


def _put_back(space: Namespace, name: str, now: Any, was: Any) -> Callable[[], None]:
    """A function that gives a name its old value, unless somebody else has changed it since."""

    def put_back() -> None:
        if space.get(name, _MISSING) is not now:
            return
        if was is _MISSING:
            del space[name]
        else:
            space[name] = was

    return put_back


def _is_other(container: Any, copy: Any) -> bool:
    if len(container) != len(copy):
        return True
    if isinstance(container, set):
        return bool(container != copy)
    if isinstance(container, dict):
        return list(container) != list(copy) or any(map(is_not, container.values(), copy.values()))
    return any(map(is_not, container, copy))


def _refill(container: Any, copy: Any) -> Callable[[], None]:
    def refill() -> None:
        container.clear()
        (container.extend if isinstance(container, list) else container.update)(copy)

    return refill
