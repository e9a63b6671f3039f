"""The tree is what the documents say: imports point one way, modules stay small, names in the README exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from main import api
from problems import all_errors
from result_routes import results
from service_routes import catalogue, meta
from settings import Settings
from tests.serving import ROOT

# Who may import whom among our own modules; everything else is against the grain.
ALLOWED = {
    "settings": set(),
    "models": {"request_models"},
    "request_models": set(),
    "problems": {"models"},
    "http_errors": {"models", "problems"},
    "server": set(),
    "events": {"models"},
    "pace": set(),
    "periodic": set(),
    "answers": {"job_records", "models", "problems"},
    "job_records": {"models"},
    "job_queue": {"job_records", "job_schema", "problems"},
    "job_schema": {"problems"},
    "result_files": {"models", "problems"},
    "metrics": {"models"},
    "api_keys": {"job_schema", "problems"},
    "command_line": {"api_keys", "job_store", "main", "problems", "server", "settings"},
    "retention": {"job_store", "periodic", "problems", "settings"},
    "middleware": {"http_errors", "problems"},
    "group_commit": set(),
    "job_listing": {"job_schema", "models"},
    "admission": {"job_queue", "job_records", "job_schema", "models", "problems", "result_files"},
    "job_store": {
        "admission",
        "api_keys",
        "group_commit",
        "job_listing",
        "job_queue",
        "job_records",
        "job_schema",
        "models",
        "problems",
        "result_files",
    },
    "job_progress": {"job_records", "job_store", "models", "pace", "periodic", "problems"},
    "job_manager": {"job_progress", "pace", "job_listing", "job_records", "job_store", "models", "problems"},
    "attribution": {"models", "problems", "settings"},
    "client": {"attribution_client", "models"},
    "attribution_client": {"models"},
    "main": {"attribution", "http_errors", "job_manager", "job_store", "middleware", "models", "problems"}
    | {
        "answers",
        "command_line",
        "dependencies",
        "events",
        "job_listing",
        "metrics",
        "page_routes",
        "result_routes",
        "retention",
        "server",
        "service_routes",
        "settings",
    },
    "dependencies": {"api_keys", "attribution", "job_manager", "job_store", "models", "problems"},
    "result_routes": {"answers", "result_contents", "attribution", "dependencies", "http_errors", "models", "problems"},
    "result_contents": {"answers", "job_manager", "job_records", "job_store", "models", "problems"},
    "page_routes": set(),
    "service_routes": {"dependencies", "http_errors", "problems"},
    "migrations": set(),
    "demo_models": set(),
}
MODULES = [
    path
    for path in [*sorted(ROOT.glob("*.py")), *sorted(ROOT.glob("*/*.py")), *sorted(ROOT.glob("attribution/*/*.py"))]
    if path.relative_to(ROOT).parts[0] not in {"tests", "benchmarks", ".venv"}
]


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    ours = imported(path) & ALLOWED.keys() - {room(path)}
    assert ours <= ALLOWED[room(path)]


def test_the_modules_of_attribution_have_no_cycle():
    graph = {}
    for path in (ROOT / "attribution").rglob("*.py"):
        text = path.read_text()
        needs = set(re.findall(r"^from attribution\.([\w.]+) import", text, re.MULTILINE))
        for package, line in re.findall(r"^from attribution(\.corrections)? import (.+)$", text, re.MULTILINE):
            needs |= {f"{package}.{name.strip()}".lstrip(".") for name in line.split(",")}
        graph[".".join(path.relative_to(ROOT / "attribution").with_suffix("").parts)] = needs
    while graph:
        leaves = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert leaves, f"a cycle among {sorted(graph)}"
        for leaf in leaves:
            del graph[leaf]


def test_torch_loads_only_behind_attribution():
    code = "import sys, main, job_manager, job_store; sys.exit(any(n in sys.modules for n in ('torch', 'inseq')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_modules_stay_small():
    assert {str(path): lines for path in MODULES if (lines := len(path.read_text().splitlines())) > 420} == {}


README = (ROOT / "README.md").read_text()


def test_the_readme_names_every_endpoint():
    for route in (*api.routes, *results.routes, *catalogue.routes, *meta.routes):
        if route.path != "/":
            (method,) = route.methods - {"HEAD"}
            assert f"`{method} {route.path}`" in README, route.path


def test_the_readme_names_files_that_exist():
    named = set(re.findall(r"`([A-Za-z0-9_./-]+\.(?:py|md|toml|lock|ipynb))`", README))
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()


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
    for each in registry.describe():
        assert f"| `{each['name']}` | {each['reason']} | {each['remedy']} | `{each['proof']}` |" in text


def test_the_readme_names_every_method():
    from attribution import catalogue

    for name in catalogue.methods():
        assert f"`{name}`" in README
