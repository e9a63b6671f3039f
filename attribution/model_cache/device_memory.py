"""How much memory a device has, and how much of it nobody uses: asked here alone, at each call anew.

Knows nothing of models or requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil
import torch

_SYSTEM = Path("/")  # where the system's own files are


@dataclass(frozen=True)
class DeviceMemory:
    """A device's memory, in bytes: all of it, and what is free to be asked for."""

    free: int
    total: int


@dataclass(frozen=True)
class _Cgroups:
    """The files of a version of Linux's cgroups, by which containers are limited."""

    controllers: str  # as /proc/self/cgroup names them
    mount: str
    limit: str
    used: str
    idle: str  # in memory.stat: cached files, which the kernel drops before it refuses memory


# https://docs.kernel.org/admin-guide/cgroup-v1/memory.html and https://docs.kernel.org/admin-guide/cgroup-v2.html
_VERSIONS = (
    _Cgroups("memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    _Cgroups("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
)


def memory_of(device: torch.device | str) -> DeviceMemory:
    """Free and total bytes of a torch device, as its driver or system tells them now.

    What torch's allocator holds and does not use counts as free: it is given to whoever asks. The CPU's memory is the
    machine's, or a container's where that is less. Raises torch's `RuntimeError` for a device that is not there.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return DeviceMemory(int(free + idle), int(total))
    if device.type == "mps":
        held = torch.mps.current_allocated_memory()
        idle = torch.mps.driver_allocated_memory() - held
        total = torch.mps.recommended_max_memory()
        # The machine's own memory, of which others may have taken more.
        return DeviceMemory(max(0, min(total - held, _of_the_machine().free + idle)), total)
    return _of_the_machine()


def _of_the_machine() -> DeviceMemory:
    machine = psutil.virtual_memory()
    free, total = int(machine.available), int(machine.total)
    for limit, used in _container_limits(total):
        free, total = min(free, max(0, limit - used)), min(total, limit)
    return DeviceMemory(free, total)


def _container_limits(machine: int) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each control group that this process is in, the outer ones too; without those that
    may use more than the machine has.
    """
    for version, group in _groups(_SYSTEM):
        try:
            limit = int((group / version.limit).read_text())
            if limit < machine:
                used = int((group / version.used).read_text())
                yield limit, used - _statistic(group / "memory.stat", version.idle)
        except (OSError, ValueError):  # gone, or `max`
            continue


@lru_cache(maxsize=8)
def _groups(system: Path) -> list[tuple[_Cgroups, Path]]:
    """The folders of this process's control groups that can have a limit; none where there are no cgroups."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = {name: Path(path) for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
    # In a container the path may be the host's, while its own group is what is mounted.
    folders = (
        (version, system / version.mount / folder.relative_to("/"))
        for version in _VERSIONS
        if (path := own.get(version.controllers)) is not None
        for folder in (path, *path.parents)
    )
    return [(version, folder) for version, folder in folders if (folder / version.limit).is_file()]


def _statistic(file: Path, name: str) -> int:
    fields = dict(line.split() for line in file.read_text().splitlines())
    return int(fields.get(name, 0))
