"""Errors of the flasher and the image tool; each names who is at fault, and that decides the exit status.

FirmwareError                1  something else failed: a program is missing, a folder cannot be written
  UsageError (ValueError)    2  the command line or a file given on it is wrong
  TargetRefusedError         3  the target may not be written (.reason); nothing was written
  ImageRefusedError          4  the image may not be written (.reason)
  MediumError                5  the medium does not hold what was written (.offset)
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class TargetRefusal(StrEnum):
    """Why a target may not be written; one value per check, so that each can be counted and tested."""

    NOT_FOUND = "not-found"
    NOT_A_DISK = "not-a-disk"
    PARTITION = "partition"
    CHANGED = "changed"
    READ_ONLY = "read-only"
    EMPTY = "empty"
    TOO_SMALL = "too-small"
    TOO_LARGE = "too-large"
    SYSTEM_DISK = "system-disk"
    MOUNTED = "mounted"
    IN_USE = "in-use"
    BUSY = "busy"
    FIXED = "fixed"
    SERIAL = "serial"
    NOT_CONFIRMED = "not-confirmed"
    FILE_EXISTS = "file-exists"
    IS_IMAGE = "is-image"


class ImageRefusal(StrEnum):
    """Why an image may not be written or customised."""

    NOT_FOUND = "not-found"
    UNKNOWN_FORMAT = "unknown-format"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_LARGE = "too-large"
    NO_CHECKSUM = "no-checksum"
    WRONG_CHECKSUM = "wrong-checksum"
    WRONG_BOARD = "wrong-board"
    CHANGED = "changed"
    BAD_BLOCK_MAP = "bad-block-map"
    BAD_MANIFEST = "bad-manifest"
    WRONG_SYSTEM = "wrong-system"
    NO_ROOM = "no-room"


class FirmwareError(Exception):
    """Root of every error raised on purpose here; its text is safe to show."""

    exit_status: ClassVar[int] = 1


class UsageError(FirmwareError, ValueError):
    """A wrong option, or a file given by an option that is not what it should be."""

    exit_status = 2


class TargetRefusedError(FirmwareError):
    """The target may not be written."""

    exit_status = 3

    def __init__(self, reason: TargetRefusal, message: str) -> None:
        """Keep the countable reason."""
        super().__init__(message)
        self.reason = reason


class ImageRefusedError(FirmwareError):
    """The image may not be written."""

    exit_status = 4

    def __init__(self, reason: ImageRefusal, message: str) -> None:
        """Keep the countable reason."""
        super().__init__(message)
        self.reason = reason


class MediumError(FirmwareError):
    """The medium does not hold what was written to it."""

    exit_status = 5

    def __init__(self, message: str, *, offset: int) -> None:
        """Keep the offset of the first bad byte."""
        super().__init__(message)
        self.offset = offset
