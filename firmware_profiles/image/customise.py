"""Vendor image in, image of one board out: the seed is added to a copy, read back and compared.

The copy gets its name only when everything holds, so that half an image is never mistaken for a whole one.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from firmware_profiles.errors import FirmwareError, ImageRefusal, ImageRefusedError, UsageError
from firmware_profiles.flash.manifest import manifest_text
from firmware_profiles.flash.survey import Advance
from firmware_profiles.image.container import check_is_disk, file_digest, sniff, stream
from firmware_profiles.image.inspect import Volume, volumes_of
from firmware_profiles.image.seed import (
    EXT_FOLDER,
    FAT_FOLDER,
    FIRSTBOOT_LINK,
    FIRSTBOOT_UNIT,
    Files,
    Payload,
    folder_on_board,
    payload_files,
    system_files,
)
from firmware_profiles.image.volumes import ExtVolume, FatVolume, SeedFile, WritableVolume
from firmware_profiles.profile import BoardProfile, InitFormat

CONTENT_BYTES_MAX: Final = 64 * 10**9
PRIVATE_MODE: Final = 0o600
_HOLE: Final = 4096
_ZEROS: Final = bytes(_HOLE)
# A file that shows that the system understands its seed; the declaration decides, this only refuses a wrong one.
_MARKS: Final = {
    InitFormat.CLOUDINIT: PurePosixPath("etc/cloud/cloud.cfg"),
    InitFormat.CLOUDINIT_RPI: PurePosixPath("etc/cloud/cloud.cfg"),
    InitFormat.L4T_ROOTFS: PurePosixPath("etc/nv_tegra_release"),
}


@dataclass(frozen=True, slots=True)
class Customised:
    """What was made."""

    path: Path
    sha256: str
    size_bytes: int
    seed_volume: str
    files: tuple[PurePosixPath, ...]


def customise(
    image: Path,
    out: Path,
    *,
    profile: BoardProfile,
    payload: Payload,
    init_format: InitFormat,
    advance: Advance,
) -> Customised:
    """Write a copy of ``image`` for one board, and its manifest ``OUT.json``.

    Raises:
        UsageError: the output exists, or device.toml is for another board.
        ImageRefusedError: the image is unusable, of another system, or has no room.
        FirmwareError: a program is missing, or the seed does not read back.
    """
    if out.exists():
        raise UsageError(f"{out}: exists")
    if "?" in str(out) or "@@" in str(out):
        raise UsageError(f"{out}: '?' and '@@' mean an offset to debugfs and mtools")
    if payload.identity.board not in {None, profile.board_id}:
        raise UsageError(f"device.toml is for board {payload.identity.board}, not for {profile.board_id}")
    partial = out.with_name(f"{out.name}.partial")
    try:
        size_bytes = _copy(image, partial, advance)
        volumes = _volumes(partial, size_bytes)
        volume, name, folder = _seed_volume(partial, volumes, profile, init_format)
        _check_system(partial, volumes, init_format)
        files = _seed(volume, folder, payload, profile, init_format)
        with tempfile.TemporaryDirectory(prefix=".seed-", dir=out.parent) as stage:
            _put(volume, files, Path(stage))
        if init_format is InitFormat.L4T_ROOTFS:
            assert isinstance(volume, ExtVolume)
            volume.link(FIRSTBOOT_LINK, f"/{FIRSTBOOT_UNIT}")
        _check_seed(volume, files)
        _sync(partial)
        digest = file_digest(partial)
        manifest = manifest_text(
            sha256=digest, size_bytes=size_bytes, compatible=(profile.board_id,), init_format=init_format
        )
        out.with_name(f"{out.name}.json").write_text(manifest, encoding="utf-8")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return Customised(out, digest, size_bytes, name, tuple(sorted(files)))


def _copy(image: Path, out: Path, advance: Advance) -> int:
    """Unpack; blocks of zeros become holes."""
    total = 0
    # What a run that was cut off left; never through a link, and never a file that others could read already.
    out.unlink(missing_ok=True)
    descriptor = os.open(out, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_MODE)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor with its mode
        for data in stream(image, sniff(image), bytes_max=CONTENT_BYTES_MAX):
            for start in range(0, len(data), _HOLE):
                block = data[start : start + _HOLE]
                if block != _ZEROS[: len(block)]:
                    file.seek(total + start)
                    file.write(block)
            total += len(data)
            advance(len(data))
        file.truncate(total)
    return total


def _volumes(path: Path, size_bytes: int) -> tuple[Volume, ...]:
    with path.open("rb") as file:

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        check_is_disk(read(0, 8192), path)
        _, volumes = volumes_of(read, size_bytes)
    return volumes


def _seed_volume(
    path: Path, volumes: tuple[Volume, ...], profile: BoardProfile, init_format: InitFormat
) -> tuple[WritableVolume, str, PurePosixPath]:
    """The volume that takes the seed, its name for people, and our folder in it."""
    label = profile.image.seed_label
    if label is not None and init_format is not InitFormat.L4T_ROOTFS:
        for volume in volumes:
            filesystem = volume.filesystem
            if filesystem is not None and filesystem.is_fat and filesystem.label.lower() == label.lower():
                name = f"partition {volume.partition.index}, {filesystem.kind} {filesystem.label}"
                return FatVolume(path, volume.partition.start_bytes), name, FAT_FOLDER
        raise ImageRefusedError(ImageRefusal.WRONG_SYSTEM, f"no FAT volume with the label {label}")
    for volume, root in _roots(path, volumes):
        return root, f"partition {volume.partition.index}, root file system", EXT_FOLDER
    raise ImageRefusedError(ImageRefusal.WRONG_SYSTEM, "no ext4 root file system")


def _roots(path: Path, volumes: tuple[Volume, ...]) -> list[tuple[Volume, ExtVolume]]:
    """Ext volumes that hold a system: os-release is there, as file or as link to usr/lib."""
    found = []
    for volume in volumes:
        if volume.filesystem is not None and volume.filesystem.is_ext:
            root = ExtVolume(path, volume.partition.start_bytes)
            names = (PurePosixPath("etc/os-release"), PurePosixPath("usr/lib/os-release"))
            if any(root.read(name) is not None for name in names):
                found.append((volume, root))
    return found


def _check_system(path: Path, volumes: tuple[Volume, ...], init_format: InitFormat) -> None:
    """Refuse an image whose system would silently ignore the seed."""
    mark = _MARKS.get(init_format)
    if mark is not None and not any(root.read(mark) is not None for _, root in _roots(path, volumes)):
        raise ImageRefusedError(
            ImageRefusal.WRONG_SYSTEM, f"its system has no /{mark}: a {init_format} seed would be ignored"
        )


def _seed(
    volume: WritableVolume, folder: PurePosixPath, payload: Payload, profile: BoardProfile, init_format: InitFormat
) -> Files:
    boot_mount = profile.image.boot_mount if folder == FAT_FOLDER else None
    system = system_files(
        init_format,
        payload,
        boot_mount=boot_mount,
        cmdline=volume.read(PurePosixPath("cmdline.txt")) if init_format is InitFormat.FIRSTRUN else None,
    )
    ours = payload_files(payload, folder_on_board(boot_mount))
    return {folder / name: content for name, content in ours.items()} | system


def _put(volume: WritableVolume, files: Files, stage: Path) -> None:
    """Stage every file under a number and hand it to the volume."""
    seeds = []
    for index, (path, content) in enumerate(sorted(files.items())):
        source = content.data
        if isinstance(source, bytes):
            source = stage / str(index)
            source.write_bytes(content.data if isinstance(content.data, bytes) else b"")
        seeds.append(SeedFile(path, source.resolve(), content.mode))
    volume.put(tuple(seeds))


def _check_seed(volume: WritableVolume, files: Files) -> None:
    for path, content in files.items():
        expected = content.data if isinstance(content.data, bytes) else content.data.read_bytes()
        found = volume.read(path)
        if found != expected:
            what = "is not there" if found is None else "differs"
            raise FirmwareError(f"seed file {path} {what} after it was written: nothing was kept")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
