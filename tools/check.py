"""The one check command: format, lint, types, layers, quick tests.

Every step runs, also after one has failed, so that one call shows all there is to mend. Run from the repository root:
``python -m tools.check``; ``--no-tests`` leaves the tests to a whole suite that follows.
"""

import argparse
import os
import subprocess
import sys
import time
from typing import Final

PYTHON: Final = sys.executable
STEPS: Final = (
    ("format", (PYTHON, "-m", "ruff", "format", "--check", "--quiet", ".")),
    ("lint", (PYTHON, "-m", "ruff", "check", "--quiet", ".")),
    ("types", (PYTHON, "-m", "mypy")),
    ("layers", (PYTHON, "-m", "tools.check_layers")),
    ("tests", (PYTHON, "-m", "pytest", "-q", "-m", "not slow", "tests/unit", "tests/property")),
)
# One thread per process: the suites start many processes, and numbers must not depend on the machine's core count.
THREAD_LIMITS: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
}


def main() -> int:
    """Run every step and print a table of results; 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-tests", action="store_true", help="format, lint, types and layers only")
    is_short = parser.parse_args().no_tests
    environment = os.environ | THREAD_LIMITS
    results: list[tuple[str, float, bool]] = []
    for name, command in STEPS:
        if is_short and name == "tests":
            continue
        print(f"== {name}", flush=True)
        start_s = time.monotonic()
        done = subprocess.run(command, env=environment, check=False)
        results.append((name, time.monotonic() - start_s, done.returncode == 0))
    print("== summary")
    for name, duration_s, is_ok in results:
        print(f"{name:<8} {duration_s:6.1f} s  {'ok' if is_ok else 'FAILED'}")
    return 0 if all(is_ok for _, _, is_ok in results) else 1


if __name__ == "__main__":
    sys.exit(main())
