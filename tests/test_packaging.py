"""The wheel contains the client and its command, which work without the libraries of the extras."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import attribution_schema
from main import create_app
from settings import Settings
from tests.conftest import PHRASEBOOK, SENTENCE
from tests.serving import ROOT

PACKAGES = {"attribution_client", "attribution_reading", "attribution_schema"}
ATTRIBUTE = ["attribute", "-m", PHRASEBOOK, "-a", "saliency", "-i", SENTENCE]
NOT_LIGHT = {
    "torch", "inseq", "transformers", "fastapi", "sqlalchemy", "pandas", "pyarrow", "scipy", "matplotlib",
    "seaborn", "networkx",
}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def described(unpacked):
    (folder,) = unpacked.glob("*.dist-info")
    return email.message_from_string((folder / "METADATA").read_text())


def required(unpacked):
    """Names of the packages that the wheel requires without extras."""
    requirements = map(Requirement, described(unpacked).get_all("Requires-Dist"))
    return {each.name for each in requirements if each.marker is None}


def test_the_wheel_has_the_client_and_no_module_that_could_hide_a_users_own(unpacked):
    found = {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"}
    assert found == {name for name in PACKAGES if (ROOT / name).exists()}
    for name in found:
        ours = {str(path.relative_to(ROOT)) for path in (ROOT / name).rglob("*.py")}
        assert ours == {str(path.relative_to(unpacked)) for path in (unpacked / name).rglob("*.py")}
        assert (unpacked / name / "py.typed").exists()


def test_the_wheel_requires_no_library_of_an_extra(unpacked):
    assert required(unpacked).isdisjoint(NOT_LIGHT)
    pending, needed = list(required(unpacked)), set()
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            theirs = map(Requirement, metadata.requires(name) or ())
            pending += [each.name for each in theirs if each.marker is None or each.marker.evaluate({"extra": ""})]
    assert needed.isdisjoint(NOT_LIGHT)


def pinned(lock):
    """The lines `name==version` of a lock file."""
    return {line.split()[0] for line in (ROOT / lock).read_text().splitlines() if re.match(r"[\w.-]+==", line)}


def names(lines):
    return {line.partition("==")[0] for line in lines}


def test_the_locks_pin_every_requirement(unpacked):
    requirements = list(map(Requirement, described(unpacked).get_all("Requires-Dist")))
    everything = {each.name.lower() for each in requirements}
    apart = re.compile("'(dev|quantized)'|\"(dev|quantized)\"")  # of these extras, requirements.lock has nothing
    to_run = {each.name.lower() for each in requirements if not apart.search(str(each.marker))}
    torch = names(pinned("requirements-torch.lock"))
    assert torch == {"torch"}
    assert to_run - torch <= names(pinned("requirements.lock"))
    assert pinned("requirements.lock") <= pinned("requirements-dev.lock")
    assert everything - torch <= names(pinned("requirements-dev.lock"))


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_every_locked_file_has_a_hash(lock):
    """pip then refuses a file that differs from the one that was locked. Torch has builds with other hashes."""
    entries = re.split(r"\n(?=[\w.-]+==)", (ROOT / lock).read_text())
    assert len(entries) == len(pinned(lock)) > 50
    assert [each for each in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", each)] == []
    assert "torch" not in names(pinned(lock))


def test_the_image_installs_what_is_locked_and_is_not_run_by_root():
    image = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes --no-deps -r requirements.lock" in image
    assert "-r requirements-torch.lock" in image
    assert re.findall(r"^USER (\w+)$", image, re.MULTILINE) == ["api"]


def test_there_is_one_version(unpacked, tmp_path):
    version = described(unpacked)["Version"]
    assert version == attribution_schema.__version__ == create_app(Settings(data_dir=tmp_path)).version


# Without the extras

BLOCKED = f"import sys; sys.modules.update(dict.fromkeys({sorted(NOT_LIGHT)!r})); "  # None: the import fails


def light(unpacked, code):
    """Run code with the unpacked wheel, outside the project, and with libraries of the extras blocked."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code],
        cwd=unpacked, capture_output=True, text=True, check=False, timeout=120, env=os.environ | {"PYTHONPATH": ""},
    )  # fmt: skip


def test_the_command_works_without_the_extras(unpacked, server):
    arguments = ["--server", server.url, *ATTRIBUTE]
    done = light(unpacked, f"from attribution_client.terminal import main; sys.exit(main({arguments!r}))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"saliency of {PHRASEBOOK}\n")
    assert done.stderr.startswith("job ")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("attribution_client.to_frame", 'is not installed. Install it with: pip install "NAME[plots]"'),
        ("attribution_client.plot_step_scores", 'is not installed. Install it with: pip install "NAME[plots]"'),
        ("client.to_frame('x')", 'is not installed. Install it with: pip install "NAME[plots]"'),
        ("client.to_inseq('x')", 'inseq is not installed. Install it with: pip install "NAME[server]"'),
    ],
)
def test_a_missing_library_names_its_extra(unpacked, code, message):
    done = light(unpacked, f"import attribution_client; client = attribution_client.AttributionClient(); {code}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert last.endswith(message.replace("NAME", "inseq-attribution-api"))


# In a new environment


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` folder of an environment with only the wheel and its requirements."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    folder = environment / "bin"
    pip = [sys.executable, "-m", "pip", "--python", folder / "python", "install", "--quiet", "--no-compile"]
    versions = environment / "versions.txt"
    versions.write_text("\n".join(pinned("requirements.lock")))  # without hashes, of which the wheel has none
    done = subprocess.run(
        [*pip, "--retries", "1", "--constraint", versions, wheel],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "No matching distribution found" in done.stderr:
        pytest.skip(f"the package index cannot be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_an_installed_client_runs_a_job(installed, server, tmp_path):
    def run(command, *arguments):
        return subprocess.run(
            [installed / command, *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=True, timeout=240, env={"INSEQ_API_URL": server.url},
        ).stdout  # fmt: skip

    names = json.loads(run("python", "-c", LISTING))
    assert "attribution_client" in names
    assert NOT_LIGHT.isdisjoint(names)
    assert "Submit a job" in run("attribution", "--help")
    assert run("attribution", *ATTRIBUTE).startswith(f"saliency of {PHRASEBOOK}\n")
    assert Path(run("python", "-c", "import attribution_client as a; print(a.__file__)")).is_relative_to(
        installed.parent
    )


LISTING = "import json, pkgutil; print(json.dumps([each.name for each in pkgutil.iter_modules()]))"
