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


@contextmanager
def small_disk(path, *options, megabytes=4):
    """Skips the test where this user may not mount one. Raises `OSError` where mounting fails otherwise."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join((f"size={megabytes}m", *options)), "tmpfs", str(path)],
        capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"},
    )  # fmt: skip
    if mounted.returncode and NOT_ALLOWED.search(mounted.stderr):
        pytest.skip(f"to fill a disk, one of a few MB has to be mounted, which takes root: {mounted.stderr.strip()}")
    if mounted.returncode:
        raise OSError(mounted.stderr)
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=False)
