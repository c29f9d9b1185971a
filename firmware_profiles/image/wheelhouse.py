"""A folder of wheels that installs the client without a network: every wheel must fit the board's Python and CPU.

Names of wheels: packaging.python.org, binary distribution format; compatibility tags of PEP 425.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from firmware_profiles.errors import UsageError

WHEELS_MAX: Final = 200
WHEELHOUSE_BYTES_MAX: Final = 2**30
OURS: Final = "edge_flchain"
_PYTHON: Final = re.compile(r"3\.([0-9]{1,2})")
_WHEEL: Final = re.compile(
    r"(?P<name>[A-Za-z0-9_.]+)-[A-Za-z0-9_.+!]+(?:-[0-9][A-Za-z0-9_.]*)?"
    r"-(?P<python>[a-z0-9_.]+)-(?P<abi>[a-z0-9_.]+)-(?P<platform>[A-Za-z0-9_.]+)\.whl"
)
_LINUX: Final = re.compile(r"(?:linux|manylinux(?:1|2010|2014|_[0-9]+_[0-9]+))_(?P<cpu>\w+)")


def check_wheelhouse(folder: Path, *, python: str, architecture: str) -> tuple[Path, ...]:
    """List the wheels of a folder.

    Args:
        folder: Made by ``pip download --only-binary=:all:`` for the board.
        python: ``3.13``.
        architecture: ``aarch64``.

    Raises:
        UsageError: a file that is no wheel, a wheel for another Python or CPU, two of one package, none of ours.
    """
    version = _PYTHON.fullmatch(python)
    if version is None:
        raise UsageError(f"Python {python!r}: expected 3.N")
    try:
        wheels = tuple(sorted(folder.iterdir()))
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}") from error
    if len(wheels) > WHEELS_MAX or sum(wheel.stat().st_size for wheel in wheels) > WHEELHOUSE_BYTES_MAX:
        raise UsageError(f"{folder}: more than {WHEELS_MAX} files or {WHEELHOUSE_BYTES_MAX} bytes")
    names = set()
    for wheel in wheels:
        parts = _WHEEL.fullmatch(wheel.name)
        if parts is None or not wheel.is_file():
            raise UsageError(f"{wheel}: not a wheel")
        if not _is_python(parts, int(version[1])) or not _is_cpu(parts["platform"], architecture):
            raise UsageError(f"{wheel.name}: is not for Python {python} on {architecture}")
        name = parts["name"].lower().replace(".", "_")
        if name in names:
            raise UsageError(f"{folder}: two wheels of {name}: expected one, the board unpacks them all")
        names.add(name)
    if OURS not in names:
        raise UsageError(f"{folder}: has no wheel of the client ({OURS}-...-py3-none-any.whl)")
    return wheels


def _is_python(parts: re.Match[str], minor: int) -> bool:
    for tag in parts["python"].split("."):
        if tag in {"py3", f"py3{minor}", f"cp3{minor}"}:
            return True
        is_stable = "abi3" in parts["abi"].split(".") and re.fullmatch(r"cp3[0-9]+", tag)
        if is_stable and int(tag[3:]) <= minor:
            return True
    return False


def _is_cpu(platform: str, architecture: str) -> bool:
    if platform == "any":
        return True
    matches = [_LINUX.fullmatch(tag) for tag in platform.split(".")]
    return any(match is not None and match["cpu"] == architecture for match in matches)
