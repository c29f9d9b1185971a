"""Python of an arm64 Debian on this machine: packages unpacked into a folder, run under user-mode emulation.

Nothing is installed and nothing of the guest is configured: no root file system is entered, no binfmt is registered.
QEMU comes from the same suite, since 7.2 of Debian 12 crashes in onnxruntime. Correctness only: times mean nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tools.board_test.cache import cached

ROOT: Final = Path(__file__).resolve().parents[2]
SUITE: Final = "trixie"
PYTHON: Final = "3.13"
"""Of that suite."""
MIRROR: Final = "http://deb.debian.org/debian"
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES: Final = ("python3", "python3-numpy", "python3-onnxruntime", "python3-cbor2")
WHEEL: Final = "onnxruntime==1.31.1"
_LIBRARIES: Final = "usr/lib/aarch64-linux-gnu"


def require_arm64() -> Path:
    """The folder with the emulator, the guest's packages and the wheel; skips where it cannot be made."""
    if shutil.which("mmdebstrap") is None or os.geteuid() != 0:
        pytest.skip("skipped: no mmdebstrap, or not root")
    return cached("arm64-python", f"{SUITE} {PACKAGES} {WHEEL} 1", _make)


def run_arm64(folder: Path, *arguments: str | Path, cpu: str, with_wheel: bool = False, timeout_s: float = 1700) -> str:
    """Run the guest's Python on this tree; what it printed."""
    guest = folder / "guest"
    libraries = guest / _LIBRARIES
    # Debian chooses the BLAS by links that only an installation makes.
    library_path = f"{libraries}/blas:{libraries}/lapack:{libraries}"
    python_path = [folder / "wheel"] if with_wheel else []
    python_path += [ROOT, guest / "usr/lib/python3/dist-packages"]
    variables = {
        "LD_LIBRARY_PATH": library_path,
        "PYTHONHOME": f"{guest}/usr",
        "PYTHONPATH": ":".join(map(str, python_path)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    settings = [part for name, value in variables.items() for part in ("-E", f"{name}={value}")]
    command = [folder / "qemu-aarch64", "-cpu", cpu, "-L", guest, *settings, guest / f"usr/bin/python{PYTHON}"]
    run = subprocess.run(
        [*map(str, command), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=timeout_s
    )
    assert run.returncode == 0, f"status {run.returncode}\n{run.stdout}\n{run.stderr[-2000:]}"
    return run.stdout


def _make(folder: Path) -> None:
    emulator = folder / "emulator"
    _unpack(emulator, "amd64", "qemu-user")
    shutil.copy2(emulator / "usr/bin/qemu-aarch64", folder / "qemu-aarch64")
    shutil.rmtree(emulator)
    _unpack(folder / "guest", "arm64", *PACKAGES)
    link = folder / "guest" / "lib"
    if not link.exists():
        link.symlink_to("usr/lib")
    _download_wheel(folder)


def _unpack(target: Path, architecture: str, *packages: str) -> None:
    """Resolve packages by apt and unpack them; none of their programs runs."""
    source = f"deb [signed-by={KEYRING}] {MIRROR} {SUITE} main"
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", f"--architectures={architecture}"]
    options = [f"--include={','.join(packages)}", "--aptopt=APT::Install-Recommends false", SUITE, str(target), source]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)


def _download_wheel(folder: Path) -> None:
    """The runtime as it is published for arm64."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    options = ["--only-binary=:all:", "--platform", "manylinux_2_28_aarch64", "--python-version", PYTHON]
    subprocess.run([*command, *options, "-d", str(folder / "download"), WHEEL], check=True)
    (wheel,) = (folder / "download").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "wheel")
    shutil.rmtree(folder / "download")
