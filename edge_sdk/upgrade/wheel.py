"""Unpack a wheel into an environment: no pip on the board, no code of the wheel runs, every byte is bounded.

The archive's digest was signed, so what is inside is the publisher's; the checks here keep a mistake or a stolen key
from writing outside of the environment, which root does.

Source: packaging.python.org, binary distribution format (PEP 427) and entry points specification.
"""

from __future__ import annotations

import configparser
import errno
import re
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from edge_sdk.errors import UpgradeRefusedError

ENTRIES_MAX: Final = 20_000
ENTRY_POINTS_BYTES_MAX: Final = 64 * 1024
_OF_THE_ARCHIVE: Final = frozenset(
    {errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
)
"""Errors that its names and offsets cause: another disk would not help, and it is not asked again and again."""
_PLACEHOLDER: Final = b"#!python"
_COPY_BYTES: Final = 256 * 1024
_EXECUTABLE: Final = 0o755
_ENTRY: Final = re.compile(r"(?P<module>[A-Za-z_][\w.]*)\s*:\s*(?P<name>[A-Za-z_][\w.]*)\s*(?:\[.*\])?", re.ASCII)
_SCRIPT_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_SCRIPT: Final = """#!{python}
import sys

from {module} import {first}

if __name__ == "__main__":
    sys.exit({name}())
"""


@dataclass(frozen=True, slots=True)
class Places:
    """Folders of one environment."""

    prefix: Path
    site_packages: Path

    @property
    def scripts(self) -> Path:
        """Programs."""
        return self.prefix / "bin"

    @property
    def python(self) -> Path:
        """The interpreter that scripts name."""
        return self.scripts / "python"


def unpack(wheel: Path, places: Places, *, bytes_max: int) -> int:
    """Install one wheel.

    Returns:
        Bytes written.

    Raises:
        UpgradeRefusedError: the archive is damaged, too large, or has names that lead elsewhere.
        OSError: the disk refuses.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = archive.infolist()
            if len(entries) > ENTRIES_MAX:
                raise _refused(wheel, f"{len(entries)} entries, expected at most {ENTRIES_MAX}")
            written = 0
            for info in entries:
                if info.is_dir():
                    continue
                place = _place(wheel, info, places)
                written += _write(archive, info, place, bytes_max - written)
                if place.parent == places.scripts:
                    _name_interpreter(place, places.python)
            _write_scripts(wheel, archive, places)
            return written
    # RuntimeError: encrypted; ValueError: a name that is no UTF-8.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise _refused(wheel, str(error)) from error
    except OSError as error:
        if error.errno in _OF_THE_ARCHIVE:
            raise _refused(wheel, str(error.strerror)) from error
        raise


def _place(wheel: Path, info: zipfile.ZipInfo, places: Places) -> Path:
    """Where an entry belongs."""
    path = PurePosixPath(info.filename)
    is_plain = not path.is_absolute() and ".." not in path.parts and "\\" not in info.filename and path.parts
    kind = stat.S_IFMT(info.external_attr >> 16)
    if not is_plain or kind not in {0, stat.S_IFREG}:
        raise _refused(wheel, f"{info.filename[:80]!r} is not a plain file below the environment")
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        # The window of deflate is 32 KiB; an LZMA stream may ask for 4 GiB before it gives a byte.
        raise _refused(wheel, f"{info.filename[:80]!r} is compressed by method {info.compress_type}")
    if not path.parts[0].endswith(".data"):
        return places.site_packages.joinpath(*path.parts)
    if len(path.parts) < 3:  # NAME.data/KIND/FILE
        raise _refused(wheel, f"{info.filename[:80]!r} is of no known kind")
    _, kind_name, *rest = path.parts
    match kind_name:
        case "purelib" | "platlib":
            return places.site_packages.joinpath(*rest)
        case "scripts":
            return places.scripts.joinpath(*rest)
        case "data":
            return places.prefix.joinpath(*rest)
        case "headers":
            return places.prefix.joinpath("include", *rest)
        case _:
            raise _refused(wheel, f"{info.filename[:80]!r} is of no known kind")


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: Path, left_bytes: int) -> int:
    """Write one entry; its own claim of its size is not believed."""
    _make_room(place)
    written = 0
    with archive.open(info) as source, place.open("xb") as target:
        while data := source.read(_COPY_BYTES):
            written += len(data)
            if written > left_bytes:
                raise _refused(place, "the wheels unpack to more than the release says")
            target.write(data)
    if info.external_attr >> 16 & stat.S_IXUSR:
        place.chmod(_EXECUTABLE)
    return written


def _name_interpreter(script: Path, python: Path) -> None:
    """Let a script of a wheel run; ``#!python`` in its first line stands for the environment's interpreter."""
    text = script.read_bytes()
    if text.startswith(_PLACEHOLDER):
        script.write_bytes(b"#!" + str(python).encode() + text.removeprefix(_PLACEHOLDER))
    script.chmod(_EXECUTABLE)


def _write_scripts(wheel: Path, archive: zipfile.ZipFile, places: Places) -> None:
    """One program for each console script that the wheel declares."""
    name = next((name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")), None)
    if name is None:
        return
    if archive.getinfo(name).file_size > ENTRY_POINTS_BYTES_MAX:
        raise _refused(wheel, "entry_points.txt is too long")
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    try:
        parser.read_string(archive.read(name).decode())
    except (configparser.Error, UnicodeDecodeError) as error:
        raise _refused(wheel, f"entry_points.txt: {error}") from error
    scripts = parser["console_scripts"] if parser.has_section("console_scripts") else {}
    for script, value in scripts.items():
        entry = _ENTRY.fullmatch(value.strip())
        if entry is None or _SCRIPT_NAME.fullmatch(script) is None:
            raise _refused(wheel, f"console script {script[:40]!r} cannot be read")
        first = entry["name"].partition(".")[0]
        text = _SCRIPT.format(python=places.python, module=entry["module"], first=first, name=entry["name"])
        place = places.scripts / script
        _make_room(place)
        place.write_text(text, encoding="utf-8")
        place.chmod(_EXECUTABLE)


def _make_room(place: Path) -> None:
    """Ready a place for a new file. Links in an environment lead to the system's Python: nothing is written there."""
    if place.is_symlink():
        raise _refused(place, "a wheel must not replace a link of the environment")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)


def _refused(place: Path, text: str) -> UpgradeRefusedError:
    return UpgradeRefusedError(f"{place.name[:100]}: {text}", reason="wheel")
