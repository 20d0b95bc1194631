"""Asks the package index's vulnerability service about every package in requirements.lock, with pip-audit.

python release/audit.py      exit code 0: none is known; 1: some are, or some packages were not asked about;
                             3: the service can't be reached, so nothing is known

pip-audit itself ends with "No known vulnerabilities found" where the service knew none of the packages, as behind a
proxy that serves packages alone.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements.lock"
UNREACHABLE = 3


def verdict(answer: str, words: str) -> tuple[int, str]:
    """Exit code and message.

    Args:
        answer: what pip-audit wrote as JSON; empty where it failed.
        words: what it wrote to stderr.
    """
    try:
        dependencies: list[dict[str, Any]] = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = words.strip().rpartition("\n")[2] or "no message"
        return UNREACHABLE, f"nothing was audited: the vulnerability service can't be reached ({last})"
    skipped = [one["name"] for one in dependencies if "skip_reason" in one]
    if len(skipped) == len(dependencies):
        return UNREACHABLE, f"nothing was audited: the vulnerability service knows none of {len(skipped)} packages here"
    lines = []
    for one in dependencies:
        for fault in one.get("vulns", []):
            fixed = ", ".join(fault["fix_versions"]) or "no version yet"
            lines.append(f"{one['name']} {one['version']}: {fault['id']}, fixed in {fixed}")
    lines += [f"{name}: not audited" for name in skipped]
    if lines:
        return 1, "\n".join(lines)
    return 0, f"no known vulnerability in {len(dependencies)} packages"


def main() -> None:
    """Ask, and say what came of it."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--no-deps", "--disable-pip", "--timeout", "15"]
    done = subprocess.run([*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True)
    if "No module named pip_audit" in done.stderr:
        sys.exit("pip-audit is not installed: pip install -e '.[release]'")
    code, message = verdict(done.stdout, done.stderr)
    print(message, file=sys.stderr if code else sys.stdout)
    sys.exit(code)


if __name__ == "__main__":
    main()
