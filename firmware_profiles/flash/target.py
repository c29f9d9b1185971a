"""May this target be written? Every check has a reason of its own; all are made before the first byte, in dry runs too.

There is no option that lets the running system's disk through.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from firmware_profiles.errors import ImageRefusedError, TargetRefusal, TargetRefusedError
from firmware_profiles.flash.disks import Disk, folder_of, holders, is_partition, load_disk, slaves
from firmware_profiles.flash.host import Host
from firmware_profiles.flash.medium import Medium
from firmware_profiles.flash.usage import (
    is_swap_file,
    loop_files,
    member_signature,
    mount_points,
    system_devices,
)
from firmware_profiles.image.inspect import volumes_of

SIZE_BYTES_MAX: Final = 256 * 10**9
"""Larger disks are hardly cards: refused unless the limit is raised by name."""
EMMC_AREA: Final = re.compile(r"mmcblk[0-9]+(?:boot[0-9]+|rpmb|gp[0-9]+)")
"""Look like disks of their own; the boot loader of a board may live there."""
OUTPUT_MODE: Final = 0o600
"""A customised image holds a claim token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the caller wants, and what he has said to allow it."""

    image: Path
    serial: str | None
    is_fixed_allowed: bool
    size_bytes_max: int = SIZE_BYTES_MAX


def resolve_disk(host: Host, path: Path) -> Disk:
    """Follow a path (of /dev/disk/by-id, for instance) to a whole disk.

    Raises:
        TargetRefusedError: nothing there, not a block device, a partition, or a device that rests on others.
    """
    try:
        number = host.block_number(path)
    except OSError as error:
        raise _refused(TargetRefusal.NOT_FOUND, f"{path}: {error.strerror}") from error
    folder = folder_of(host, number) if number is not None else None
    if number is None or folder is None:
        raise _refused(TargetRefusal.NOT_A_DISK, f"{path}: neither a disk nor a file")
    if is_partition(folder):
        raise _refused(TargetRefusal.PARTITION, f"{path}: a partition of {folder.parent.name}: expected the whole disk")
    if EMMC_AREA.fullmatch(folder.name):
        raise _refused(TargetRefusal.PARTITION, f"{path}: a hardware area of an eMMC: expected the whole disk")
    if below := slaves(folder):
        raise _refused(TargetRefusal.NOT_A_DISK, f"{path}: rests on {', '.join(below)}: expected a disk itself")
    return load_disk(host, folder)


def check_disk(host: Host, disk: Disk, demand: Demand) -> None:
    """Make every check that needs no open device.

    Raises:
        TargetRefusedError: one fails.
    """
    # The most dangerous mistake is told first, whatever else is wrong.
    _check_not_in_use(host, disk)
    if disk.is_read_only:
        raise _refused(TargetRefusal.READ_ONLY, f"{disk.path}: write-protected (look for a switch on the card)")
    if disk.size_bytes == 0:
        raise _refused(TargetRefusal.EMPTY, f"{disk.path}: no medium in it")
    if disk.size_bytes > demand.size_bytes_max:
        raise _refused(
            TargetRefusal.TOO_LARGE,
            f"{disk.path}: {disk.size_bytes} bytes, more than a card has ({demand.size_bytes_max}): see --max-gb",
        )
    if demand.serial is not None and (demand.serial != disk.serial or not demand.serial):
        raise _refused(TargetRefusal.SERIAL, f"{disk.path}: has serial {disk.serial or 'none'}, not {demand.serial}")
    if not disk.is_pluggable and not (demand.is_fixed_allowed and demand.serial is not None):
        raise _refused(
            TargetRefusal.FIXED,
            f"{disk.path}: a fixed disk ({disk.transport}): needs --allow-fixed and --serial {disk.serial or '(none)'}",
        )


def check_room(path: Path, have_bytes: int, need_bytes: int) -> None:
    """Refuse a target that is smaller than the image.

    Raises:
        TargetRefusedError: it is.
    """
    if have_bytes < need_bytes:
        raise _refused(TargetRefusal.TOO_SMALL, f"{path}: room for {have_bytes} bytes, the image has {need_bytes}")


def open_disk(host: Host, disk: Disk, path: Path) -> Medium:
    """Open a checked disk alone, and check again what could have changed since.

    Raises:
        TargetRefusedError: held by somebody, another disk than was checked, or a member of a volume group.
    """
    descriptor = host.open_exclusive(path)
    medium = Medium(host, descriptor, name=str(disk.path), is_block=True)
    try:
        _check_same(host, descriptor, disk, path)
        _check_not_in_use(host, disk)
        _check_signatures(medium, disk)
    except BaseException:
        medium.close()
        raise
    return medium


def check_file(host: Host, path: Path, demand: Demand) -> None:
    """Check a regular file as target.

    Raises:
        TargetRefusedError: it is the image, swaps, backs a loop device, exists with content, or cannot be written.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise _refused(TargetRefusal.NOT_FOUND, f"{path}: no such folder") from None
        _check_writable(path.parent, path)
        if path.is_symlink() or _is_below(path.parent.resolve(), host.dev):
            # A mistyped device would otherwise become a file in /dev that fills the memory.
            raise _refused(TargetRefusal.NOT_FOUND, f"{path}: no such device") from None
        return
    if not stat.S_ISREG(status.st_mode):
        raise _refused(TargetRefusal.NOT_A_DISK, f"{path}: neither a disk nor a regular file")
    if path.samefile(demand.image):
        raise _refused(TargetRefusal.IS_IMAGE, f"{path}: is the image itself")
    if is_swap_file(host, path):
        raise _refused(TargetRefusal.SYSTEM_DISK, f"{path}: the running system swaps to it")
    for name, identity in loop_files(host):
        if identity == (status.st_dev, status.st_ino):
            raise _refused(TargetRefusal.IN_USE, f"{path}: is behind {name}")
    if status.st_size:
        raise _refused(TargetRefusal.FILE_EXISTS, f"{path}: exists and is not empty; nothing is overwritten")
    _check_writable(path, path)


def open_file(host: Host, path: Path) -> Medium:
    """Open or create a checked file; its content stays until the first write.

    Raises:
        TargetRefusedError: it cannot be opened for writing, or is another one by now.
    """
    try:
        try:  # O_EXCL follows no link to a place where a file is to be
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OUTPUT_MODE)
        except FileExistsError:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(TargetRefusal.READ_ONLY, f"{path}: {error.strerror}") from error
    medium = Medium(host, descriptor, name=str(path), is_block=False)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        medium.close()
        raise _refused(TargetRefusal.CHANGED, f"{path}: is not the file any more that was checked")
    return medium


def is_device(host: Host, path: Path) -> bool:
    """Whether a target is meant to be a device rather than a file."""
    try:
        return host.block_number(path) is not None
    except OSError:
        return False


def labels_of(medium: Medium) -> tuple[str, ...]:
    """Labels of what is on a medium now, for the person who confirms."""
    try:
        _, volumes = volumes_of(medium.peek, medium.size_bytes)
    except ImageRefusedError:
        return ("(damaged partition table)",)
    names = [volume.filesystem.label if volume.filesystem else volume.partition.name for volume in volumes]
    return tuple(name for name in names if name)


def check_still(host: Host, medium: Medium, disk: Disk, path: Path) -> None:
    """Look at an open disk once more, after a person has thought about it: a reader keeps its name when the card goes.

    Raises:
        TargetRefusedError: it is another one, or gone.
    """
    if medium.size_bytes != disk.size_bytes or resolve_disk(host, path).identity != disk.identity:
        raise _refused(TargetRefusal.CHANGED, f"{path}: is not the disk any more that was checked")


def _check_same(host: Host, descriptor: int, disk: Disk, path: Path) -> None:
    is_same = host.block_number(descriptor) == disk.number and host.size_bytes(descriptor) == disk.size_bytes
    if not is_same or resolve_disk(host, path).identity != disk.identity:
        raise _refused(TargetRefusal.CHANGED, f"{path}: is not the disk any more that was checked")


def _check_not_in_use(host: Host, disk: Disk) -> None:
    if disk.name in system_devices(host):
        raise _refused(TargetRefusal.SYSTEM_DISK, f"{disk.path}: the running system lives on it")
    if points := mount_points(host, disk):
        raise _refused(TargetRefusal.MOUNTED, f"{disk.path}: mounted at {', '.join(points)}: unmount it first")
    for node in disk.nodes:
        folder = disk.folder if node == disk.name else disk.folder / node
        if names := holders(folder):
            raise _refused(TargetRefusal.IN_USE, f"{disk.path}: {node} is held by {', '.join(names)}")


def _check_signatures(medium: Medium, disk: Disk) -> None:
    """ZFS and inactive volume groups hold nothing in sysfs: their marks on the disk and its partitions tell."""
    areas = [(disk.name, 0, disk.size_bytes)]
    try:
        _, volumes = volumes_of(medium.peek, disk.size_bytes)
    except ImageRefusedError:
        volumes = ()  # a damaged table leads nowhere
    areas += [
        (f"partition {volume.partition.index}", volume.partition.start_bytes, volume.partition.size_bytes)
        for volume in volumes
        if volume.partition.size_bytes
    ]
    for name, start, size in areas:
        kind = member_signature(partial(_peek_from, medium, start), size)
        if kind is not None:
            raise _refused(
                TargetRefusal.IN_USE, f"{disk.path}: {name} belongs to {kind}; if it is to go, wipefs --all it first"
            )


def _peek_from(medium: Medium, start: int, offset: int, count: int) -> bytes:
    return medium.peek(start + offset, count)


def _check_writable(place: Path, path: Path) -> None:
    if not os.access(place, os.W_OK):
        raise _refused(TargetRefusal.READ_ONLY, f"{path}: may not be written")


def _is_below(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def _refused(reason: TargetRefusal, message: str) -> TargetRefusedError:
    return TargetRefusedError(reason, message)
