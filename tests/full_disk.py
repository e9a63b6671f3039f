"""A small file system of its own, which can be filled up and emptied again."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager, suppress

import pytest


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
    """Skips the test where this user may not mount one."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join((f"size={megabytes}m", *options)), "tmpfs", str(path)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (it takes root on Linux)")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=False)
