"""Generate ``coordinator/ordering/abci_pb2.py`` and its type stub from ``abci.proto``.

Needs ``grpcio-tools`` (it carries protoc), which nothing else here uses: install it where this runs. The generated
files are committed, so that users need the protobuf runtime only. Generated code refuses runtimes older than its
generator, so the lower bound of ``protobuf`` in ``setup.cfg`` is the version at the top of ``abci_pb2.py``.

Run: ``python -m tools.generate_abci [--check]``; ``--check`` writes nothing and fails when the files are out of date.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PROTO: Final = Path("coordinator/ordering/abci.proto")
OUTPUTS: Final = ("abci_pb2.py", "abci_pb2.pyi")


def generate(target: Path) -> None:
    """Write the generated files below ``target``, in the proto's own folder structure.

    Raises:
        subprocess.CalledProcessError: protoc refuses the file, or grpcio-tools is not installed.
    """
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", f"--python_out={target}", f"--pyi_out={target}"]
    subprocess.run([*command, str(PROTO)], cwd=ROOT, check=True)


def main(argv: list[str]) -> int:
    """Generate, or with ``--check`` compare; 1 when a file is out of date."""
    if argv != ["--check"]:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {name: (Path(folder) / PROTO.parent / name).read_bytes() for name in OUTPUTS}
    stale = [name for name, data in fresh.items() if (ROOT / PROTO.parent / name).read_bytes() != data]
    for name in stale:
        print(f"{PROTO.parent / name} is out of date: run python -m tools.generate_abci")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
