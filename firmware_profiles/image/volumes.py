"""Files in the volumes of an image, without root, mounts and loop devices.

FAT by the programs of mtools, ext4 by debugfs of e2fsprogs, both at an offset inside of the image: they are what
distributions ship and repair with, and a second implementation of two file systems would be ours to keep correct.
Neither tells errors reliably by its exit status, so ``customise`` reads every file back and compares.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from firmware_profiles.errors import FirmwareError, ImageRefusal, ImageRefusedError

PROGRAM_S_MAX: Final = 600
_FULL: Final = ("disk full", "no space", "could not allocate")


@dataclass(frozen=True, slots=True)
class SeedFile:
    """A file to put into a volume: where, what, and its mode where the file system has modes."""

    path: PurePosixPath
    source: Path
    """Staged copy on this machine."""
    mode: int = 0o644


class WritableVolume(Protocol):
    """One file system inside of an image."""

    def put(self, files: tuple[SeedFile, ...]) -> None:
        """Write files, with their folders; existing ones are replaced."""

    def read(self, path: PurePosixPath) -> bytes | None:
        """Content of a file; None when there is none."""


@dataclass(frozen=True, slots=True)
class FatVolume:
    """A FAT file system that starts ``offset`` bytes into an image."""

    image: Path
    offset: int

    def put(self, files: tuple[SeedFile, ...]) -> None:
        """Write files; FAT keeps no modes.

        Raises:
            ImageRefusedError: no room.
            FirmwareError: mtools is missing or fails.
        """
        for folder in _folders(files):
            self._run("mmd", "-D", "s", f"::/{folder}", is_checked=False)  # fails where it exists
        for file in files:
            self._run("mcopy", "-o", "-Q", str(file.source), f"::/{file.path}")

    def read(self, path: PurePosixPath) -> bytes | None:
        """Content of a file; None when there is none."""
        done = self._run("mcopy", "-Q", f"::/{path}", "-", is_checked=False)
        return done.stdout if done.returncode == 0 else None

    def _run(self, name: str, *arguments: str, is_checked: bool = True) -> subprocess.CompletedProcess[bytes]:
        command = (_program(name, "mtools"), "-i", f"{self.image}@@{self.offset}", *arguments)
        # No settings of the person who runs it, and no questions.
        environment = {**os.environ, "MTOOLSRC": os.devnull, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROGRAM_S_MAX,
            check=False,
        )
        if is_checked and done.returncode != 0:
            raise _failure(name, done.stderr)
        return done


@dataclass(frozen=True, slots=True)
class ExtVolume:
    """An ext2, ext3 or ext4 file system that starts ``offset`` bytes into an image."""

    image: Path
    offset: int

    def put(self, files: tuple[SeedFile, ...]) -> None:
        """Write files, owned by root, with their modes.

        Raises:
            ImageRefusedError: no room.
            FirmwareError: debugfs is missing or fails.
        """
        commands = [f"mkdir /{folder}" for folder in _folders(files)]
        for file in files:
            path = f"/{file.path}"
            commands += [f"rm {path}", f'write "{file.source}" {path}']
            commands += [f"set_inode_field {path} mode 0{0o100000 | file.mode:o}"]
            commands += [f"set_inode_field {path} {owner} 0" for owner in ("uid", "gid")]
        self._script(commands)

    def link(self, path: PurePosixPath, target: str) -> None:
        """Make a symbolic link, with its folders."""
        folders = [f"mkdir /{folder}" for folder in reversed(path.parents) if str(folder) != "."]
        self._script([*folders, f"rm /{path}", f"symlink /{path} {target}"])

    def read(self, path: PurePosixPath) -> bytes | None:
        """Content of a regular file; None when there is none."""
        found = self._run("-R", f"stat /{path}").stdout
        if b"Type: regular" not in found:
            return None
        return self._run("-R", f"cat /{path}").stdout

    def _script(self, commands: list[str]) -> None:
        done = self._run("-w", "-f", "-", script="\n".join(commands) + "\n")
        if done.returncode != 0 or any(text in done.stderr.decode(errors="replace").lower() for text in _FULL):
            raise _failure("debugfs", done.stderr)

    def _run(self, *arguments: str, script: str = "") -> subprocess.CompletedProcess[bytes]:
        command = (_program("debugfs", "e2fsprogs"), *arguments, f"{self.image}?offset={self.offset}")
        return subprocess.run(
            command,
            input=script.encode(),
            env={**os.environ, "LC_ALL": "C.UTF-8", "DEBUGFS_PAGER": "cat"},
            capture_output=True,
            timeout=PROGRAM_S_MAX,
            check=False,
        )


def _folders(files: tuple[SeedFile, ...]) -> tuple[PurePosixPath, ...]:
    """Every folder of the files, parents first."""
    found = {parent for file in files for parent in file.path.parents if str(parent) != "."}
    return tuple(sorted(found, key=lambda folder: (len(folder.parts), folder)))


def _program(name: str, package: str) -> str:
    # Debian keeps debugfs out of the path of ordinary users.
    program = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        raise FirmwareError(f"needs the program {name} (Debian: apt-get install {package})")
    return program


def _failure(name: str, stderr: bytes) -> FirmwareError:
    text = stderr.decode("utf-8", "replace").strip()
    if any(word in text.lower() for word in _FULL):
        return ImageRefusedError(ImageRefusal.NO_ROOM, f"the volume of the image is full: {text[-200:]}")
    return FirmwareError(f"{name}: {text[-300:] or 'failed'}")
