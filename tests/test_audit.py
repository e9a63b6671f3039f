"""The audit fails only for a known vulnerability, and reports dependencies that it could not look up."""

from __future__ import annotations

import json

from tests.audit import verdict

CLEAN = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found on PyPI"}
BAD = {
    "name": "c",
    "version": "2",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": [], "description": ""}],
}


def said(*dependencies):
    return verdict(json.dumps({"dependencies": dependencies, "fixes": []}), "")


def test_a_known_vulnerability_fails_and_what_was_not_looked_up_is_told():
    assert said(CLEAN, BAD, SKIPPED)[0] == 1
    assert "c 2: PYSEC-1, mended in 3" in said(CLEAN, BAD, SKIPPED)[1]
    assert said(CLEAN, SKIPPED) == (0, "1 dependencies have no known vulnerability; 1 could not be looked up.")
    assert said(SKIPPED) == (0, "Dependencies NOT audited: this index has no advisories.")
    status, text = verdict("", "ERROR: something\nERROR: Could not connect to the index")
    assert status == 0
    assert "NOT audited" in text
    assert "Could not connect" in text
