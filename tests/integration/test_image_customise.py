"""Vendor-like images customised in every format, read back with other programs, file systems clean."""

import gzip
import hashlib
import json
import tomllib
from pathlib import Path

import pytest

from firmware_profiles import cli
from firmware_profiles.image.inspect import inspect
from tests.support.vendor_images import (
    CMDLINE,
    EXT_START,
    FAT_START,
    check_clean,
    program,
    run,
    vendor_image,
)

TOKEN = "c1aim-Token_0123456789abcdefghij"
CLOUD = {"etc/cloud/cloud.cfg": "datasource_list: [NoCloud]\n"}
PSK = "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
"""Of passphrase "password" and ssid "IEEE": test vector of IEEE 802.11i, annex H.4.3."""


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """Folder with what belongs to one board."""
    folder = tmp_path / "board"
    folder.mkdir()
    (folder / "device.toml").write_text(
        '[device]\nid = "board-7"\ntask = "digits"\ndata = "/srv/data.npz"\n'
        f'[trust]\ngenesis_digest = "{"ab" * 32}"\n[enrolment]\nurl = "https://registrar.test:8443"\n'
        '[[broker]]\nhost = "broker.test"\ntls = true\nca_file = "broker-ca.pem"\n'
    )
    (folder / "ca.pem").write_text("CA of the registrar\n")
    (folder / "broker-ca.pem").write_text("CA of the broker\n")
    (folder / "artifact.flm").write_bytes(bytes(range(256)) * 64)
    (folder / "claim.txt").write_text(f"{TOKEN}\n")
    (folder / "wifi.toml").write_text('ssid = "IEEE"\npassword = "password"\ncountry = "DE"\n')
    (folder / "upgrade.toml").write_text('[upgrade]\nurls = ["https://software.test"]\n')
    (folder / "root.json").write_text('{"signed": {"_type": "root"}, "signatures": []}\n')
    wheels = folder / "wheels"
    wheels.mkdir()
    for name in (
        "edge_flchain-0.1-py3-none-any.whl",
        "numpy-2.4.0-cp313-cp313-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
        "cryptography-50.0-cp311-abi3-manylinux_2_28_aarch64.whl",
    ):
        (wheels / name).write_bytes(name.encode() * 1000)
    return folder


def customise(image: Path, board: Path, out: Path, *options: str, profile: str = "rpi-5") -> int:
    return cli.main(
        [
            *("image", "customise", str(image), "--profile", profile, "--device-config", str(board / "device.toml")),
            *("--claim-token", str(board / "claim.txt"), "--quiet", "-o", str(out), *options),
        ]
    )


def fat(image: Path, name: str) -> str:
    return run("mtype", "-i", f"{image}@@{FAT_START}", f"::/{name}")


def ext(image: Path, command: str) -> str:
    return run("debugfs", "-R", command, f"{image}?offset={EXT_START}")


def test_cloudinit_rpi(tmp_path: Path, board: Path) -> None:
    vendor = vendor_image(tmp_path, root_files=CLOUD)
    packed = tmp_path / "vendor.img.gz"
    packed.write_bytes(gzip.compress(vendor.read_bytes(), 1))
    out = tmp_path / "out.img"
    wheels = ("--wheelhouse", str(board / "wheels"), "--wifi", str(board / "wifi.toml"))
    assert customise(packed, board, out, *wheels, "--upgrade-config", str(board / "upgrade.toml")) == 0
    user = fat(out, "user-data")
    assert user.startswith("#cloud-config\n")
    settings = json.loads(user.partition("\n")[2])
    assert settings["hostname"] == "board-7"
    assert ["systemctl", "enable", "flchain-firstboot.service"] in settings["runcmd"]
    assert settings["runcmd"][0][3] == "/boot/firmware/edge/flchain-firstboot.service"
    assert "ExecStart=/bin/sh /boot/firmware/edge/install.sh" in fat(out, "edge/flchain-firstboot.service")
    network = json.loads(fat(out, "network-config"))
    assert network["wifis"]["wlan0"]["access-points"] == {"IEEE": {"password": PSK}}
    assert json.loads(fat(out, "meta-data"))["local-hostname"] == "board-7"
    assert fat(out, "edge/state/claim.txt") == f"{TOKEN}\n"
    assert tomllib.loads(fat(out, "edge/state/device.toml"))["device"]["id"] == "board-7"
    assert fat(out, "edge/state/ca.pem") == "CA of the registrar\n"
    assert fat(out, "edge/state/broker-ca.pem") == "CA of the broker\n"
    sums = {line[66:]: line[:64] for line in fat(out, "edge/SHA256SUMS").splitlines()}
    numpy_wheel = "numpy-2.4.0-cp313-cp313-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl"
    assert sums[f"wheels/{numpy_wheel}"] == hashlib.sha256(numpy_wheel.encode() * 1000).hexdigest()
    assert {"upgrade/upgrade.toml", "upgrade/root.json"} <= set(sums)
    assert {"flchain-upgrade.timer", "flchain-upgrade-boot.service"} <= set(sums)
    assert len(sums) == 18
    check_clean(out, tmp_path)
    assert out.stat().st_mode & 0o777 == 0o600


def test_customised_image_is_flashed_by_its_manifest(tmp_path: Path, board: Path) -> None:
    vendor = vendor_image(tmp_path, root_files=CLOUD)
    out, card = tmp_path / "out.img", tmp_path / "card.img"
    assert customise(vendor, board, out) == 0
    write = ["flash", "write", str(out), "--to", str(card), "--quiet"]
    assert cli.main([*write, "--profile", "rpi-4b"]) == 4
    assert cli.main([*write, "--profile", "rpi-5", "--log", str(tmp_path / "log")]) == 0
    assert card.read_bytes() == out.read_bytes()
    assert cli.main(["flash", "verify", str(out), str(card), "--quiet"]) == 0
    with card.open("r+b") as file:
        file.seek(20_000_001)
        byte = file.read(1)
        file.seek(20_000_001)
        file.write(bytes([byte[0] ^ 1]))
    assert cli.main(["flash", "verify", str(out), str(card), "--quiet", "--log", str(tmp_path / "log")]) == 5
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "image", "done", "start", "failed"]
    assert (events[-1]["offset"], events[-1]["exit_status"]) == (20_000_001, 5)
    assert TOKEN not in (tmp_path / "log").read_text()


def test_what_lies_in_the_place_of_the_copy_is_not_written_into(tmp_path: Path, board: Path) -> None:
    """A link leads out of the folder, and a file of others would let them read the claim."""
    vendor = vendor_image(tmp_path, root_files=CLOUD)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "out.img.partial").symlink_to(victim)
    assert customise(vendor, board, tmp_path / "out.img") == 0
    assert victim.read_text() == "kept"
    (tmp_path / "second.img.partial").touch(mode=0o666)
    assert customise(vendor, board, tmp_path / "second.img") == 0
    for name in ("out.img", "second.img"):
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_firstrun(tmp_path: Path, board: Path) -> None:
    vendor = vendor_image(tmp_path, root_files={})
    out = tmp_path / "out.img"
    assert customise(vendor, board, out, "--init-format", "firstrun") == 0
    assert fat(out, "cmdline.txt") == (
        f"{CMDLINE} systemd.run=/boot/firmware/firstrun.sh systemd.run_success_action=reboot "
        "systemd.unit=kernel-command-line.target\n"
    )
    script = fat(out, "firstrun.sh")
    assert "install -m 0644 /boot/firmware/edge/flchain-firstboot.service" in script
    # What the script does to cmdline.txt gives the vendor's line back.
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / "cmdline.txt").write_text(fat(out, "cmdline.txt"))
    line = next(line for line in script.splitlines() if line.startswith("sed"))
    run("sh", "-c", line.replace("/boot/firmware", str(tmp_path / "boot")))
    assert (tmp_path / "boot" / "cmdline.txt").read_text() == f"{CMDLINE}\n"
    check_clean(out, tmp_path)
    again = tmp_path / "again.img"
    assert customise(out, board, again, "--init-format", "firstrun") == 4
    assert not again.exists()


def test_cloudinit_in_the_root_file_system(tmp_path: Path, board: Path) -> None:
    vendor = vendor_image(tmp_path, root_files=CLOUD)
    out = tmp_path / "out.img"
    assert customise(vendor, board, out, profile="x86-64-generic") == 0
    user = ext(out, "cat /var/lib/cloud/seed/nocloud/user-data")
    runcmd = json.loads(user.partition("\n")[2])["runcmd"]
    assert runcmd[0][3] == "/var/lib/flchain-seed/flchain-firstboot.service"
    # cloud-init's own choice finds the wired port under every network manager; ours does not (image/seed.py).
    assert "network-config" not in ext(out, "ls /var/lib/cloud/seed/nocloud")
    claim = ext(out, "stat /var/lib/flchain-seed/state/claim.txt")
    assert "Mode:  0600" in claim
    assert "User:     0   Group:     0" in claim
    check_clean(out, tmp_path)


def test_l4t_rootfs(tmp_path: Path, board: Path) -> None:
    vendor = vendor_image(tmp_path, root_files={"etc/nv_tegra_release": "# R36\n"}, fat_label="ESP")
    out = tmp_path / "out.img"
    assert customise(vendor, board, out, profile="jetson-orin-nano") == 0
    link = ext(out, "stat /etc/systemd/system/multi-user.target.wants/flchain-firstboot.service")
    assert 'Fast link dest: "/etc/systemd/system/flchain-firstboot.service"' in link
    assert "ExecStart=/bin/sh /var/lib/flchain-seed/install.sh" in ext(
        out, "cat /etc/systemd/system/flchain-firstboot.service"
    )
    check_clean(out, tmp_path)


def test_none_adds_our_folder_only(tmp_path: Path, board: Path) -> None:
    vendor = vendor_image(tmp_path, root_files={})
    out = tmp_path / "out.img"
    assert customise(vendor, board, out, "--init-format", "none") == 0
    assert fat(out, "cmdline.txt") == f"{CMDLINE}\n"
    assert fat(out, "edge/state/claim.txt") == f"{TOKEN}\n"
    check_clean(out, tmp_path)


@pytest.mark.parametrize(
    ("root_files", "label", "profile", "text"),
    [
        ({}, "bootfs", "rpi-5", "cloud.cfg"),
        (CLOUD, "OTHER", "rpi-5", "label bootfs"),
        (CLOUD, "bootfs", "jetson-nano", "nv_tegra_release"),
    ],
)
def test_image_of_another_system_is_refused(
    tmp_path: Path,
    board: Path,
    capsys: pytest.CaptureFixture[str],
    root_files: dict[str, str],
    label: str,
    profile: str,
    text: str,
) -> None:
    vendor = vendor_image(tmp_path, root_files=root_files, fat_label=label)
    out = tmp_path / "out.img"
    assert customise(vendor, board, out, profile=profile) == 4
    assert text in capsys.readouterr().err
    assert [path for path in tmp_path.iterdir() if path.name.startswith(("out", ".seed"))] == []


@pytest.mark.parametrize("profile", ["rpi-5", "x86-64-generic"])
def test_no_room(tmp_path: Path, board: Path, capsys: pytest.CaptureFixture[str], profile: str) -> None:
    vendor = vendor_image(tmp_path, root_files=CLOUD)
    (board / "artifact.flm").write_bytes(bytes(range(1, 251)) * 80_000)  # 20 MB into 16 MiB
    assert customise(vendor, board, tmp_path / "out.img", profile=profile) == 4
    assert "full" in capsys.readouterr().err
    assert not (tmp_path / "out.img").exists()


def test_missing_program_is_named(
    tmp_path: Path, board: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vendor = vendor_image(tmp_path, root_files=CLOUD)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert customise(vendor, board, tmp_path / "out.img") == 1
    assert "apt-get install" in capsys.readouterr().err


def test_inspect_names_volumes_and_guesses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program("mkfs.vfat")
    vendor = vendor_image(tmp_path, root_files={})
    facts = inspect(vendor, bytes_max=2**30)
    shown = [(v.filesystem.kind, v.filesystem.label.lower()) for v in facts.volumes if v.filesystem]
    assert shown == [("fat16", "bootfs"), ("ext4", "rootfs")]
    assert facts.system_guess == "Raspberry Pi OS"
    assert cli.main(["image", "inspect", str(vendor)]) == 0
    assert "Raspberry Pi OS" in capsys.readouterr().out
