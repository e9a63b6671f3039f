"""The total and free memory of a device, read anew at each call; the only module that asks for it.

Knows nothing of models or requests.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil
import torch

_SYSTEM = Path("/")  # the root of /proc and /sys


@dataclass(frozen=True)
class DeviceMemory:
    """A device's memory in bytes: in all, and available for allocation."""

    free: int
    total: int


@dataclass(frozen=True)
class _Cgroups:
    """The files of one version of Linux's cgroups, which limit containers."""

    controllers: str  # the name in /proc/self/cgroup
    mount: str
    limit: str
    used: str
    idle: str  # in memory.stat: cached files, which the kernel frees before it refuses memory


# https://docs.kernel.org/admin-guide/cgroup-v1/memory.html and https://docs.kernel.org/admin-guide/cgroup-v2.html
_VERSIONS = (
    _Cgroups("memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    _Cgroups("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
)


def memory_of(device: torch.device | str) -> DeviceMemory:
    """Free and total bytes of a torch device now, according to its driver or the operating system.

    Unused memory that torch's allocator holds counts as free, because torch gives it to the next allocation. The CPU's
    memory is the machine's, or the limit of the container or of the process if that is smaller. Raises torch's
    `RuntimeError` for a device that does not exist.
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
        # The GPU shares the machine's memory, so other processes may have taken some of it.
        return DeviceMemory(max(0, min(total - held, _of_the_machine().free + idle)), total)
    return _of_the_machine()


def _of_the_machine() -> DeviceMemory:
    machine = psutil.virtual_memory()
    free, total = int(machine.available), int(machine.total)
    for limit, used in _container_limits(total):
        free, total = min(free, max(0, limit - used)), min(total, limit)
    if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:  # `ulimit -v`
        free, total = min(free, max(0, limit - psutil.Process().memory_info().vms)), min(total, limit)
    return DeviceMemory(free, total)


def _container_limits(machine: int) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each control group that contains this process, outer ones included.

    Skips groups whose limit is not below `machine`, the machine's memory in bytes.
    """
    for version, group in _groups(_SYSTEM):
        try:
            limit = int((group / version.limit).read_text())
            if limit < machine:
                used = int((group / version.used).read_text())
                yield limit, used - _statistic(group / "memory.stat", version.idle)
        except (OSError, ValueError):  # the file is gone, or says `max`
            continue


@lru_cache(maxsize=8)
def _groups(system: Path) -> list[tuple[_Cgroups, Path]]:
    """The folders of this process's control groups that have a limit file; empty without cgroups."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = {name: Path(path) for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
    # In a container the path may be the host's, while only the container's own group is mounted.
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that a device or the machine had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
