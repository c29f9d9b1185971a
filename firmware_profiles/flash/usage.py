"""Who uses a disk: what the running system lives on, what is mounted, what swaps, what belongs to a volume group.

Read from mountinfo and swaps of this mount namespace; what another namespace mounts is caught by the exclusive open
(``Host.open_exclusive``), because the kernel's claim is global.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware_profiles.flash.disks import Disk, disks_below, folder_of
from firmware_profiles.flash.host import DeviceNumber, Host

SYSTEM_TREES: Final = ("/boot", "/usr", "/var", "/home")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_OVERLAY_FOLDERS: Final = re.compile(r"(?:^|,)(?:lowerdir|upperdir|workdir)=((?:\\,|[^,])*)")
MOUNTINFO_BYTES_MAX: Final = 16 * 2**20

Reader = Callable[[int, int], bytes]
"""read(offset, size): bytes of a medium, fewer at its end."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    number: DeviceNumber
    point: str
    source: str
    options: str

    @property
    def is_of_system(self) -> bool:
        """Whether the running system needs it: the root, or at or below one of its trees."""
        return self.point == "/" or any(
            self.point == tree or self.point.startswith((f"{tree}/", f"{tree}-")) for tree in SYSTEM_TREES
        )


def mounts(host: Host) -> tuple[Mount, ...]:
    """Every mount of this namespace (proc(5), mountinfo).

    Raises:
        OSError: the kernel does not say; nothing may be written then.
    """
    with (host.proc / "self" / "mountinfo").open("rb") as file:
        text = file.read(MOUNTINFO_BYTES_MAX).decode("utf-8", "surrogateescape")
    found = []
    for line in filter(None, text.split("\n")):  # splitlines knows more ends of a line than the kernel: in a label, say
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        found.append(
            Mount(DeviceNumber.parse(fields[2]), _unescape(fields[4]), _unescape(rest[1]), _unescape(rest[-1]))
        )
    return tuple(found)


def swap_areas(host: Host) -> tuple[Path, ...]:
    """Devices and files that swap."""
    with (host.proc / "swaps").open(encoding="utf-8", errors="surrogateescape") as file:
        return tuple(Path(_unescape(line.split()[0])) for line in list(file)[1:] if line.strip())


def system_devices(host: Host) -> set[str]:
    """Kernel names of all devices below the root, /boot*, /usr, /var, /home and swap, down to the disks."""
    found: set[str] = set()
    for mount in mounts(host):
        if mount.is_of_system:
            for number in _numbers(host, mount):
                found |= disks_below(host, number)
    for area in swap_areas(host):
        beneath = _block_number(host, area) or host.filesystem_number(area)
        if beneath is not None:
            found |= disks_below(host, beneath)
    return found


def mount_points(host: Host, disk: Disk) -> tuple[str, ...]:
    """Where the disk or something that rests on it is mounted."""
    return tuple(
        mount.point
        for mount in mounts(host)
        if any(disk.name in disks_below(host, number) for number in _numbers(host, mount))
    )


def member_signature(read: Reader, size_bytes: int) -> str | None:
    """What volume manager a device belongs to by the marks on it: LUKS, LVM, RAID or ZFS; None for none.

    Sources: cryptsetup on-disk format 1.1 and 2; LVM2 label in one of the first four sectors; md superblocks 0.90, 1.0
    (end of the device), 1.1 and 1.2; ZFS uberblocks in the second half of the first label.
    """
    head = read(0, 8192)
    if head[:6] == b"LUKS\xba\xbe":
        return "LUKS"
    if any(head[sector * 512 :][:8] == b"LABELONE" for sector in range(4)):
        return "LVM"
    md_offsets = [0, 4096]
    if size_bytes >= 128 * 1024:
        md_offsets += [(size_bytes & ~0xFFFF) - 0x10000, ((size_bytes // 512 - 16) & ~7) * 512]
    if any(read(offset, 4) in {b"\xfc\x4e\x2b\xa9", b"\xa9\x2b\x4e\xfc"} for offset in md_offsets):
        return "RAID"
    uberblocks = read(128 * 1024, 128 * 1024)
    for offset in range(0, len(uberblocks), 1024):
        if uberblocks[offset : offset + 8] in {b"\x0c\xb1\xba\0\0\0\0\0", b"\0\0\0\0\0\xba\xb1\x0c"}:
            return "ZFS"
    return None


def loop_files(host: Host) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each loop device's name with the (device, inode) of the file behind it."""
    block = host.sys / "block"
    for entry in sorted(block.glob("loop*")) if block.is_dir() else ():
        backing = entry / "loop" / "backing_file"
        if not backing.exists():
            continue
        try:
            status = Path(backing.read_text(encoding="utf-8").rstrip("\n")).stat()
        except OSError:
            continue  # deleted, or of another namespace: no path leads to it, so no target can name it
        yield entry.name, (status.st_dev, status.st_ino)


def is_swap_file(host: Host, file: Path) -> bool:
    """Whether a regular file swaps."""
    return any(area.exists() and file.exists() and area.samefile(file) for area in swap_areas(host))


def _numbers(host: Host, mount: Mount) -> set[DeviceNumber]:
    """Devices of a mount. Major 0 is anonymous: btrfs names its device as source, an overlay rests on its folders."""
    if mount.number.major != 0:
        return {mount.number}
    found = set()
    if mount.source.startswith("/") and (number := _block_number(host, Path(mount.source))) is not None:
        found.add(number)
    for folders in _OVERLAY_FOLDERS.findall(mount.options):
        for folder in folders.split(":"):
            beneath = host.filesystem_number(Path(folder)) if folder.startswith("/") else None
            if beneath is not None and folder_of(host, beneath) is not None:
                found.add(beneath)
    return found


def _block_number(host: Host, path: Path) -> DeviceNumber | None:
    try:
        return host.block_number(path)
    except OSError:
        return None


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
