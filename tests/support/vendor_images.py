"""Small vendor-like images, made without root: MBR, a FAT boot volume and an ext4 root file system."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
FAT_START, FAT_BYTES = 2**20, 16 * 2**20
EXT_START, EXT_BYTES = FAT_START + FAT_BYTES, 16 * 2**20
CMDLINE = "console=tty1 root=PARTUUID=1-02 rootfstype=ext4 rootwait quiet"


def program(name: str) -> str:
    """Path of a program, or a skip that says what is missing."""
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"no {name}")
    return found


def run(name: str, *arguments: str) -> str:
    """Run a program that must succeed and return what it printed."""
    command = [program(name), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


def vendor_image(folder: Path, *, root_files: Mapping[str, str], fat_label: str = "bootfs") -> Path:
    """A Raspberry-like image: boot volume with cmdline.txt, root file system with the given files."""
    fat, ext, root = folder / "fat.part", folder / "ext.part", folder / "root"
    for needed in ("mcopy", "debugfs", "mkfs.vfat", "mke2fs"):
        program(needed)
    with fat.open("wb") as file:
        file.truncate(FAT_BYTES)
    run("mkfs.vfat", "-n", fat_label, str(fat))
    (folder / "cmdline.txt").write_text(f"{CMDLINE}\n")
    run("mcopy", "-i", str(fat), str(folder / "cmdline.txt"), "::/cmdline.txt")
    for name, text in ({"usr/lib/os-release": "ID=debian\n"} | dict(root_files)).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "rootfs", "-d", str(root), str(ext), f"{EXT_BYTES // 1024}k")
    entries = b"".join(
        bytes((0, 0, 0, 0, kind, 0, 0, 0)) + struct.pack("<II", start // 512, size // 512)
        for kind, start, size in ((0x0C, FAT_START, FAT_BYTES), (0x83, EXT_START, EXT_BYTES))
    )
    image = folder / "vendor.img"
    with image.open("wb") as file:
        file.write(bytes(446) + entries + bytes(32) + b"\x55\xaa")
        file.seek(FAT_START)
        file.write(fat.read_bytes())
        file.seek(EXT_START)
        file.write(ext.read_bytes())
    fat.unlink()
    ext.unlink()
    return image


def check_clean(image: Path, folder: Path) -> None:
    """Both file systems pass their checkers."""
    content = image.read_bytes()
    for start, size, command in (
        (FAT_START, FAT_BYTES, ("fsck.vfat", "-n")),
        (EXT_START, EXT_BYTES, ("e2fsck", "-f", "-n")),
    ):
        part = folder / "part"
        part.write_bytes(content[start : start + size])
        run(*command, str(part))
