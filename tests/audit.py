"""Looks up known vulnerabilities of the locked dependencies: `python -m tests.audit`, part of `make check`.

Exits with 1 if there are any. Prints a note and exits with 0 if the advisories cannot be looked up (no network, or a
mirror without advisories).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCKS = (ROOT / "requirements.lock", ROOT / "requirements-torch.lock")


def verdict(report: str, errors: str) -> tuple[int, str]:
    """The exit status and the message, from pip-audit's JSON report and its standard error."""
    try:
        found = json.loads(report)["dependencies"]
    except ValueError:
        return (
            0,
            f"Dependencies NOT audited, the advisories cannot be reached: {(errors.strip().splitlines() or ['?'])[-1]}",
        )
    lines = [
        f"{each['name']} {each['version']}: {vulnerability['id']}, mended in {', '.join(vulnerability['fix_versions']) or 'no version'}"
        for each in found
        for vulnerability in each.get("vulns", ())
    ]
    if lines:
        return 1, "\n".join(["Known vulnerabilities:", *lines, "Run `make lock`, or pin a version that is mended."])
    skipped = [each["name"] for each in found if "skip_reason" in each]
    if len(skipped) == len(found):
        return 0, "Dependencies NOT audited: this index has no advisories."
    return (
        0,
        f"{len(found) - len(skipped)} dependencies have no known vulnerability; {len(skipped)} could not be looked up.",
    )


def main() -> None:
    options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    statuses = []
    for lock in LOCKS:  # apart: pip-audit wants a hash of every requirement or of none
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", "--requirement", str(lock), *options],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        status, text = verdict(done.stdout, done.stderr)
        print(f"{lock.name}: {text}")
        statuses.append(status)
    sys.exit(max(statuses))


if __name__ == "__main__":
    main()
