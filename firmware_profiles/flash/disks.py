"""Block devices as sysfs shows them: whole disks, their partitions, how they are attached, what is stacked on them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware_profiles.flash.host import DeviceNumber, Host, read_attribute
from firmware_profiles.image.filesystems import printable

SECTOR_BYTES: Final = 512
"""Unit of ``size`` in sysfs, whatever the device's own sectors are (Documentation/ABI/stable/sysfs-block)."""
STACK_DEPTH_MAX: Final = 16
# First match decides; the path of a device names every bus on the way to it.
TRANSPORTS: Final = (
    ("usb", re.compile(r"/usb\d")),
    ("mmc", re.compile(r"/mmc_host/")),
    ("nvme", re.compile(r"/nvme/")),
    ("virtio", re.compile(r"/virtio\d")),
    ("sata", re.compile(r"/ata\d")),
    ("virtual", re.compile(r"/devices/virtual/")),
)
PLUGGABLE: Final = frozenset({"usb", "mmc"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One whole disk."""

    name: str
    path: Path
    number: DeviceNumber
    model: str
    serial: str
    size_bytes: int
    transport: str
    is_read_only: bool
    is_marked_removable: bool
    partitions: tuple[str, ...]
    folder: Path
    """Its folder in sysfs."""

    @property
    def is_pluggable(self) -> bool:
        """Whether it is a medium that people plug in: marked removable, or on USB or an SD slot."""
        return self.is_marked_removable or self.transport in PLUGGABLE

    @property
    def nodes(self) -> tuple[str, ...]:
        """Kernel names of the disk and its partitions."""
        return (self.name, *self.partitions)

    @property
    def identity(self) -> tuple[DeviceNumber, str, int]:
        """What must be the same before and after opening."""
        return self.number, self.serial, self.size_bytes


def folder_of(host: Host, number: DeviceNumber) -> Path | None:
    """Folder of a block device in sysfs; None when the kernel has none."""
    link = host.sys / "dev" / "block" / str(number)
    return link.resolve() if link.exists() else None


def is_partition(folder: Path) -> bool:
    """Whether a device's folder belongs to a partition."""
    return (folder / "partition").exists()


def load_disk(host: Host, folder: Path) -> Disk:
    """Read one whole disk from its folder in sysfs."""
    number = DeviceNumber.parse(read_attribute(folder / "dev"))
    size = read_attribute(folder / "size")
    model = " ".join(
        filter(None, (read_attribute(folder / "device" / "vendor"), read_attribute(folder / "device" / "model")))
    )
    return Disk(
        name=folder.name,
        path=host.dev / folder.name.replace("!", "/"),
        number=number,
        model=printable(model or read_attribute(folder / "device" / "name")),
        serial=printable(_serial(host, folder, number)),
        size_bytes=int(size) * SECTOR_BYTES if size.isdecimal() else 0,
        transport=_transport(folder),
        is_read_only=read_attribute(folder / "ro") == "1",
        is_marked_removable=read_attribute(folder / "removable") == "1",
        partitions=tuple(sorted(entry.name for entry in folder.iterdir() if (entry / "partition").exists())),
        folder=folder,
    )


def list_disks(host: Host) -> Iterator[Disk]:
    """Yield every disk that has a medium, by name; loop devices and RAM disks without content are left out."""
    block = host.sys / "block"
    for entry in sorted(block.iterdir()) if block.is_dir() else ():
        disk = load_disk(host, entry.resolve())
        if disk.size_bytes:
            yield disk


def holders(folder: Path) -> tuple[str, ...]:
    """Names of the devices stacked on this one (device mapper, RAID, bcache)."""
    return _names(folder / "holders")


def slaves(folder: Path) -> tuple[str, ...]:
    """Names of the devices that this one rests on."""
    return _names(folder / "slaves")


def disks_below(host: Host, number: DeviceNumber, *, depth: int = 0) -> set[str]:
    """Kernel names of every device that a block device rests on, itself and whole disks included.

    Walks from a partition to its disk, from device mapper, RAID and bcache to their slaves, from a loop device to the
    disk that holds its backing file.
    """
    folder = folder_of(host, number)
    if folder is None or depth > STACK_DEPTH_MAX:
        return set()
    found = {folder.name}
    below = [folder.parent] if is_partition(folder) else []
    below += [path.resolve() for path in _children(folder / "slaves")]
    backing = read_attribute(folder / "loop" / "backing_file")
    if backing and (beneath := host.filesystem_number(Path(backing))) is not None:
        found |= disks_below(host, beneath, depth=depth + 1)
    for path in below:
        found |= disks_below(host, DeviceNumber.parse(read_attribute(path / "dev")), depth=depth + 1)
    return found


def _transport(folder: Path) -> str:
    text = f"{folder}/"
    return next((name for name, pattern in TRANSPORTS if pattern.search(text)), "unknown")


def _serial(host: Host, folder: Path, number: DeviceNumber) -> str:
    """Serial number; that of the USB bridge when the disk itself tells none; a loop device's is its file."""
    own = read_attribute(folder / "device" / "serial") or read_attribute(folder / "serial")
    if own:
        return own
    if backing := read_attribute(folder / "loop" / "backing_file"):
        return backing
    for parent in folder.parents:
        if (parent / "idVendor").exists():
            return read_attribute(parent / "serial")
        if parent == host.sys:
            break
    for line in read_attribute(host.udev / f"b{number}").splitlines():
        if line.startswith("E:ID_SERIAL_SHORT="):
            return line.partition("=")[2]
    return ""


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(path.name for path in _children(folder))
