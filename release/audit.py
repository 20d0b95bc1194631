"""Asks the package index's vulnerability service about every package in requirements.lock, with pip-audit.

python release/audit.py      exit code 0: no vulnerability is known; 1: some are known, or some packages were
                             skipped; 3: the service can't be reached, so nothing was audited

pip-audit itself reports "No known vulnerabilities found" even if the service knows none of the packages, which happens
behind a proxy that only serves packages.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements.lock"
UNREACHABLE = 3


def verdict(answer: str, errors: str) -> tuple[int, str]:
    """Exit code and message.

    Args:
        answer: pip-audit's JSON output; empty if it failed.
        errors: its stderr.
    """
    try:
        dependencies: list[dict[str, Any]] = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = errors.strip().rpartition("\n")[2] or "no message"
        return UNREACHABLE, f"nothing was audited: the vulnerability service can't be reached ({last})"
    skipped = [one["name"] for one in dependencies if "skip_reason" in one]
    if len(skipped) == len(dependencies):
        return UNREACHABLE, f"nothing was audited: the vulnerability service knows none of {len(skipped)} packages here"
    lines = []
    for one in dependencies:
        for vulnerability in one.get("vulns", []):
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            lines.append(f"{one['name']} {one['version']}: {vulnerability['id']}, fixed in {fixed}")
    lines += [f"{name}: not audited" for name in skipped]
    if lines:
        return 1, "\n".join(lines)
    return 0, f"no known vulnerability in {len(dependencies)} packages"


def main() -> None:
    """Run pip-audit and report the verdict."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--no-deps", "--disable-pip", "--timeout", "15"]
    done = subprocess.run([*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True)
    if "No module named pip_audit" in done.stderr:
        sys.exit("pip-audit is not installed: pip install -e '.[release]'")
    code, message = verdict(done.stdout, done.stderr)
    print(message, file=sys.stderr if code else sys.stdout)
    sys.exit(code)


if __name__ == "__main__":
    main()
