"""A small mounted file system that tests fill up and empty again."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import contextmanager, suppress

import pytest

# Messages of `mount` without permission: another user than root, or a container without the capability.
NOT_ALLOWED = re.compile(r"must be superuser|permission denied|not permitted|only root can", re.IGNORECASE)


class SmallDisk:
    """A mounted tmpfs."""

    can_be_full = True

    def __init__(self, path):
        self.path = path

    def fill(self):
        """Fill the disk to the last byte."""
        with (self.path / "filler").open("ab", buffering=0) as file, suppress(OSError):
            for size in (1 << 20, 4096, 1):
                with suppress(OSError):
                    while file.write(b"\0" * size):
                        pass

    def make_room(self):
        (self.path / "filler").unlink(missing_ok=True)


class LargeDisk:
    """A folder on the machine's own disk, which is not filled."""

    can_be_full = False

    def __init__(self, path):
        self.path = path

    def fill(self):
        pass

    def make_room(self):
        pass


@contextmanager
def small_disk(path, *options, megabytes=4):
    """A mounted tmpfs, for tests that need a full or read-only disk; skips the test without permission to mount.

    Raises `OSError` if mounting fails for another reason.
    """
    with small_disk_or_folder(path, *options, megabytes=megabytes) as disk:
        if not disk.can_be_full:
            pytest.skip("to fill a disk, one of a few MB has to be mounted, and this user may not mount")
        yield disk


@contextmanager
def small_disk_or_folder(path, *options, megabytes):
    """A mounted tmpfs, or a folder without permission to mount, for tests that also check other failures."""
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
    """Mount a tmpfs. Raises `PermissionError` without permission to mount, `OSError` for any other failure."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join((f"size={megabytes}m", *options)), "tmpfs", str(path)],
        capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"},
    )  # fmt: skip
    if mounted.returncode:
        refused = NOT_ALLOWED.search(mounted.stderr)
        raise PermissionError(mounted.stderr.strip()) if refused else OSError(mounted.stderr.strip())
