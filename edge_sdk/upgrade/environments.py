"""Two environments side by side and two links, each moved atomically.

::

    /opt/flchain/a/                  an environment
    /opt/flchain/b/                  the other one; b/release.json is written last and makes it count
    /opt/flchain/current   -> a      what the device service runs
    /opt/flchain/committed -> a      what the updater itself runs: the last release that stood its trial

During a trial ``current`` names the new environment and ``committed`` the old one. So a release that cannot even start
Python is still taken back by code that has proved to work.

An environment is ``python -m venv --without-pip`` and unpacked wheels: neither pip nor a compiler runs on the board.
"""

from __future__ import annotations

import compileall
import logging
import os
import re
import shutil
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk.adapters import failpoints
from edge_sdk.adapters.durable_files import read_file, sync_directory, write_file
from edge_sdk.errors import StoreError, UpgradeError, UpgradeRefusedError
from edge_sdk.upgrade.wheel import Places, unpack

log: Final = logging.getLogger(__name__)

SLOTS: Final = ("a", "b")
CURRENT: Final = "current"
COMMITTED: Final = "committed"
MARKER: Final = "release.json"
_MARKER_BYTES_MAX: Final = 64 * 1024
NOT_COMPILED: Final = re.compile(
    r"/tests?/|/onnxruntime/(transformers|tools|quantization)/"
    r"|/numpy/(distutils|f2py|fft|ma|polynomial|testing)/"
    r"|/site-packages/(coordinator|flatbuffers|google|packaging|pycparser)/"
)
"""Tests, tools for authors, the edge server and what a device never imports: three quarters of all source."""


@dataclass(frozen=True, slots=True)
class Environments:
    """Both environments below one folder."""

    folder: Path

    def target(self, link: str) -> str | None:
        """Name of the environment that a link points at; None where there is no such link."""
        try:
            return (self.folder / link).readlink().name
        except OSError:
            return None

    def running(self) -> str:
        """The environment that the device service starts; makes the second link of a board that has only one.

        Raises:
            UpgradeError: the client was not installed here.
        """
        current = self.target(CURRENT)
        if current is None or not (self.path(current) / "bin" / "python").exists():
            raise UpgradeError(f"{self.folder / CURRENT}: expected a link to the environment that is installed")
        if self.target(COMMITTED) is None:
            self.point(COMMITTED, current)
        return current

    def path(self, slot: str) -> Path:
        """Folder of an environment."""
        return self.folder / slot

    def free(self) -> str:
        """The environment that no link names."""
        used = {self.target(CURRENT), self.target(COMMITTED)}
        return next(slot for slot in (*SLOTS, "c") if slot not in used)

    def is_complete(self, slot: str, marker: bytes) -> bool:
        """Whether an environment was built to its end from exactly these wheels."""
        return read_file(self.path(slot) / MARKER, bytes_max=_MARKER_BYTES_MAX) == marker

    def build(self, slot: str, wheels: Iterable[Path], marker: bytes, *, bytes_max: int) -> None:
        """Make an environment anew.

        Args:
            slot: The free one.
            wheels: Verified files.
            marker: What makes it count, written when all else is on the disk.
            bytes_max: Unpacked size of all wheels.

        Raises:
            UpgradeRefusedError: a wheel is not one.
            StoreError: the disk refuses.
        """
        assert slot not in {self.target(CURRENT), self.target(COMMITTED)}, slot
        folder = self.path(slot)
        try:
            self.clear(slot)
            venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
            places = Places(folder, _site_packages(folder))
            left_bytes = bytes_max
            for wheel in wheels:
                left_bytes -= unpack(wheel, places, bytes_max=left_bytes)
                failpoints.hit("upgrade.mid_build")
            # The device may not write here; without this each of its starts would compile everything again.
            compileall.compile_dir(places.site_packages, quiet=2, workers=1, rx=NOT_COMPILED)
            os.sync()
        except OSError as error:
            self._discard(slot)
            raise StoreError(f"{folder}: cannot be built: {error.strerror or error}") from error
        except UpgradeRefusedError:
            self._discard(slot)
            raise
        write_file(folder / MARKER, marker)
        log.info("environment %s is built", folder)

    def clear(self, slot: str) -> None:
        """Remove an environment; its marker first, so that a rest never counts.

        Raises:
            OSError: the disk refuses.
        """
        folder = self.path(slot)
        if folder.exists():
            (folder / MARKER).unlink(missing_ok=True)
            sync_directory(folder)
            shutil.rmtree(folder)

    def _discard(self, slot: str) -> None:
        """Give the room of half an environment back at once: on a full disk the device beside it needs it."""
        try:
            self.clear(slot)
        except OSError as error:
            log.warning("%s: cannot be removed: %s", self.path(slot), error.strerror)

    def point(self, link: str, slot: str) -> None:
        """Move a link: one rename, durable when it returns.

        Raises:
            StoreError: the disk refuses.
        """
        temporary = self.folder / f"{link}.new"
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(slot)
            temporary.replace(self.folder / link)
        except OSError as error:
            raise StoreError(f"{self.folder / link}: {error.strerror}") from error
        sync_directory(self.folder)


def _site_packages(folder: Path) -> Path:
    found = sorted((folder / "lib").glob("python3.*/site-packages"))
    if len(found) != 1:
        raise StoreError(f"{folder}: {len(found)} folders site-packages, expected one")
    return found[0]
