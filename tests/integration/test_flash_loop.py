"""The flasher on a real block device of this kernel: a loop device over a file, where the host allows one."""

import hashlib
import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware_profiles import cli, cli_flash
from firmware_profiles.errors import TargetRefusal, TargetRefusedError
from firmware_profiles.flash.host import Host
from firmware_profiles.flash.usage import system_devices
from tests.support.fake_disks import raw_image
from tests.support.vendor_images import program

SIZE = 16 * 2**20


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Device and backing file."""
    backing = tmp_path / "card"
    with backing.open("wb") as file:
        file.truncate(SIZE)
    losetup = program("losetup")
    made = subprocess.run([losetup, "-f", "--show", str(backing)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield device, backing
    subprocess.run([losetup, "-d", str(device)], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(raw_image(10 * 2**20))
    (tmp_path / "disk.img.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def flash(image: Path, device: Path, backing: Path, *options: str) -> int:
    words = ("--allow-fixed", "--serial", str(backing), "--yes", "--quiet")
    return cli.main(["flash", "write", str(image), "--to", str(device), *words, *options])


def test_loop_device_is_listed_written_and_verified(
    loop: tuple[Path, Path], image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device, backing = loop
    assert cli.main(["flash", "list", "--json"]) == 0
    rows = {row["path"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[str(device)]["serial"] == str(backing)
    assert rows[str(device)]["size_bytes"] == SIZE
    assert flash(image, device, backing, "--dry-run") == 0
    assert not any(backing.read_bytes())
    assert flash(image, device, backing) == 0
    assert backing.read_bytes()[: 10 * 2**20] == image.read_bytes()
    assert cli.main(["flash", "verify", str(image), str(device), "--quiet"]) == 0
    with device.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"\xff" * 512, 7 * 2**20)
        os.fsync(file.fileno())
    assert cli.main(["flash", "verify", str(image), str(device), "--quiet"]) == 5
    assert f"at byte {7 * 2**20} " in capsys.readouterr().err


def test_claimed_device_is_busy(loop: tuple[Path, Path], image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device, backing = loop
    holder = Host().open_exclusive(device)
    try:
        with pytest.raises(TargetRefusedError) as caught:
            Host().open_exclusive(device)
        assert caught.value.reason is TargetRefusal.BUSY
        assert flash(image, device, backing) == 3
    finally:
        os.close(holder)
    assert not any(backing.read_bytes())


def test_fixed_and_unconfirmed_devices_are_refused(
    loop: tuple[Path, Path], image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device, backing = loop
    write = ["flash", "write", str(image), "--to", str(device), "--quiet"]
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    assert cli.main(write) == 3
    assert "--allow-fixed" in capsys.readouterr().err
    assert cli.main([*write, "--yes"]) == 2
    assert cli.main([*write, "--allow-fixed", "--serial", str(backing)]) == 3
    assert "not confirmed" in capsys.readouterr().err
    assert not any(backing.read_bytes())


def test_backing_file_of_a_loop_device_is_refused(loop: tuple[Path, Path], image: Path) -> None:
    _, backing = loop
    assert cli.main(["flash", "write", str(image), "--to", str(backing), "--quiet"]) == 3


def test_read_only_device(tmp_path: Path, loop: tuple[Path, Path], image: Path) -> None:
    device, backing = loop
    subprocess.run([program("blockdev"), "--setro", str(device)], check=True)
    assert flash(image, device, backing) == 3
    subprocess.run([program("blockdev"), "--setrw", str(device)], check=True)
    assert flash(image, device, backing) == 0


def test_mounted_device(
    tmp_path: Path, loop: tuple[Path, Path], image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device, backing = loop
    subprocess.run([program("mke2fs"), "-q", "-F", str(device)], check=True, capture_output=True)
    point = tmp_path / "mount"
    point.mkdir()
    done = subprocess.run(["mount", str(device), str(point)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no mount: {done.stderr.strip()}")
    try:
        assert flash(image, device, backing) == 3
        assert "mounted at" in capsys.readouterr().err
        with pytest.raises(TargetRefusedError) as caught:
            Host().open_exclusive(device)
        assert caught.value.reason is TargetRefusal.BUSY
    finally:
        subprocess.run(["umount", str(point)], check=True)


def test_disk_of_this_system_is_refused_before_it_is_opened(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening is made impossible first: a failure of the check could not harm."""

    class ClosedHost(Host):
        def open_exclusive(self, path: Path) -> int:
            raise AssertionError(f"{path} would have been opened")

    host = ClosedHost()
    disks = [Path("/dev") / name for name in sorted(system_devices(host)) if (Path("/dev") / name).exists()]
    if not disks:
        pytest.skip("no block device below the root of this system is visible")
    for disk in disks:
        for words in ([], ["--allow-fixed", "--serial", "x", "--yes", "--max-gb", "100000"]):
            with pytest.raises(TargetRefusedError) as caught:
                cli_flash.main(["write", str(image), "--to", str(disk), "--quiet", *words], host=host)
            assert caught.value.reason in {TargetRefusal.SYSTEM_DISK, TargetRefusal.PARTITION}
