"""What requests and jobs freed goes back to the operating system."""

from __future__ import annotations

import platform

import psutil
import pytest

from api import freed_memory
from api.freed_memory import FreedMemory
from models import JobStatus

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be asked for it")
SIZE, COUNT = 100_000, 3000  # bytes of a block, and blocks


def used():
    return psutil.Process().memory_info().rss


def blocks():
    """Blocks so small that glibc keeps them for the next allocation when those below one in use are freed."""
    return [b"\1" * SIZE for _ in range(COUNT)]


def test_what_a_job_freed_goes_back():
    memory, held = FreedMemory(), blocks()
    memory.give_back()  # while the job runs: it has grown
    full, pinned = used(), held[-1]
    held.clear()
    memory.give_back()
    assert used() > full - 0.1 * COUNT * SIZE  # nothing tells that it is free
    memory.job_ended(None, JobStatus.COMPLETED, 1.0)
    memory.give_back()
    assert used() <= full - 0.9 * COUNT * SIZE
    assert len(pinned) == SIZE


def test_what_a_request_freed_goes_back(monkeypatch):
    memory = FreedMemory()
    memory.give_back()
    held = blocks()
    pinned = held[-1]
    full = used()
    held.clear()
    memory.give_back()  # the process has grown
    assert used() <= full - 0.9 * COUNT * SIZE
    held = blocks()
    memory.give_back()  # grown again, and all of it is in use
    pinned, full = held[-1], used()
    held.clear()
    monkeypatch.setattr(freed_memory, "_LONGEST", 0.0)  # seconds later
    memory.give_back()
    assert used() <= full - 0.9 * COUNT * SIZE
    assert len(pinned) == SIZE
