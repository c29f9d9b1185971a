"""A machine whose disks are files: a sysfs tree, mountinfo, swaps, and device nodes that answer as block devices."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from firmware_profiles.errors import TargetRefusal, TargetRefusedError
from firmware_profiles.flash.host import DeviceNumber, Host

DISK_BYTES = 8 * 2**20
USB = "pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/host6/target6:0:0/6:0:0:0/block"
SATA = "pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block"
MMC = "platform/soc/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa/block"


@dataclass(frozen=True)
class FakeHost(Host):
    """Answers for plain files what only block devices answer."""

    numbers: dict[str, DeviceNumber] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)
    drops: list[int] = field(default_factory=list)

    def block_number(self, path: Path | int) -> DeviceNumber | None:
        real = os.path.realpath(f"/proc/self/fd/{path}" if isinstance(path, int) else path, strict=True)
        return self.numbers.get(real)

    def filesystem_number(self, path: Path) -> DeviceNumber | None:
        return None if path.exists() else super().filesystem_number(path)

    def open_exclusive(self, path: Path) -> int:
        if os.path.realpath(path) in self.busy:
            raise TargetRefusedError(TargetRefusal.BUSY, f"{path}: busy")
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def size_bytes(self, descriptor: int) -> int:
        return os.fstat(descriptor).st_size

    def drop_buffers(self, descriptor: int) -> None:
        self.drops.append(descriptor)


class FakeMachine:
    """Builds the trees of a ``FakeHost``; has a system disk ``sda`` with a root partition ``sda1``."""

    def __init__(self, root: Path) -> None:
        self.host = FakeHost(root / "sys", root / "proc", root / "dev", root / "udev")
        for folder in ("sys/block", "sys/dev/block", "proc/self", "dev", "udev"):
            (root / folder).mkdir(parents=True)
        self.mountinfo: list[str] = []
        self.add_disk("sda", "8:0", place=SATA, serial="SYSTEM-1", partitions={"sda1": "8:1"})
        self.mount("8:1", "/", "/dev/sda1")
        self.swaps([])

    def add_disk(
        self,
        name: str,
        number: str,
        *,
        place: str = USB,
        size: int = DISK_BYTES,
        serial: str = "CARD-7",
        partitions: Mapping[str, str] | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Path:
        """Add a disk with its device node and return the node's path."""
        folder = self.host.sys / "devices" / place / name
        self._device(folder, number, size)
        for key, text in {
            "removable": "0",
            "device/model": "Model X",
            "device/serial": serial,
            **(attributes or {}),
        }.items():
            self.attribute(folder / key, text)
        (self.host.sys / "block" / name).symlink_to(folder)
        for partition, partition_number in (partitions or {}).items():
            self._device(folder / partition, partition_number, size // 2)
            self.attribute(folder / partition / "partition", "1")
            self._node(partition, partition_number, size // 2)
        return self._node(name, number, size)

    def folder(self, name: str) -> Path:
        """Folder of a disk in sysfs."""
        return (self.host.sys / "block" / name).resolve()

    def attribute(self, path: Path, text: str) -> None:
        """Write one attribute."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def mount(self, number: str, point: str, source: str, kind: str = "ext4", options: str = "rw") -> None:
        """Add a line to mountinfo."""
        self.mountinfo.append(
            f"{len(self.mountinfo) + 20} 1 {number} / {point} rw,relatime - {kind} {source} {options}"
        )
        (self.host.proc / "self" / "mountinfo").write_text("\n".join(self.mountinfo) + "\n")

    def swaps(self, areas: list[Path]) -> None:
        """Write the list of swap areas."""
        lines = ["Filename Type Size Used Priority", *(f"{area} partition 1024 0 -2" for area in areas)]
        (self.host.proc / "swaps").write_text("\n".join(lines) + "\n")

    def _device(self, folder: Path, number: str, size: int) -> None:
        for key, text in {"dev": number, "size": str(size // 512), "ro": "0"}.items():
            self.attribute(folder / key, text)
        for name in ("holders", "slaves"):
            (folder / name).mkdir()
        (self.host.sys / "dev" / "block" / number).symlink_to(folder)

    def _node(self, name: str, number: str, size: int) -> Path:
        path = self.host.dev / name
        with path.open("wb") as file:
            file.truncate(size)
        self.host.numbers[os.path.realpath(path)] = DeviceNumber.parse(number)
        return path


def mbr(*, start_sector: int = 8192, sectors: int = 2048, kind: int = 0x83) -> bytes:
    """First sector with one partition."""
    entry = bytes((0, 0, 0, 0, kind, 0, 0, 0)) + struct.pack("<II", start_sector, sectors)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def raw_image(size: int = 6 * 2**20, seed: int = 1) -> bytes:
    """A disk image with a table and content that differs everywhere."""
    block = bytes((seed * 7 + 13 * i + i // 251) % 256 for i in range(4096))
    body = b"".join(index.to_bytes(4, "big") + block[4:] for index in range(size // 4096))
    return mbr(start_sector=2048, sectors=size // 512 - 2048) + body[512:]
