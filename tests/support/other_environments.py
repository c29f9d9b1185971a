"""Environments beside ``.venv`` for packages that do not go together; ``make litert`` makes them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
LITERT: Final = ROOT / ".venv-litert" / "bin" / "python"
"""tensorflow, which writes flatbuffers, the exporters tf2onnx and skl2onnx, and ai_edge_litert."""
TFLITE: Final = ROOT / ".venv-tflite" / "bin" / "python"
"""tflite_runtime 2.14, which wants Python 3.11 and numpy 1."""


def require_environment(python: Path, package: str) -> None:
    """Skip the test where the environment was not made."""
    if not python.exists():
        if package in os.environ.get("FLCHAIN_REQUIRE", ""):
            pytest.fail(f"no {package}, but FLCHAIN_REQUIRE names it", pytrace=False)
        pytest.skip(f"skipped: no {package}")


def run_python(python: Path, *arguments: str | Path, timeout_s: float = 600) -> str:
    """Run a program of this tree there; what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command: Sequence[str] = [str(python), *map(str, arguments)]
    run = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s
    )
    assert run.returncode == 0, f"{' '.join(command)}\n{run.stdout}\n{run.stderr[-2000:]}"
    return run.stdout
