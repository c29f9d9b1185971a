"""A writer that is killed in the middle leaves a card without a partition table; the next one succeeds."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware_profiles.flash.survey import FIRST_BYTES
from tests.support.fake_disks import mbr, raw_image
from tests.support.vendor_images import program

ROOT = Path(__file__).resolve().parents[2]
SIZE = 96 * 2**20
WRITTEN_BYTES = 16 * 2**20 + 8192
"""Far from both ends: behind the first pieces, long before the last."""
WAIT_S = 60.0


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of 96 MiB; pieces repeat, so that it is made at once."""
    path = tmp_path_factory.mktemp("image") / "disk.img"
    head = raw_image(8 * 2**20)
    with path.open("wb") as file:
        file.write(mbr(start_sector=2048, sectors=SIZE // 512 - 2048) + head[512:])
        for _ in range(SIZE // len(head) - 1):
            file.write(head)
    with path.open("rb") as file:
        path.with_name("disk.img.sha256").write_text(hashlib.file_digest(file, "sha256").hexdigest())
    return path


def start(image: Path, target: Path, *words: str) -> subprocess.Popen[bytes]:
    line = [
        sys.executable,
        "-m",
        "edge_sdk.entry",
        "flash",
        "write",
        str(image),
        "--to",
        str(target),
        "--quiet",
        *words,
    ]
    return subprocess.Popen(line, env=os.environ | {"PYTHONPATH": str(ROOT)})


def kill_in_the_middle(writer: subprocess.Popen[bytes], medium: Path) -> None:
    """SIGKILL as soon as bytes behind ``WRITTEN_BYTES`` are on the medium."""
    deadline_s = time.monotonic() + WAIT_S
    with medium.open("rb", buffering=0) as file:
        while not any(os.pread(file.fileno(), 64, WRITTEN_BYTES)):
            assert writer.poll() is None, "it was done before anybody could stop it"
            assert time.monotonic() < deadline_s
            time.sleep(0.0005)
    writer.kill()
    assert writer.wait(WAIT_S) == -signal.SIGKILL


def test_new_file(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "card.img"
    target.touch()
    kill_in_the_middle(start(image, target), target)
    with target.open("rb") as file:
        assert not any(file.read(FIRST_BYTES)), "no table: nothing would boot from it"
    refused = start(image, target)
    assert refused.wait(WAIT_S) == 3, "a half-written file is not silently overwritten"
    target.unlink()
    assert start(image, target).wait(WAIT_S) == 0
    assert target.read_bytes() == image.read_bytes()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A block device of this kernel, and its backing file with an older system's table on it."""
    backing = tmp_path / "backing"
    with backing.open("wb") as file:
        file.write(mbr(start_sector=2048, sectors=4096))
        file.truncate(SIZE)
    losetup = program("losetup")
    made = subprocess.run([losetup, "-f", "--show", str(backing)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield device, backing
    subprocess.run([losetup, "-d", str(device)], check=True)


def test_block_device(image: Path, loop: tuple[Path, Path]) -> None:
    device, backing = loop
    words = ("--allow-fixed", "--serial", str(backing), "--yes")
    kill_in_the_middle(start(image, device, *words), device)
    with device.open("rb") as file:
        assert not any(file.read(FIRST_BYTES)), "the older system's table is gone as well: nothing would boot"
    probe = subprocess.run([program("blkid"), "-p", str(device)], capture_output=True, text=True, check=False)
    assert "PTTYPE" not in probe.stdout
    again = start(image, device, *words)
    assert again.wait(WAIT_S) == 0
    check = [sys.executable, "-m", "edge_sdk.entry", "flash", "verify", str(image), str(device), "--quiet"]
    assert subprocess.run(check, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode == 0
