"""Two ways to take the disk away from a running process, and to give it back.

``SmallDisk`` is a real full disk: a small tmpfs that is filled to the last byte, so that every write ends with ENOSPC.
Mounting it needs root. ``forbid_writes`` needs no rights: with RLIMIT_FSIZE 0 every write of the process to a file
ends with EFBIG (CPython ignores the signal), also those to its log.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from pathlib import Path
from typing import Final

_BLOCK: Final = bytes(64 * 1024)
_BYTE: Final = bytes(1)


class SmallDisk:
    """A tmpfs over a folder that is made for it."""

    def __init__(self, folder: Path, *, size_mib: int) -> None:
        """Mount it.

        Raises:
            PermissionError: this user may not mount.
        """
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "tmpfs", str(folder)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            folder.rmdir()
            raise PermissionError(finished.stderr.strip())
        self._folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave not one byte."""
        with self._ballast.open("ab", buffering=0) as file:
            for piece in (_BLOCK, _BYTE):
                try:
                    while True:
                        file.write(piece)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount; the content is gone."""
        subprocess.run(["umount", "-l", str(self._folder)], check=True)


def can_mount(folder: Path) -> bool:
    """Whether this user may mount a tmpfs."""
    if os.geteuid() != 0:
        return False
    try:
        SmallDisk(folder / "probe", size_mib=1).close()
    except PermissionError:
        return False
    return True


def forbid_writes(pid: int) -> None:
    """Let every write of a process to a file fail from now on."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))


def allow_writes(pid: int) -> None:
    """Take ``forbid_writes`` back."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
