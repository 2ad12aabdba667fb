"""Says which programs that `make test-all` needs are missing, and which Debian package has each.

python scripts/system_programs.py              exit 1 when one is missing, with the mend
python scripts/system_programs.py --packages   the missing ones' packages alone, for apt-get
"""

from __future__ import annotations

import shutil
import sys
from typing import NamedTuple


class Program(NamedTuple):
    name: str
    package: str
    use: str


PROGRAMS = (
    Program("chromium", "chromium", "looks at the dashboard in tests/e2e"),
    Program("curl", "curl", "a real client in tests/e2e"),
    Program("docker-compose", "docker-compose", "reads the file in deploy/"),
    Program("mount", "mount", "makes the full disk of tests/e2e; needs root, else that test is skipped"),
    Program("node", "nodejs", "its fetch is a real client in tests/e2e; runs the suite in tests/conformance"),
    Program("npm", "npm", "installs the suite in tests/conformance"),
    Program("promtool", "prometheus", "checks the generated rules in tests/dashboards"),
    Program("prometheus", "prometheus", "scrapes in tests/e2e, and alerts in tests/dashboards"),
)


def main() -> int:
    missing = [program for program in PROGRAMS if shutil.which(program.name) is None]
    packages = " ".join(dict.fromkeys(program.package for program in missing))
    if sys.argv[1:] == ["--packages"]:
        print(packages)
        return 0
    for program in missing:
        print(f"missing: {program.name} ({program.use})", file=sys.stderr)
    if missing:
        print(f"on Debian: apt-get install --no-install-recommends {packages}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
