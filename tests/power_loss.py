"""What a disk holds after a power loss: replays the system calls of a process, and drops what was not synced.

`strace` records them; `python -m tests.power_loss` installs it where Debian's packages can be. The disk is stricter than POSIX asks for: without fsync of a file each of its writes since the
last one may be missing, whatever came after it; without fsync of a directory its newest names, renames and removals may
be missing, also if the file itself was synced.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.serving import ROOT

_CALLS = (
    "openat,close,write,pwrite64,writev,pwritev,ftruncate,truncate,fsync,fdatasync,rename,renameat,renameat2,unlink,"
    "unlinkat,link,linkat,sync_file_range,copy_file_range,sendfile"
)
_LINE = re.compile(r"(\w+)\((.*)\) += (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_READ_ONLY_OR_UNKNOWN = {"writev", "pwritev", "truncate", "sync_file_range", "copy_file_range", "sendfile"}


def record(folder, *arguments):
    """Run a module's main with these arguments under strace; returns its system calls as tuples of name, arguments."""
    trace = folder / "trace"
    subprocess.run(
        ["strace", "-xx", "-s", "100000000", "-e", f"trace={_CALLS}", "-o", str(trace), sys.executable, "-m", *arguments],
        cwd=ROOT, check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    return [call for line in trace.open() if (call := _parsed(line)) is not None]


def can_trace():
    """Whether strace is installed and may trace a process."""
    try:
        return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _parsed(line):
    found = _LINE.match(line)
    if found is None or int(found[3]) < 0:
        return None
    texts = [bytes.fromhex(each.replace("\\x", "")) for each in _TEXT.findall(found[2])]
    others = [each.strip() for each in _TEXT.sub("", found[2]).split(",")]
    return found[1], texts, others, int(found[3])


class File:
    """An inode: the bytes that are on the disk, and the writes that may be."""

    def __init__(self):
        self.synced = bytearray()
        self.pending = []  # of (offset, bytes), or (size, None) for a truncation

    def sync(self):
        self.synced = self.content(self.pending)
        self.pending = []

    def content(self, writes):
        content = bytearray(self.synced)
        for offset, data in writes:
            if data is None:
                content = content[:offset].ljust(offset, b"\0")
            else:
                content = content.ljust(offset, b"\0")
                content[offset : offset + len(data)] = data
        return content


class Disk:
    """The files under one folder, as a process sees them and as they are on the disk."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.names = {}  # path -> File, as the process sees it
        self.synced = {}  # as it is on the disk
        self.pending = {}  # directory -> names that changed since its last sync, in order: (path, File or None)
        self.open = {}  # descriptor -> (File or None, path, offset)
        self.told = []  # what the process wrote to its standard output

    def apply(self, call):  # noqa: PLR0911 - a table of calls
        """Do one system call. Returns whether it concerned this disk or the standard output."""
        name, texts, others, result = call
        if name == "openat":
            return self._open(texts[0].decode(), others[2], result)
        if name in {"rename", "renameat", "renameat2", "link", "linkat"}:
            source, target = (each.decode() for each in texts[:2])
            if not self._is_here(target):
                return False
            self._name(target, self.names[source])
            if name.startswith("rename"):
                self._name(source, None)
            return True
        if name in {"unlink", "unlinkat"}:
            return self._is_here(path := texts[0].decode()) and self._name(path, None)
        descriptor = int(others[0])
        if name == "write" and descriptor == 1:
            self.told.append(texts[0].decode())
            return True
        if descriptor not in self.open:
            return False
        return self._use(name, descriptor, texts, others, result)

    def _is_here(self, path):
        return path.startswith(self.folder + "/")

    def _open(self, path, flags, descriptor):
        self.open.pop(descriptor, None)
        if path != self.folder and not self._is_here(path):
            return False
        if path not in self.names and "O_CREAT" in flags:
            self._name(path, File())
        file = self.names.get(path)
        if file is not None and "O_TRUNC" in flags:
            file.pending.append((0, None))
        self.open[descriptor] = (file, path, 0)
        return True

    def _use(self, name, descriptor, texts, others, result):
        file, path, offset = self.open[descriptor]
        if name == "close":
            del self.open[descriptor]
        elif name in {"fsync", "fdatasync"} and file is None:
            for changed, now in self.pending.pop(path, []):
                self._settle(self.synced, changed, now)
        elif name in {"fsync", "fdatasync"}:
            file.sync()
        elif name == "write":
            file.pending.append((offset, texts[0][:result]))
            self.open[descriptor] = (file, path, offset + result)
        elif name == "pwrite64":
            file.pending.append((int(others[-1]), texts[0][:result]))
        elif name == "ftruncate":
            file.pending.append((int(others[1]), None))
        else:
            assert name not in _READ_ONLY_OR_UNKNOWN, f"{name} is not simulated"
        return True

    def _name(self, path, file):
        self._settle(self.names, path, file)
        self.pending.setdefault(str(Path(path).parent), []).append((path, file))
        return True

    @staticmethod
    def _settle(names, path, file):
        if file is None:
            names.pop(path, None)
        else:
            names[path] = file

    def crash(self, target: Path, rng, *, keeps):
        """Write what is left after a power loss to a folder. keeps: `nothing` that is not synced, or `some` of it."""
        names = dict(self.synced)
        for changes in self.pending.values():
            for path, file in changes[: rng.randint(0, len(changes)) if keeps == "some" else 0]:
                self._settle(names, path, file)
        written: dict[int, Path] = {}
        target.mkdir()
        (target / "results").mkdir()
        for path, file in names.items():
            place = target / os.path.relpath(path, self.folder)
            if id(file) in written:
                os.link(written[id(file)], place)
                continue
            kept = [each for each in file.pending if keeps == "some" and rng.random() < 0.5]
            place.write_bytes(file.content(kept))
            written[id(file)] = place


def main():
    """Install strace, if it is missing and can be installed. Without it the tests of power losses are skipped."""
    if shutil.which("strace") is None and shutil.which("apt-get") and os.geteuid() == 0:
        for command in ("update", "install -y --no-install-recommends strace"):
            subprocess.run(["apt-get", "-qq", *command.split()], check=False, stdout=subprocess.DEVNULL)
    if not can_trace():
        print("The tests of power losses are skipped: strace is not installed, or may not trace.", file=sys.stderr)


if __name__ == "__main__":
    main()
