"""The wheels of a release: they fit the board, they are complete, and what the client in them says of itself."""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path
from typing import Final

from edge_sdk.errors import ConfigError
from edge_sdk.upgrade.release import UNPACKED_BYTES_MAX
from firmware_profiles.errors import UsageError
from firmware_profiles.image.wheelhouse import OURS, check_wheelhouse

STATE_MODULE: Final = "edge_sdk/adapters/outbox.py"
STATE_CONSTANT: Final = "SCHEMA_VERSION"
MODULE_BYTES_MAX: Final = 1024 * 1024
PIP_TIMEOUT_S: Final = 300
_GLIBC_MINORS: Final = range(39, 16, -1)


@dataclass(frozen=True, slots=True)
class SetFolder:
    """One ``--set PYTHON:ARCH=FOLDER``."""

    python: str
    machine: str
    folder: Path

    @classmethod
    def parse(cls, text: str) -> SetFolder:
        """Read the option.

        Raises:
            ConfigError: it has another form.
        """
        place, equals, folder = text.partition("=")
        python, colon, machine = place.partition(":")
        if not (equals and colon and python and machine and folder):
            raise ConfigError(f"--set {text}: expected PYTHON:ARCH=FOLDER, such as 3.13:aarch64=wheels-313")
        return cls(python, machine, Path(folder))


@dataclass(frozen=True, slots=True)
class Client:
    """What the client's wheel says of itself."""

    version: str
    state_schema: int


def check_set(item: SetFolder) -> tuple[Path, ...]:
    """List the wheels of a set; all of them fit and pip finds nothing missing.

    Raises:
        ConfigError: the folder cannot become an environment on such a board.
    """
    try:
        wheels = check_wheelhouse(item.folder, python=item.python, architecture=item.machine)
    except UsageError as error:
        raise ConfigError(f"--set {item.python}:{item.machine}: {error}") from error
    for wheel in wheels:
        _check_no_url(wheel)
    platforms = [f"manylinux_2_{minor}_{item.machine}" for minor in _GLIBC_MINORS]
    platforms += [f"manylinux2014_{item.machine}", f"linux_{item.machine}"]
    # Not ``install --dry-run``: pips of Python 3.11's age then hold Requires-Python against this machine's Python.
    with tempfile.TemporaryDirectory(prefix="flchain-") as target:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
                *("--isolated", "--no-index", "--find-links", str(item.folder), "--dest", target),
                *("--only-binary=:all:", "--implementation", "cp", "--python-version", item.python),
                *(f"--platform={platform}" for platform in platforms),
                OURS.replace("_", "-"),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=PIP_TIMEOUT_S,
        )
    if done.returncode:
        why = " ".join(done.stderr.split())[-400:] or "pip failed"
        raise ConfigError(f"--set {item.python}:{item.machine}: {item.folder}: not complete: {why}")
    return wheels


def _check_no_url(wheel: Path) -> None:
    """Refuse a requirement with a URL: pip fetches it in spite of ``--no-index``, and builds what it finds."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            needs = BytesParser().parsebytes(_member(archive, name)).get_all("Requires-Dist", [])
    except (StopIteration, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{wheel}: not a wheel: {str(error) or 'it has no METADATA'}") from error
    # A name, extras and versions hold no "@" before the marker behind the semicolon.
    if found := next((need for need in needs if "@" in str(need).partition(";")[0]), None):
        raise ConfigError(f"{wheel}: requires {str(found)[:80]!r}: expected a name, wheels come from the folder only")


def read_client(wheels: tuple[Path, ...]) -> Client:
    """Version and state schema of the client among some wheels.

    Raises:
        ConfigError: there is not exactly one, or it lacks what every client has.
    """
    ours = [path for path in wheels if path.name.partition("-")[0].lower() == OURS]
    if len(ours) != 1:
        raise ConfigError(f"{len(ours)} wheels of {OURS}: expected one")
    try:
        with zipfile.ZipFile(ours[0]) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = BytesParser().parsebytes(_member(archive, name))
            return Client(str(metadata["Version"]), _constant(_member(archive, STATE_MODULE), STATE_CONSTANT))
    except (KeyError, StopIteration, ValueError, SyntaxError, OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{ours[0]}: not a wheel of the client: {error}") from error


def unpacked_bytes(wheels: tuple[Path, ...]) -> int:
    """Bytes that the wheels take on a board's disk.

    Raises:
        ConfigError: more than a board accepts, or a wheel cannot be read.
    """
    total = 0
    for path in wheels:
        try:
            with zipfile.ZipFile(path) as archive:
                total += sum(info.file_size for info in archive.infolist())
        except (OSError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{path}: {error}") from error
    if total > UNPACKED_BYTES_MAX:
        raise ConfigError(f"{total} bytes unpacked: expected at most {UNPACKED_BYTES_MAX}")
    return total


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MODULE_BYTES_MAX:
        raise ValueError(f"{name} is longer than {MODULE_BYTES_MAX} bytes")
    return archive.read(name)


def _constant(source: bytes, name: str) -> int:
    """Value of a module's integer constant, without running the module."""
    for node in ast.parse(source).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.Constant(value=int(value))) if found == name:
                return value
            case _:
                continue
    raise ValueError(f"no constant {name}")
