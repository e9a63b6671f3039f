"""Asks whether to stop before each large piece of a forward and of a backward, so that a batch may be long.

A large piece is a module whose own parameters are many (a projection, an embedding, all experts of a block): what lies
between two of them takes milliseconds. Small networks have none, and pay nothing. Long work without the network
calls `check_stop` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_LARGE = 2**16  # parameters of the module itself

_check: ContextVar[Callable[[], None]] = ContextVar("check", default=lambda: None)


def check_stop() -> None:
    """Call the present block's `check`, if there is one."""
    _check.get()()


@contextmanager
def cancel_points(network: torch.nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Within the block, `check` is called before each large module of a forward, in a backward of that forward before
    the gradient of its inputs is computed, and by `check_stop` on this thread. It may raise.
    """

    def before(_: torch.nn.Module, _arguments: tuple[Any, ...]) -> None:
        check()

    def in_backward(_: torch.Tensor) -> None:
        check()

    def after(_: torch.nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        # On the output, not by `register_full_backward_hook`, which would put a node of its own into the graph.
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(in_backward)  # type: ignore[no-untyped-call]

    with ExitStack() as stack:
        for module in large_modules(network):
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        stack.callback(_check.reset, _check.set(check))
        yield


def large_modules(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules that have many parameters themselves, beside those of the modules in them."""
    return [
        module
        for module in network.modules()
        if sum(each.numel() for each in module.parameters(recurse=False)) >= _LARGE
    ]
