"""The server as its container runs it: a user without rights, on a file system it cannot write to."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LOOKUP, PROMPT
from tests.serving import ROOT, Server

NOBODY = "65534"

# In a mount namespace of its own: everything is read-only but DATA and a tmpfs for temporary files (Docker's `--read-only
# --tmpfs`). An interpreter in this user's home, which others may not enter, is mounted alone into an empty one.
CONTAINED = """
set -e
mount --make-rprivate /
case {base}/ in {home}/*)
    mkdir -p {data}/interpreter
    mount --bind {base} {data}/interpreter
    mount -t tmpfs -o mode=755 tmpfs {home}
    mkdir -p {base}
    mount --move {data}/interpreter {base}
esac
mount --bind {data} /mnt
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
mount -o remount,bind,ro /
if touch {root}/written 2>/dev/null; then exit 99; fi
cd {root}
exec setpriv --reuid={nobody} --regid={nobody} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


@pytest.fixture
def contained(tmp_path):
    """Start of a command that runs the rest as nobody on a read-only root; the test's folder is /mnt."""
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    places = {"base": sys.base_prefix, "home": Path.home(), "data": data, "root": ROOT}
    script = CONTAINED.format(nobody=NOBODY, **{name: shlex.quote(str(place)) for name, place in places.items()})
    command = ["unshare", "--mount", "sh", "-c", script, "sh"]
    try:
        tried = subprocess.run([*command, sys.executable, "--version"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare (of util-linux) is not installed")
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()[-200:]}")
    return command


@pytest.mark.slow
def test_as_nobody_on_a_read_only_file_system(tmp_path, contained):
    """It serves, runs a job, and keeps the result over a restart; all files are its own."""
    environment = {"HOME": "/mnt", "HF_HOME": "/mnt/huggingface", "TMPDIR": "/var/tmp"}
    server = Server(tmp_path / "data" / "jobs", command=contained, seen_as="/mnt/jobs", **environment)
    with server:
        lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert set(status["Uid"].split()) == {NOBODY}
        assert int(status["CapEff"], 16) == 0
        job_id = server.run(model=LOOKUP, method="saliency", input_text=PROMPT)
        result = server.client.get(f"/attribution/jobs/{job_id}/results").content
    assert "Traceback" not in server.log
    with server:
        assert server.client.get(f"/attribution/jobs/{job_id}/results").content == result
    owners = {each.stat().st_uid for each in (tmp_path / "data" / "jobs").rglob("*")}
    assert owners == {int(NOBODY)}
