"""A container's memory limit, read from cgroup v1 or v2 files, bounds estimates and batch sizes."""

from __future__ import annotations

import psutil
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import GenerationMixin

from attribution.engine import AttributionEngine
from attribution.model_cache import device_memory
from attribution.results import stored_form
from models import AttributionRequest
from problems import InvalidRequest
from settings import Settings
from tests import reference
from tests.conftest import LOOKUP, PROMPT

MIB = 1024**2
BODY = {"model": LOOKUP, "input_text": PROMPT, "generated_text": f"{PROMPT} tea. Ben likes milk."}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return AttributionEngine(Settings(data_dir=tmp_path_factory.mktemp("data")))


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A function that writes /proc and /sys files into a folder; the service reads these instead of the machine's."""

    def written(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(text))
        device_memory._groups.cache_clear()

    monkeypatch.setattr(device_memory, "_SYSTEM", tmp_path)
    yield written
    device_memory._groups.cache_clear()


def version_1(limit, used, cached=0, group="/docker/abc", mounted="/docker/abc"):
    folder = f"sys/fs/cgroup/memory{mounted}"
    return {
        "proc/self/cgroup": f"5:cpu,cpuacct:/elsewhere\n4:memory:{group}\n0::/\n",
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": f"inactive_file 5\ntotal_inactive_file {cached}\n",
    }


def version_2(limit, used, cached=0, group="/app.slice/job", mounted="/app.slice/job"):
    folder = f"sys/fs/cgroup{mounted}"
    return {
        "proc/self/cgroup": f"0::{group}\n",
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\ninactive_file {cached}\n",
    }


@pytest.mark.parametrize("version", [version_1, version_2])
@pytest.mark.parametrize("mounted", [None, "/"], ids=["host", "container"])
def test_what_is_available_is_the_limit_without_what_is_used(engine, system, version, mounted):
    """Cached files count as free. A container mounts its own group at the root, whatever its path on the host."""
    system(version(300 * MIB, 250 * MIB, 30 * MIB, **({"mounted": mounted} if mounted else {})))
    told = engine.estimate(engine.check(AttributionRequest(method="saliency", **BODY)))
    (loaded,) = engine.models()["loaded"]
    assert told.available_memory_bytes == 80 * MIB + loaded["bytes"]
    assert told.fits


def test_the_tightest_of_the_groups_around_counts(engine, system):
    system(version_2(4000 * MIB, 100 * MIB) | version_2(500 * MIB, 400 * MIB, mounted="/app.slice"))
    assert device_memory.memory_of("cpu") == device_memory.DeviceMemory(100 * MIB, 500 * MIB)
    system(version_2("max", 0))
    assert device_memory.memory_of("cpu") == device_memory.DeviceMemory(100 * MIB, 500 * MIB)


@pytest.mark.parametrize("files", [{}, version_2("max", 5), version_1(2**63 - 4096, 5), {"proc/self/cgroup": "0::/\n"}])
def test_without_a_limit_it_is_the_machines_memory(system, files):
    system(files)
    found = device_memory.memory_of(torch.device("cpu"))
    assert found.total == psutil.virtual_memory().total
    assert found.free == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize("version", [version_1, version_2])
def test_what_cannot_fit_is_told_and_refused(engine, system, version):
    request = AttributionRequest(method="saliency", **BODY)
    system(version(300 * MIB, 350 * MIB))  # usage exceeds the limit
    told = engine.estimate(engine.check(request))
    (loaded,) = engine.models()["loaded"]
    assert told.available_memory_bytes == loaded["bytes"]
    assert not told.fits
    assert "saliency needs about 0.0 GiB and cpu has 0.0 GiB" in told.warnings[0]
    system(version(MIB, 0))  # the limit is below the size of the weights
    with pytest.raises(InvalidRequest, match=r"take 0\.0 GiB in float32, and cpu has 0\.0 GiB"):
        engine.check(request)


def test_the_single_pass_takes_as_many_rows_at_once_as_there_is_room_for(engine, system):
    """With less free memory, occlusion runs more and smaller forward passes, with the same scores."""
    request = engine.check(AttributionRequest(method="occlusion", engine="single_pass", **BODY))

    def forwards(free):
        system(version_2(300 * MIB, 300 * MIB - free))
        counted = []
        handle = register_module_forward_pre_hook(
            lambda module, _: counted.append(1) if isinstance(module, GenerationMixin) else None
        )
        parts = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
        handle.remove()
        return len(counted), stored_form.decode(parts[0].content)

    forwards(100 * MIB)  # the first run also measures the model's speed
    roomy, whole = forwards(100 * MIB)
    tight, pieces = forwards(MIB)
    assert tight > roomy
    reference.assert_same_sequence(pieces.sequence_attributions[0], whole.sequence_attributions[0], rtol=1e-5)
