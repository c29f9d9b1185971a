"""Fills a wheelhouse for a board from any machine, and proves that it installs there without a network.

``pip`` does both: it downloads wheels of the board's CPU, Python and C library, and then resolves the client from that
folder alone. Nothing is built and nothing of this machine's Python plays a part, so no emulation is needed.

Tags: PEP 600 (``manylinux_2_N``: needs glibc 2.N or newer). Python and C library of the systems: their release notes
and packages; Debian 12 and 13 were also asked in root file systems built from the archive.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware_profiles.errors import FirmwareError, UsageError
from firmware_profiles.image.wheelhouse import OURS, check_wheelhouse

PIP_TIMEOUT_S: Final = 1800
GLIBC_OLDEST: Final = 17
"""manylinux2014, the oldest tag that our dependencies still use."""
TEXT_CHARS_MAX: Final = 600
PACKAGES: Final = ("edge_sdk", "coordinator", "firmware_profiles")
BUILD_FILES: Final = ("setup.cfg", "pyproject.toml", "LICENSE", "README.md")


@dataclass(frozen=True, slots=True)
class System:
    """What a wheel must fit."""

    name: str
    python: str
    glibc_minor: int


SYSTEMS: Final = (
    System("Debian 12, Raspberry Pi OS bookworm", "3.11", 36),
    System("Debian 13, Raspberry Pi OS trixie", "3.13", 41),
    System("Ubuntu 24.04, JetPack 7", "3.12", 39),
    System("Ubuntu 22.04 and JetPack 6 with the archive's python3.11", "3.11", 35),
)
"""Older system Pythons - 3.10 of Ubuntu 22.04, 3.8 of JetPack 5, 3.6 of JetPack 4 - are too old for the client."""
OLDEST_PYTHON: Final = 11


def fill_wheelhouse(
    folder: Path, *, python: str, architecture: str, client: Path, say: Callable[[str], None]
) -> tuple[Path, ...]:
    """Download everything that a board needs, and check it as a whole.

    Args:
        folder: New or empty.
        python: Of the board, ``3.13``.
        architecture: ``aarch64`` or ``x86_64``.
        client: The client's wheel, or its source tree, which is built first.
        say: Takes a line for whoever waits.

    Returns:
        The wheels.

    Raises:
        UsageError: the folder is not empty, or the client does not run on such a system.
        FirmwareError: there is no wheel for such a board, or the folder does not resolve; pip's own words.
    """
    platforms = wheel_platforms(python, architecture)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder}: not empty: expected a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if client.is_dir():
        say(f"building the client from {client}")
        with tempfile.TemporaryDirectory(prefix="flchain-") as place:
            _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(_copy(client, Path(place))))
    else:
        (folder / client.name).write_bytes(client.read_bytes())
    wheels = [path for path in folder.iterdir() if path.name.startswith(f"{OURS}-")]
    if len(wheels) != 1:
        raise UsageError(f"{client}: expected one wheel of the client ({OURS}-...-py3-none-any.whl)")
    say(f"downloading for Python {python} on {architecture}")
    _pip("download", "--quiet", "--dest", str(folder), *_target(python, platforms), str(wheels[0]))
    say("resolving from the folder alone")
    prove_offline(folder, python=python, architecture=architecture)
    return check_wheelhouse(folder, python=python, architecture=architecture)


def prove_offline(folder: Path, *, python: str, architecture: str) -> None:
    """Resolve the client for a board from a folder, without an index, and install nothing.

    Raises:
        FirmwareError: something is missing; pip's own words.
    """
    # Not ``install --dry-run``: pips of Python 3.11's age then hold Requires-Python against this machine's Python.
    with tempfile.TemporaryDirectory(prefix="flchain-") as target:
        source = ("--quiet", "--no-index", "--find-links", str(folder), "--dest", target)
        board = _target(python, wheel_platforms(python, architecture))
        _pip("download", *source, *board, "edge-flchain", is_offline=True)


def wheel_platforms(python: str, architecture: str) -> tuple[str, ...]:
    """Platform tags that fit every supported system with that Python, the newest first.

    Raises:
        UsageError: no supported system has that Python.
    """
    minors = [system.glibc_minor for system in SYSTEMS if system.python == python]
    if not minors:
        known = ", ".join(sorted({system.python for system in SYSTEMS}))
        raise UsageError(f"Python {python}: expected one of {known}: the client needs 3.{OLDEST_PYTHON} or newer")
    newest_first = range(min(minors), GLIBC_OLDEST - 1, -1)
    return (*(f"manylinux_2_{minor}_{architecture}" for minor in newest_first), f"manylinux2014_{architecture}")


def _copy(source: Path, place: Path) -> Path:
    """What a wheel of the client is made of; building in the tree itself would leave its traces there."""
    for name in PACKAGES:
        shutil.copytree(source / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILD_FILES:
        shutil.copy(source / name, place / name)
    return place


def _target(python: str, platforms: Sequence[str]) -> tuple[str, ...]:
    tag = f"cp{python.replace('.', '')}"
    abis = [word for abi in (tag, "abi3", "none") for word in ("--abi", abi)]
    wanted = [word for platform in platforms for word in ("--platform", platform)]
    return ("--only-binary=:all:", "--implementation", "cp", "--python-version", python, *abis, *wanted)


def _pip(command: str, *words: str, is_offline: bool = False) -> None:
    """Run pip; offline it forgets this machine's indexes and folders."""
    environment = {name: value for name, value in os.environ.items() if not (is_offline and name.startswith("PIP_"))}
    line = [
        sys.executable,
        "-m",
        "pip",
        *(["--isolated"] if is_offline else []),
        "--disable-pip-version-check",
        command,
    ]
    if is_offline:
        environment["PIP_CONFIG_FILE"] = os.devnull
    try:
        done = subprocess.run(
            [*line, *words], env=environment, capture_output=True, text=True, check=False, timeout=PIP_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise FirmwareError(f"pip {command}: not done within {PIP_TIMEOUT_S} s") from error
    if done.returncode:
        raise FirmwareError(f"pip {command}: {done.stderr.strip()[-TEXT_CHARS_MAX:]}")
