"""Every check of the flasher on fake disks: each has its own reason, none leaves a byte behind."""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from firmware_profiles import cli_flash
from firmware_profiles.errors import ImageRefusal, ImageRefusedError, TargetRefusal, TargetRefusedError, UsageError
from firmware_profiles.flash.disks import Disk, disks_below, list_disks
from firmware_profiles.flash.host import DeviceNumber, Host
from firmware_profiles.flash.progress import Progress
from firmware_profiles.flash.run_log import RunLog
from firmware_profiles.flash.session import WriteOrder, write_image
from firmware_profiles.flash.target import open_file
from firmware_profiles.flash.usage import member_signature
from tests.support.fake_disks import DISK_BYTES, MMC, SATA, FakeMachine, mbr, raw_image


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path / "machine")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(raw_image())
    (tmp_path / "disk.img.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  disk.img\n")
    return path


def run(order: WriteOrder, host: Host, *, confirm: Callable[[Disk, tuple[str, ...]], bool] = lambda *_: False) -> None:
    with RunLog(None) as log:
        write_image(order, host, confirm=confirm, progress=Progress(io.StringIO()), log=log)


def refusal(order: WriteOrder, host: Host, node: Path | None = None) -> TargetRefusal:
    """Reason of the refusal, the same in a dry run, with the target untouched."""
    before = node.read_bytes() if node else b""
    reasons = []
    for is_dry_run in (True, False):
        attempt = WriteOrder(
            image=order.image,
            target=order.target,
            serial=order.serial,
            is_confirmed=order.is_confirmed,
            is_fixed_allowed=order.is_fixed_allowed,
            size_bytes_max=order.size_bytes_max,
            is_dry_run=is_dry_run,
        )
        with pytest.raises(TargetRefusedError) as caught:
            run(attempt, host)
        reasons.append(caught.value.reason)
        assert caught.value.exit_status == 3
    assert reasons[0] is reasons[1]
    assert (node.read_bytes() if node else b"") == before
    return reasons[0]


def order(image: Path, target: Path, **options: object) -> WriteOrder:
    return WriteOrder(image=image, target=target, serial="CARD-7", is_confirmed=True, **options)  # type: ignore[arg-type]


def test_card_is_written_and_cache_dropped(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16")
    run(order(image, node), machine.host)
    assert node.read_bytes()[: image.stat().st_size] == image.read_bytes()
    assert machine.host.drops


def test_dry_run_writes_nothing(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16")
    run(order(image, node, is_dry_run=True), machine.host)
    assert not any(node.read_bytes())


def test_1_link_by_id_leads_to_the_disk(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16")
    by_id = machine.host.dev / "by-id"
    by_id.symlink_to(node)
    run(order(image, by_id), machine.host)
    assert node.read_bytes()[: image.stat().st_size] == image.read_bytes()


def test_1_partition(machine: FakeMachine, image: Path) -> None:
    machine.add_disk("sdb", "8:16", partitions={"sdb1": "8:17"})
    node = machine.host.dev / "sdb1"
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.PARTITION


@pytest.mark.parametrize("name", ["mmcblk0boot0", "mmcblk0rpmb"])
def test_1_hardware_area_of_an_emmc(machine: FakeMachine, image: Path, name: str) -> None:
    node = machine.add_disk(name, "179:8", place=MMC)
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.PARTITION


def test_1_volume_that_rests_on_a_disk(machine: FakeMachine, image: Path) -> None:
    """A free logical volume of the system disk is no disk of its own."""
    node = machine.add_disk("dm-0", "253:0", place="virtual/block")
    (machine.folder("dm-0") / "slaves" / "sda1").symlink_to(machine.host.sys / "block" / "sda" / "sda1")
    wanted = order(image, node, is_fixed_allowed=True)
    assert refusal(wanted, machine.host, node) is TargetRefusal.NOT_A_DISK


@pytest.mark.parametrize("name", ["sdz", "disk/by-id/usb-none"])
def test_1_missing_device_does_not_become_a_file(machine: FakeMachine, image: Path, name: str) -> None:
    (machine.host.dev / "disk" / "by-id").mkdir(parents=True)
    node = machine.host.dev / name
    assert refusal(order(image, node), machine.host) is TargetRefusal.NOT_FOUND
    assert not node.exists()


def test_1_neither_disk_nor_file(machine: FakeMachine, image: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(order(image, tmp_path / "pipe"), machine.host) is TargetRefusal.NOT_A_DISK
    assert refusal(order(image, tmp_path), machine.host) is TargetRefusal.NOT_A_DISK


@pytest.mark.parametrize("change", ["number", "serial", "size", "path"])
def test_1_disk_swapped_between_check_and_open(machine: FakeMachine, image: Path, change: str) -> None:
    node = machine.add_disk("sdb", "8:16")
    other = machine.add_disk("sdc", "8:32", serial="OTHER")
    folder = machine.folder("sdb")
    link = machine.host.dev / "card"
    link.symlink_to(node)

    def swap(path: Path) -> int:
        if change == "number":
            machine.host.numbers[str(node.resolve())] = DeviceNumber(8, 32)
        elif change == "serial":
            machine.attribute(folder / "device" / "serial", "CARD-8")
        elif change == "size":
            machine.attribute(folder / "size", "4096")
        else:
            link.unlink()
            link.symlink_to(other)
        return os.open(path, os.O_RDWR)

    object.__setattr__(machine.host, "open_exclusive", swap)
    with pytest.raises(TargetRefusedError) as caught:
        run(order(image, link), machine.host)
    assert caught.value.reason is TargetRefusal.CHANGED
    assert not any(node.read_bytes())
    assert not any(other.read_bytes())


def test_1_card_swapped_during_the_question(machine: FakeMachine, image: Path) -> None:
    """A reader keeps its device and its open descriptor; the answer was given for the card from before."""
    node = machine.add_disk("sdb", "8:16")

    def swap(disk: Disk, _: tuple[str, ...]) -> bool:
        machine.attribute(disk.folder / "size", str(DISK_BYTES // 512 - 8))
        return True

    with pytest.raises(TargetRefusedError) as caught:
        run(WriteOrder(image=image, target=node), machine.host, confirm=swap)
    assert caught.value.reason is TargetRefusal.CHANGED
    assert not any(node.read_bytes())


def test_2_read_only(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16")
    machine.attribute(machine.folder("sdb") / "ro", "1")
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.READ_ONLY


def test_2_no_medium(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16", size=0)
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.EMPTY


def test_2_too_small(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16", size=4 * 2**20)
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.TOO_SMALL


def test_2_larger_than_any_card_unless_raised(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16")
    huge = machine.folder("sdb") / "size"
    machine.attribute(huge, str(257 * 10**9 // 512))
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.TOO_LARGE
    machine.attribute(huge, str(DISK_BYTES // 512))
    assert refusal(order(image, node, size_bytes_max=DISK_BYTES - 1), machine.host, node) is TargetRefusal.TOO_LARGE


@pytest.mark.parametrize("point", ["/", "/boot", "/boot/firmware", "/boot-efi", "/usr", "/var", "/home", "/var/lib/x"])
def test_3_system_disk(machine: FakeMachine, image: Path, point: str) -> None:
    node = machine.add_disk("sdb", "8:16", partitions={"sdb1": "8:17"})
    machine.mount("8:17", point, "/dev/sdb1")
    wanted = order(image, node, is_fixed_allowed=True)
    assert refusal(wanted, machine.host, node) is TargetRefusal.SYSTEM_DISK


def test_3_system_below_a_stack(machine: FakeMachine, image: Path) -> None:
    """Root on LVM on LUKS on a partition: two device-mapper layers lead to the disk."""
    node = machine.add_disk("sdb", "8:16", partitions={"sdb1": "8:17"})
    for name, number, below in (("dm-0", "253:0", "sdb/sdb1"), ("dm-1", "253:1", "dm-0")):
        machine.add_disk(name, number, place="virtual/block")
        (machine.folder(name) / "slaves" / below.rpartition("/")[2]).symlink_to(machine.host.sys / "block" / below)
    machine.mount("253:1", "/home", "/dev/mapper/home")
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.SYSTEM_DISK
    assert disks_below(machine.host, DeviceNumber(253, 1)) == {"dm-1", "dm-0", "sdb1", "sdb"}


def test_3_swap(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16", partitions={"sdb1": "8:17"})
    machine.swaps([machine.host.dev / "sdb1"])
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.SYSTEM_DISK


def test_3_btrfs_root_has_an_anonymous_number(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16", partitions={"sdb1": "8:17"})
    machine.mount("0:35", "/", str(machine.host.dev / "sdb1"), kind="btrfs", options="rw,subvol=/@")
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.SYSTEM_DISK


def test_3_root_card_of_a_board_is_mmc_and_still_refused(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("mmcblk0", "179:0", place=MMC, partitions={"mmcblk0p2": "179:2"})
    machine.mount("179:2", "/", "/dev/root")
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.SYSTEM_DISK


def test_4_mount_point_with_an_odd_letter_is_still_one_line(machine: FakeMachine, image: Path) -> None:
    """The kernel escapes line feeds; a label may hold what only Unicode takes for the end of a line."""
    node = machine.add_disk("sdb", "8:16")
    machine.mount("8:16", "/media/a\u2028b", "/dev/sdb")
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.MOUNTED


def test_4_mounted(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16", partitions={"sdb1": "8:17"})
    machine.mount("8:17", "/media/my\\040card", "/dev/sdb1")
    with pytest.raises(TargetRefusedError, match="/media/my card"):
        run(order(image, node), machine.host)
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.MOUNTED


@pytest.mark.parametrize("place", ["sdb", "sdb/sdb1"])
def test_4_held_by_raid_or_mapper(machine: FakeMachine, image: Path, place: str) -> None:
    node = machine.add_disk("sdb", "8:16", partitions={"sdb1": "8:17"})
    (machine.host.sys / "block" / place / "holders" / "md0").mkdir()
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.IN_USE


MARKS = {
    "LUKS": (0, b"LUKS\xba\xbe\0\2"),
    "LVM": (512, b"LABELONE"),
    "RAID": (4096, b"\xfc\x4e\x2b\xa9"),
    "ZFS": (128 * 1024 + 3 * 4096, b"\x0c\xb1\xba\0\0\0\0\0"),
}


@pytest.mark.parametrize("is_in_partition", [False, True])
@pytest.mark.parametrize("kind", list(MARKS))
def test_4_member_of_an_inactive_group(machine: FakeMachine, image: Path, kind: str, *, is_in_partition: bool) -> None:
    node = machine.add_disk("sdb", "8:16")
    offset, mark = MARKS[kind]
    with node.open("r+b") as file:
        if is_in_partition:
            file.write(mbr(start_sector=2048, sectors=8192))
            offset += 2048 * 512
        file.seek(offset)
        file.write(mark)
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.IN_USE
    with pytest.raises(TargetRefusedError, match=kind):
        run(order(image, node), machine.host)


def test_4_raid_mark_at_the_end_and_none_on_zeros() -> None:
    size = 2**20
    disk = bytearray(size)
    assert member_signature(lambda offset, count: bytes(disk[offset : offset + count]), size) is None
    disk[size - 65536 : size - 65532] = b"\xfc\x4e\x2b\xa9"
    assert member_signature(lambda offset, count: bytes(disk[offset : offset + count]), size) == "RAID"


def test_5_held_in_another_namespace(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16")
    machine.host.busy.add(str(node.resolve()))
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.BUSY


def test_6_fixed_disk_needs_both_words(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16", place=SATA)
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.FIXED
    no_serial = WriteOrder(image=image, target=node, is_fixed_allowed=True)
    assert refusal(no_serial, machine.host, node) is TargetRefusal.FIXED
    run(order(image, node, is_fixed_allowed=True), machine.host)
    assert node.read_bytes()[: image.stat().st_size] == image.read_bytes()


def test_6_marked_removable_is_pluggable_on_any_bus(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16", place=SATA, attributes={"removable": "1"})
    run(order(image, node), machine.host)
    assert node.read_bytes()[: image.stat().st_size] == image.read_bytes()


def test_7_other_serial(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16", serial="CARD-8")
    assert refusal(order(image, node), machine.host, node) is TargetRefusal.SERIAL


@pytest.mark.parametrize("is_fixed_allowed", [False, True])
def test_7_empty_serial_names_no_disk(machine: FakeMachine, image: Path, *, is_fixed_allowed: bool) -> None:
    """A script whose variable is empty, and a disk that tells no serial: that is no agreement."""
    node = machine.add_disk("sdb", "8:16", serial="", place=SATA if is_fixed_allowed else MMC)
    attempt = WriteOrder(image=image, target=node, serial="", is_confirmed=True, is_fixed_allowed=is_fixed_allowed)
    assert refusal(attempt, machine.host, node) is TargetRefusal.SERIAL


def test_7_yes_alone_is_a_usage_error(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16")
    with pytest.raises(UsageError, match="--serial"):
        run(WriteOrder(image=image, target=node, is_confirmed=True), machine.host)
    assert not any(node.read_bytes())


def test_7_not_confirmed(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16")
    unasked = WriteOrder(image=image, target=node, serial="CARD-7")
    assert refusal(unasked, machine.host, node) is TargetRefusal.NOT_CONFIRMED


def test_7_confirmation_shows_the_disk_and_its_labels(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16")
    superblock = bytearray(2048)
    superblock[1080:1082] = b"\x53\xef"
    superblock[1144:1150] = b"photos"
    with node.open("r+b") as file:
        file.write(mbr(start_sector=2048, sectors=8192))
        file.seek(2048 * 512)
        file.write(superblock)
    shown: list[tuple[Disk, tuple[str, ...]]] = []

    def confirm(disk: Disk, labels: tuple[str, ...]) -> bool:
        shown.append((disk, labels))
        return True

    run(WriteOrder(image=image, target=node), machine.host, confirm=confirm)
    assert [(disk.model, disk.serial, disk.size_bytes, labels) for disk, labels in shown] == [
        ("Model X", "CARD-7", DISK_BYTES, ("photos",))
    ]


def test_7_names_of_a_medium_cannot_write_on_the_terminal(machine: FakeMachine, image: Path) -> None:
    """A card's label and a stick's descriptors are its maker's; the question must say what is erased."""
    node = machine.add_disk("sdb", "8:16", serial="A\x1b[1AB", attributes={"device/model": "M\x1b[2K"})
    superblock = bytearray(2048)
    superblock[1080:1082] = b"\x53\xef"
    superblock[1144:1150] = b"\x1b[2Jhi"
    with node.open("r+b") as file:
        file.write(superblock)
    shown: list[str] = []

    def confirm(disk: Disk, labels: tuple[str, ...]) -> bool:
        shown.extend((disk.model, disk.serial, *labels))
        return False

    with pytest.raises(TargetRefusedError):
        run(WriteOrder(image=image, target=node), machine.host, confirm=confirm)
    assert shown[1:] == ["A?[1AB", "?[2Jhi"]
    assert shown[0].endswith("M?[2K")


class Terminal(io.StringIO):
    """Somebody who types at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "is_written"), [("CARD-7\n", True), ("yes\n", False), ("", False)])
def test_7_the_serial_is_typed_to_confirm(
    machine: FakeMachine,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: str,
    *,
    is_written: bool,
) -> None:
    node = machine.add_disk("sdb", "8:16")
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    arguments = ["write", str(image), "--to", str(node), "--quiet"]
    if is_written:
        assert cli_flash.main(arguments, host=machine.host) == 0
    else:
        with pytest.raises(TargetRefusedError):
            cli_flash.main(arguments, host=machine.host)
    assert "Model X, serial CARD-7" in capsys.readouterr().err
    assert any(node.read_bytes()) is is_written


def test_8_image_without_a_checksum(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16")
    image.with_name("disk.img.sha256").unlink()
    with pytest.raises(ImageRefusedError) as caught:
        run(order(image, node), machine.host)
    assert (caught.value.reason, caught.value.exit_status) == (ImageRefusal.NO_CHECKSUM, 4)
    assert not any(node.read_bytes())


def test_8_wrong_checksum_and_wrong_board(machine: FakeMachine, image: Path) -> None:
    node = machine.add_disk("sdb", "8:16")
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    image.with_name("disk.img.json").write_text(f'{{"format": 1, "sha256": "{digest}", "compatible": ["rpi-4b"]}}')
    for options, reason in (
        ({"sha256": "0" * 64}, ImageRefusal.WRONG_CHECKSUM),
        ({"profile": "rpi-5"}, ImageRefusal.WRONG_BOARD),
    ):
        with pytest.raises(ImageRefusedError) as caught:
            run(order(image, node, **options), machine.host)
        assert caught.value.reason is reason
    assert not any(node.read_bytes())
    run(order(image, node, profile="rpi-4b", sha256=digest.upper()), machine.host)


def test_file_target(machine: FakeMachine, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    run(WriteOrder(image=image, target=out), machine.host)
    assert out.read_bytes() == image.read_bytes()
    assert out.stat().st_mode & 0o777 == 0o600
    assert refusal(WriteOrder(image=image, target=out), machine.host, out) is TargetRefusal.FILE_EXISTS
    assert refusal(WriteOrder(image=image, target=image), machine.host, image) is TargetRefusal.IS_IMAGE


def test_link_that_appears_after_the_check_makes_no_file(machine: FakeMachine, tmp_path: Path) -> None:
    """In a folder of others, a file of root's would come to be wherever the link leads."""
    (tmp_path / "out.img").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TargetRefusedError):
        open_file(machine.host, tmp_path / "out.img")
    assert not (tmp_path / "elsewhere").exists()


def test_file_that_swaps_or_backs_a_loop_device(machine: FakeMachine, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    out.touch()
    machine.swaps([out])
    assert refusal(WriteOrder(image=image, target=out), machine.host) is TargetRefusal.SYSTEM_DISK
    machine.swaps([])
    machine.add_disk("loop0", "7:0", place="virtual/block")
    machine.attribute(machine.folder("loop0") / "loop" / "backing_file", str(out))
    assert refusal(WriteOrder(image=image, target=out), machine.host) is TargetRefusal.IN_USE


def test_list_tells_transport_serial_and_size(machine: FakeMachine) -> None:
    machine.add_disk("sdb", "8:16", attributes={"device/serial": ""})
    usb = machine.host.sys / "devices/pci0000:00/0000:00:14.0/usb1/1-2"
    machine.attribute(usb / "idVendor", "0781")
    machine.attribute(usb / "serial", "USB-9")
    machine.add_disk("mmcblk0", "179:0", place=MMC)
    machine.add_disk("sdd", "8:48", size=0)
    found = {disk.name: (disk.transport, disk.serial, disk.size_bytes) for disk in list_disks(machine.host)}
    assert found == {
        "sda": ("sata", "SYSTEM-1", DISK_BYTES),
        "sdb": ("usb", "USB-9", DISK_BYTES),
        "mmcblk0": ("mmc", "CARD-7", DISK_BYTES),
    }
