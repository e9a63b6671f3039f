"""A small file system of its own, which can be filled up and emptied again."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import contextmanager, suppress

import pytest

# What `mount` says to those who may not: as another user than root, or in a container without the capability.
NOT_ALLOWED = re.compile(r"must be superuser|permission denied|not permitted|only root can", re.IGNORECASE)


class SmallDisk:
    """A mounted tmpfs."""

    can_be_full = True

    def __init__(self, path):
        self.path = path

    def fill(self):
        """Leave no byte."""
        with (self.path / "filler").open("ab", buffering=0) as file, suppress(OSError):
            for size in (1 << 20, 4096, 1):
                with suppress(OSError):
                    while file.write(b"\0" * size):
                        pass

    def make_room(self):
        (self.path / "filler").unlink(missing_ok=True)


class LargeDisk:
    """A folder of the machine's own disk, which no test may fill."""

    can_be_full = False

    def __init__(self, path):
        self.path = path

    def fill(self):
        pass

    def make_room(self):
        pass


@contextmanager
def small_disk(path, *options, megabytes=4):
    """Skips the test where this user may not mount one: a test of nothing but a full or read-only disk has nothing to
    run on there. Raises `OSError` where mounting fails otherwise.
    """
    with small_disk_or_folder(path, *options, megabytes=megabytes) as disk:
        if not disk.can_be_full:
            pytest.skip("to fill a disk, one of a few MB has to be mounted, and this user may not mount")
        yield disk


@contextmanager
def small_disk_or_folder(path, *options, megabytes):
    """For a test of more than a full disk: a folder where none may be mounted."""
    try:
        mount(path, *options, megabytes=megabytes)
    except PermissionError:
        yield LargeDisk(path)
        return
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=False)


def mount(path, *options, megabytes):
    """Raises `PermissionError` where this user may not, `OSError` for any other failure."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join((f"size={megabytes}m", *options)), "tmpfs", str(path)],
        capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"},
    )  # fmt: skip
    if mounted.returncode:
        refused = NOT_ALLOWED.search(mounted.stderr)
        raise PermissionError(mounted.stderr.strip()) if refused else OSError(mounted.stderr.strip())
