"""Installs the client on a new board: ``PYTHONPATH=WHEEL python3 -m edge_sdk.upgrade.first_install FOLDER WHEELS``.

Runs out of the wheel itself, before anything is installed, so it needs the standard library only: no pip and, on
Debian, no package python3-venv either. Called by the first boot (firmware_profiles/image/install.sh) once the
wheels agree with SHA256SUMS; the environment is made as every later upgrade makes its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from edge_sdk.errors import EdgeFLError
from edge_sdk.upgrade.environments import COMMITTED, CURRENT, SLOTS, Environments

UNPACKED_BYTES_MAX: Final = 2 * 2**30
"""Of all wheels; onnxruntime and numpy unpack to about 150 MB."""
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


def main(argv: list[str]) -> int:
    """Fill the first environment and let both links name it; 1 with the reason when the disk or a wheel refuses."""
    if len(argv) != 2:
        sys.stderr.write("usage: python -m edge_sdk.upgrade.first_install FOLDER WHEELS\n")
        return EXIT_USAGE
    environments = Environments(Path(argv[0]))
    wheels = sorted(Path(argv[1]).glob("*.whl"))
    try:
        environments.folder.mkdir(parents=True, exist_ok=True)
        # An attempt that the power cut off left links to an environment that nothing has started yet.
        for link in (CURRENT, COMMITTED):
            (environments.folder / link).unlink(missing_ok=True)
        marker = "\n".join(wheel.name for wheel in wheels).encode()
        environments.build(SLOTS[0], wheels, marker, bytes_max=UNPACKED_BYTES_MAX)
        # The updater itself runs from the last environment that stood its trial.
        for link in (COMMITTED, CURRENT):
            environments.point(link, SLOTS[0])
    except (EdgeFLError, OSError) as error:
        sys.stderr.write(f"first_install: {error}\n")
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
