"""What the flasher asks of Linux, in one place: roots of the kernel's trees, device numbers, sizes, exclusive opening.

Every root can be another folder. A test gives a tree of files, and overrides only what a plain file cannot answer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware_profiles.errors import TargetRefusal, TargetRefusedError

# linux/fs.h: _IOR(0x12, 114, size_t) and _IO(0x12, 97).
BLKGETSIZE64: Final = 0x80081272
BLKFLSBUF: Final = 0x1261
ATTRIBUTE_BYTES_MAX: Final = 4096


@dataclass(frozen=True, order=True, slots=True)
class DeviceNumber:
    """Kernel's number of a block device: the identity that a path only points to."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> DeviceNumber:
        """From ``8:16``, as sysfs and mountinfo write it."""
        major, _, minor = text.strip().partition(":")
        return cls(int(major), int(minor))

    @classmethod
    def of(cls, number: int) -> DeviceNumber:
        """From st_dev or st_rdev."""
        return cls(os.major(number), os.minor(number))

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


@dataclass(frozen=True)
class Host:
    """This machine."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    udev: Path = Path("/run/udev/data")

    def block_number(self, path: Path | int) -> DeviceNumber | None:
        """Number of the block device at a path or behind a descriptor; None when it is something else.

        Raises:
            OSError: there is nothing.
        """
        status = os.fstat(path) if isinstance(path, int) else path.stat()
        return DeviceNumber.of(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None

    def filesystem_number(self, path: Path) -> DeviceNumber | None:
        """Number of the file system that holds a path; None when the path is not visible from here."""
        try:
            return DeviceNumber.of(path.stat().st_dev)
        except OSError:
            return None

    def open_exclusive(self, path: Path) -> int:
        """Open a device for writing, alone.

        O_EXCL on a block device is the kernel's own claim: it fails while a file system, swap, RAID, LVM or ZFS holds
        the device or a part of it, in any mount namespace. Without it the open would succeed.

        Raises:
            TargetRefusedError: somebody holds it, or it cannot be opened for writing.
        """
        try:
            return os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            reasons = {
                errno.EBUSY: TargetRefusal.BUSY,
                errno.EROFS: TargetRefusal.READ_ONLY,
                errno.EACCES: TargetRefusal.READ_ONLY,
                errno.EPERM: TargetRefusal.READ_ONLY,
                errno.ENOMEDIUM: TargetRefusal.EMPTY,
            }
            reason = reasons.get(error.errno or 0, TargetRefusal.NOT_FOUND)
            hint = " (run as root?)" if error.errno in {errno.EACCES, errno.EPERM} else ""
            raise TargetRefusedError(reason, f"{path}: cannot be opened alone: {error.strerror}{hint}") from error

    def size_bytes(self, descriptor: int) -> int:
        """Size of an open block device."""
        answer = fcntl.ioctl(descriptor, BLKGETSIZE64, b"\0" * 8)
        return int(struct.unpack("@Q", answer)[0])

    def drop_buffers(self, descriptor: int) -> None:
        """Make the kernel forget what it cached of an open block device."""
        fcntl.ioctl(descriptor, BLKFLSBUF)


def read_attribute(path: Path) -> str:
    """Text of a sysfs or procfs attribute without surrounding space; empty when it is not there or not readable."""
    try:
        with path.open("rb") as file:
            return file.read(ATTRIBUTE_BYTES_MAX).decode("utf-8", "replace").strip()
    except OSError:
        return ""
