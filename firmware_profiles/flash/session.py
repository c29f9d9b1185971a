"""``flash write`` and ``flash verify`` from the first check to the last compared byte.

A dry run goes the same way, opens the target as the real run does, and stops before the first write.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firmware_profiles.errors import ImageRefusal, ImageRefusedError, TargetRefusal, TargetRefusedError, UsageError
from firmware_profiles.flash import writer
from firmware_profiles.flash.block_map import load_block_map
from firmware_profiles.flash.disks import Disk
from firmware_profiles.flash.host import Host
from firmware_profiles.flash.manifest import check_board, check_digests, load_expectation
from firmware_profiles.flash.medium import Medium
from firmware_profiles.flash.progress import Progress
from firmware_profiles.flash.run_log import RunLog
from firmware_profiles.flash.survey import Survey, survey
from firmware_profiles.flash.target import (
    SIZE_BYTES_MAX,
    Demand,
    check_disk,
    check_file,
    check_room,
    check_still,
    is_device,
    labels_of,
    open_disk,
    open_file,
    resolve_disk,
)
from firmware_profiles.image.container import Container, sniff

Confirm = Callable[[Disk, tuple[str, ...]], bool]
"""Shows a disk and its labels to a person; whether he wants it erased."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOrder:
    """The options of ``flash write``."""

    image: Path
    target: Path
    serial: str | None = None
    sha256: str | None = None
    profile: str | None = None
    block_map: Path | None = None
    is_dry_run: bool = False
    is_confirmed: bool = False
    is_fixed_allowed: bool = False
    size_bytes_max: int = SIZE_BYTES_MAX


def write_image(order: WriteOrder, host: Host, *, confirm: Confirm, progress: Progress, log: RunLog) -> Survey:
    """Check, write, verify.

    Raises:
        TargetRefusedError, ImageRefusedError: before the first byte was written.
        MediumError: while writing or comparing.
    """
    log.event("start", image=order.image, target=order.target, dry_run=order.is_dry_run)
    # The target first: a refusal should not wait for gigabytes to be hashed.
    disk = _check_target(order, host)
    expectation = load_expectation(order.image, sha256=order.sha256)
    if order.profile is not None:
        check_board(expectation, order.profile)
    image = _survey_for(order, disk, progress)
    check_digests(expectation, content=image.content_sha256, file=image.file_sha256)
    log.event("image", bytes=image.content_bytes, sha256=image.content_sha256, mapped_bytes=image.mapped_bytes)
    if disk is not None:
        with open_disk(host, disk, order.target) as medium:
            if not order.is_confirmed and not confirm(disk, labels_of(medium)):
                raise TargetRefusedError(TargetRefusal.NOT_CONFIRMED, f"{disk.path}: not confirmed")
            check_still(host, medium, disk, order.target)
            if not order.is_dry_run:
                writer.write(image, medium, phase=progress.phase)
    elif not order.is_dry_run:
        with open_file(host, order.target) as medium:
            medium.set_size(image.content_bytes)
            writer.write(image, medium, phase=progress.phase)
    log.event("dry-run" if order.is_dry_run else "done", bytes=image.mapped_bytes)
    return image


def verify_image(
    image: Path, target: Path, host: Host, *, block_map: Path | None, progress: Progress, log: RunLog
) -> Survey:
    """Compare a device or file with an image; the target is opened for reading only.

    Raises:
        ImageRefusedError: the image itself is unusable.
        TargetRefusedError: there is no such target.
        MediumError: they differ.
    """
    log.event("start", image=image, target=target)
    is_disk = is_device(host, target)
    if not is_disk and not target.is_file():  # opening a pipe would wait for ever
        raise TargetRefusedError(TargetRefusal.NOT_FOUND, f"{target}: neither a disk nor a file")
    try:
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise TargetRefusedError(TargetRefusal.NOT_FOUND, f"{target}: {error.strerror}") from error
    with Medium(host, descriptor, name=str(target), is_block=is_disk) as medium:
        found = _survey(image, block_map, SIZE_BYTES_MAX, progress)
        writer.verify(found, medium, phase=progress.phase)
    log.event("done", bytes=found.mapped_bytes, sha256=found.content_sha256)
    return found


def _check_target(order: WriteOrder, host: Host) -> Disk | None:
    """The checked disk, or None for a checked file."""
    demand = Demand(
        image=order.image,
        serial=order.serial,
        is_fixed_allowed=order.is_fixed_allowed,
        size_bytes_max=order.size_bytes_max,
    )
    if not order.image.is_file():
        raise ImageRefusedError(ImageRefusal.NOT_FOUND, f"{order.image}: no such file")
    if not is_device(host, order.target):
        check_file(host, order.target, demand)
        return None
    if order.is_confirmed and order.serial is None:
        raise UsageError("--yes is taken for a disk only together with --serial")
    disk = resolve_disk(host, order.target)
    check_disk(host, disk, demand)
    return disk


def _survey_for(order: WriteOrder, disk: Disk | None, progress: Progress) -> Survey:
    """Survey bounded by the room there is: a bomb is stopped where it would not fit."""
    folder = order.target.parent
    room_bytes = disk.size_bytes if disk else shutil.disk_usage(folder).free
    if sniff(order.image) is Container.RAW:
        check_room(order.target, room_bytes, order.image.stat().st_size)
    bytes_max = min(room_bytes, order.size_bytes_max)
    try:
        return _survey(order.image, order.block_map, bytes_max, progress)
    except ImageRefusedError as error:
        if error.reason is ImageRefusal.TOO_LARGE and bytes_max == room_bytes:
            raise TargetRefusedError(TargetRefusal.TOO_SMALL, f"{order.target}: {error}") from error
        raise


def _survey(image: Path, block_map: Path | None, bytes_max: int, progress: Progress) -> Survey:
    blocks = load_block_map(block_map) if block_map else None
    return survey(image, bytes_max=bytes_max, block_map=blocks, advance=progress.phase("checking image", 0))
