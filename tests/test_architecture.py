"""Imports follow the contracts, modules stay small, and the documents describe the files and options that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from api.routes.catalogue import catalogue
from api.routes.jobs import jobs
from api.routes.results import results
from api.routes.service import meta
from api.routes.shared import shared
from api.routes.shares import shares
from models import AttributionRequest
from problems import all_errors
from settings import Settings
from tests.serving import ROOT

MODULES = [
    path
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0] not in {"tests", "benchmarks", "build", ".venv"}
]


def test_imports_point_one_way():
    """The import contracts in `pyproject.toml` are kept."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# import-linter reads packages only. For each module at the root, the packages and modules that it may import.
ROOT_MODULES = {
    "main.py": {"api", "attribution", "attribution_schema", "job_manager", "jobs", "models", "settings"},
    "job_manager.py": {"jobs", "models", "problems"},
    "models.py": {"attribution_schema"},
    "problems.py": {"models"},
    "settings.py": set(),
}


def test_the_modules_at_the_root_import_downward():
    rooms = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    for name, allowed in ROOT_MODULES.items():
        imported = set(re.findall(r"^\s*(?:from|import) (\w+)", (ROOT / name).read_text(), re.MULTILINE))
        assert imported & rooms <= allowed, name
    assert {path.name for path in MODULES if path.parent == ROOT} == set(ROOT_MODULES)


def test_torch_loads_only_behind_attribution():
    code = "import sys, main, job_manager, jobs.store.job_store; sys.exit(any(n in sys.modules for n in ('torch', 'inseq')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_modules_stay_small():
    assert {str(path): lines for path in MODULES if (lines := len(path.read_text().splitlines())) > 420} == {}


def test_the_documentation_has_every_endpoint():
    text = (ROOT / "docs" / "api.md").read_text()
    for route in (*jobs.routes, *results.routes, *shares.routes, *shared.routes, *catalogue.routes, *meta.routes):
        if route.path != "/":
            (method,) = route.methods - {"HEAD"}
            assert f"`{method} {route.path}`" in text, route.path


def test_the_documentation_has_every_field_of_a_request():
    text = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in AttributionRequest.model_fields if f"`{name}`" not in text] == []


def test_the_contributors_guide_draws_the_tree():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    (tree,) = re.findall(r"## Project structure\n\n```\n(.*?)```", guide, re.DOTALL)
    drawn = {line.split()[0] for line in tree.splitlines()}
    code = {path.relative_to(ROOT) for path in MODULES}
    rooms = {f"{path.parent.as_posix()}/" for path in code if path.name == "__init__.py"}
    modules = {str(path) for path in code if path.parent == Path()}
    others = {"web/", "benchmarks/", "docs/", "tests/", "inseq_api_visualization.ipynb"}
    assert drawn == rooms | modules | others


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_files_that_exist(document):
    text = (ROOT / document).read_text()
    named = set(re.findall(r"`([A-Za-z0-9_./-]+(?:\.(?:py|md|toml|lock|ipynb)|/))`", text))
    named |= set(re.findall(r"\]\(([A-Za-z0-9_./-]+)(?:#[^)]*)?\)", text))  # links
    assert named
    made_by_the_server = {"data/"}
    assert {name for name in named - made_by_the_server if not (ROOT / name).exists()} == set()


def test_the_documentation_has_every_setting_and_problem():
    text = (ROOT / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert f"`INSEQ_API_{name.upper()}`" in text, name
        assert field.description in text, name
    problems = (ROOT / "docs" / "problems.md").read_text()
    for error in all_errors():
        assert f"`/problems/{error.slug}`" in problems, error


def test_the_documentation_has_every_correction():
    import attribution.engine  # noqa: F401 - corrections are declared where they are made
    from attribution.corrections import registry

    text = (ROOT / "docs" / "corrections.md").read_text()
    for each in registry.all_corrections():
        assert f"| `{each['name']}` | {each['reason']} | {each['remedy']} | `{each['proof']}` |" in text


def test_the_documentation_has_every_method():
    from attribution.catalogue import inseq_catalogue

    text = (ROOT / "docs" / "methods.md").read_text()
    for name in inseq_catalogue.methods():
        assert f"`{name}`" in text
