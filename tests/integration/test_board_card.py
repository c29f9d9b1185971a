"""The fast part of ``make board-test``: the generic arm64 card, from customising to what lies on the card itself.

``make board-test`` goes on from here and boots it.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

from firmware_profiles import cli
from tests.support.vendor_images import run

TOKEN = "c1aim-Token_0123456789abcdefghij"
SECTOR = 512
ROOT_START = 2**20
ROOT_KIB = 16 * 1024
LINUX_ARM64_ROOT = bytes.fromhex("45b021b9f01dc341af444c6f280d3fae")
"""B921B045-1DF0-41C3-AF44-4C6F280D3FAE, Discoverable Partitions Specification; the first three fields little-endian."""
CLOUD_CFG = "datasource_list: [NoCloud]\n"


def generic_image(folder: Path) -> Path:
    """A GPT disk with one ext4 root file system that has cloud-init, as Debian's cloud images have."""
    root = folder / "root"
    for name, text in {"usr/lib/os-release": "ID=debian\n", "etc/cloud/cloud.cfg": CLOUD_CFG}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    image = folder / "vendor.img"
    image.write_bytes(_gpt(ROOT_START // SECTOR, (ROOT_START + ROOT_KIB * 1024) // SECTOR - 1))
    options = ("-q", "-F", "-t", "ext4", "-L", "rootfs", "-E", f"offset={ROOT_START}", "-d", str(root))
    run("mke2fs", *options, str(image), f"{ROOT_KIB}k")
    return image


def _gpt(first: int, last: int) -> bytes:
    """A disk with one partition; UEFI specification 2.10, section 5.3."""
    entry = struct.pack("<16s16sQQQ72s", LINUX_ARM64_ROOT, bytes(range(16)), first, last, 0, "root".encode("utf-16-le"))
    entries = entry.ljust(128 * 128, b"\0")
    sectors = last + 1 + 33
    disk = bytearray(sectors * SECTOR)
    disk[446:462] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, sectors - 1)
    disk[510:512] = b"\x55\xaa"
    for here, other, table in ((1, sectors - 1, 2), (sectors - 1, 1, sectors - 33)):
        fields = (here, other, 34, sectors - 34, bytes(range(16, 32)), table, 128, 128, zlib.crc32(entries))
        header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields)
        header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
        disk[here * SECTOR : here * SECTOR + len(header)] = header
        disk[table * SECTOR : table * SECTOR + len(entries)] = entries
    return bytes(disk)


def test_generic_arm64_card(tmp_path: Path) -> None:
    board = tmp_path / "board"
    board.mkdir()
    (board / "device.toml").write_text(
        f'[device]\nid = "board-7"\ntask = "digits"\ndata = "/srv/data.npz"\n[trust]\ngenesis_digest = "{"ab" * 32}"\n'
        '[enrolment]\nurl = "https://registrar.test:8443"\n[[broker]]\nhost = "broker.test"\n'
    )
    (board / "ca.pem").write_text("CA of the registrar\n")
    (board / "artifact.flm").write_bytes(bytes(range(256)))
    (board / "claim.txt").write_text(f"{TOKEN}\n")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "edge_flchain-0.1-py3-none-any.whl").write_bytes(b"ours" * 1000)
    (wheels / "numpy-2.4.0-cp313-cp313-manylinux_2_28_aarch64.whl").write_bytes(b"numpy" * 1000)
    image, card = tmp_path / "image.img", tmp_path / "card.img"
    customise = ["image", "customise", str(generic_image(tmp_path)), "--profile", "arm64-generic", "--quiet"]
    customise += ["--device-config", str(board / "device.toml"), "--claim-token", str(board / "claim.txt")]
    assert cli.main([*customise, "--wheelhouse", str(wheels), "-o", str(image)]) == 0
    write = ["flash", "write", str(image), "--to", str(card), "--quiet", "--profile", "arm64-generic"]
    assert cli.main([*write, "--dry-run"]) == 0
    assert not card.exists() or card.stat().st_size == 0
    assert cli.main(write) == 0
    assert cli.main(["flash", "verify", str(image), str(card), "--quiet"]) == 0

    volume = f"{card}?offset={ROOT_START}"
    seed = "/var/lib/flchain-seed"
    assert run("debugfs", "-R", f"cat {seed}/state/claim.txt", volume) == f"{TOKEN}\n"
    assert "wheels/numpy-2.4.0" in run("debugfs", "-R", f"cat {seed}/SHA256SUMS", volume)
    user = json.loads(run("debugfs", "-R", "cat /var/lib/cloud/seed/nocloud/user-data", volume).partition("\n")[2])
    assert user["hostname"] == "board-7"
    assert user["runcmd"][0][3] == f"{seed}/flchain-firstboot.service"
    run("e2fsck", "-f", "-n", volume)
