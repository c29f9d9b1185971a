"""The files of a seed: one folder of ours, and what makes each kind of system run its ``install.sh`` at first boot.

Settings for cloud-init and netplan are written as JSON, which is YAML: quoting is then nobody's art. Sources:
cloud-init documentation (data source NoCloud), rpi-imager documentation (formats ``cloudinit-rpi`` and ``systemd``),
NetworkManager's keyfile format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Final

from firmware_profiles.errors import FirmwareError, ImageRefusal, ImageRefusedError
from firmware_profiles.image.identity import Identity, Wifi
from firmware_profiles.profile import InitFormat

FAT_FOLDER: Final = PurePosixPath("edge")
EXT_FOLDER: Final = PurePosixPath("var/lib/flchain-seed")
NOCLOUD_FOLDER: Final = PurePosixPath("var/lib/cloud/seed/nocloud")
FIRSTBOOT_UNIT: Final = PurePosixPath("etc/systemd/system/flchain-firstboot.service")
FIRSTBOOT_LINK: Final = PurePosixPath("etc/systemd/system/multi-user.target.wants/flchain-firstboot.service")
UNITS: Final = (
    "flchain-device.service",
    "flchain-upgrade.service",
    "flchain-upgrade.timer",
    "flchain-upgrade-boot.service",
    "journald.conf",
)
"""Files of the folder ``systemd`` that ``install.sh`` puts into their places."""
_FIRSTRUN: Final = """\
#!/bin/sh
# Started once by systemd.run= in cmdline.txt, which is taken out again whatever happens: a board must not loop.
# The boot that follows does the work, and the ones after it until it is done.
install -m 0644 {mount}/edge/{unit} /etc/systemd/system/{unit}
systemctl enable {unit}
rm -f {mount}/firstrun.sh
sed -i 's/ systemd\\.\\(run\\|run_success_action\\|unit\\)=[^ ]*//g' {mount}/cmdline.txt
sync
exit 0
"""
CMDLINE_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Payload:
    """What goes onto the board, apart from how its system is told."""

    identity: Identity
    claim: str
    wifi: Wifi | None
    wheels: tuple[Path, ...]
    upgrade: Mapping[str, bytes] = field(default_factory=dict)
    """Files for /etc/flchain: upgrade.toml and the first root of the software repository."""


@dataclass(frozen=True, slots=True)
class Content:
    """A file to be: bytes, or a file of this machine."""

    data: bytes | Path
    mode: int = 0o600

    def digest(self) -> str:
        """SHA-256 in hex."""
        if isinstance(self.data, bytes):
            return hashlib.sha256(self.data).hexdigest()
        with self.data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


Files = dict[PurePosixPath, Content]


def payload_files(payload: Payload, folder: str) -> Files:
    """Our own folder, by names relative to it; SHA256SUMS covers all the rest.

    Args:
        payload: What belongs to the board.
        folder: Where the board will find it, an absolute path.
    """
    state = PurePosixPath("state")
    files: Files = {state / name: Content(data) for name, data in payload.identity.files.items()}
    files[state / payload.identity.claim_name] = Content(f"{payload.claim}\n".encode())
    files[PurePosixPath("install.sh")] = Content(_resource("image", "install.sh"), 0o755)
    files[PurePosixPath(FIRSTBOOT_UNIT.name)] = Content(_firstboot_unit(folder), 0o644)
    for name in UNITS:
        files[PurePosixPath(name)] = Content(_resource("systemd", name), 0o644)
    if payload.wifi is not None:
        files[PurePosixPath("wifi.nmconnection")] = Content(_keyfile(payload.wifi))
    for name, data in payload.upgrade.items():
        files[PurePosixPath("upgrade") / name] = Content(data, 0o644)
    for wheel in payload.wheels:
        files[PurePosixPath("wheels") / wheel.name] = Content(wheel, 0o644)
    sums = "".join(f"{content.digest()}  {name}\n" for name, content in sorted(files.items()))
    return files | {PurePosixPath("SHA256SUMS"): Content(sums.encode(), 0o644)}


def system_files(init_format: InitFormat, payload: Payload, *, boot_mount: str | None, cmdline: bytes | None) -> Files:
    """What the vendor's system reads, by paths from the root of the volume that takes the seed.

    Args:
        init_format: The system's own way.
        payload: What will lie beside it.
        boot_mount: Where the system mounts the FAT volume of the seed; None for a seed in the root file system.
        cmdline: Present content of cmdline.txt, for ``firstrun``.

    Raises:
        ImageRefusedError: ``firstrun`` without a cmdline.txt that can take it.
        FirmwareError: the profile lacks what the format needs.
    """
    match init_format:
        case InitFormat.CLOUDINIT | InitFormat.CLOUDINIT_RPI:
            folder = folder_on_board(boot_mount)
            place = PurePosixPath() if boot_mount else NOCLOUD_FOLDER
            return {place / name: content for name, content in _nocloud(payload, folder).items()}
        case InitFormat.FIRSTRUN:
            if boot_mount is None:
                raise FirmwareError("firstrun needs a boot volume: the profile names no boot_mount")
            return {
                PurePosixPath("firstrun.sh"): Content(
                    _FIRSTRUN.format(mount=boot_mount, unit=FIRSTBOOT_UNIT.name).encode(), 0o755
                ),
                PurePosixPath("cmdline.txt"): Content(_with_firstrun(cmdline, boot_mount), 0o644),
            }
        case InitFormat.L4T_ROOTFS:
            return {FIRSTBOOT_UNIT: Content(_firstboot_unit(folder_on_board(None)), 0o644)}
        case InitFormat.NONE:
            return {}


def folder_on_board(boot_mount: str | None) -> str:
    """Absolute path of our folder on the running board."""
    return f"{boot_mount}/{FAT_FOLDER}" if boot_mount else f"/{EXT_FOLDER}"


def _firstboot_unit(folder: str) -> bytes:
    return _resource("systemd", FIRSTBOOT_UNIT.name).replace(f"/{EXT_FOLDER}".encode(), folder.encode())


def _nocloud(payload: Payload, folder: str) -> Mapping[str, Content]:
    device_id = payload.identity.device_id
    # A new instance id makes cloud-init run again on a card that is customised a second time.
    instance = f"flchain-{device_id}-{hashlib.sha256(payload.claim.encode()).hexdigest()[:12]}"
    # cloud-init runs a command once, cut off or not; the unit runs at every boot until the work is done.
    unit = FIRSTBOOT_UNIT.name
    commands = [
        ["install", "-m", "0644", f"{folder}/{unit}", f"/{FIRSTBOOT_UNIT}"],
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", unit],
        ["systemctl", "start", "--no-block", unit],
    ]
    user = {"hostname": device_id, "preserve_hostname": False, "runcmd": commands}
    files = {
        "user-data": Content(f"#cloud-config\n{json.dumps(user, indent=2)}\n".encode()),
        "meta-data": Content(f"{json.dumps({'instance-id': instance, 'local-hostname': device_id})}\n".encode()),
    }
    if payload.wifi is not None:
        files["network-config"] = Content(f"{json.dumps(_network(payload.wifi), indent=2)}\n".encode())
    return files


def _network(wifi: Wifi) -> Mapping[str, object]:
    """Wired and wireless, for netplan and NetworkManager.

    A board without Wi-Fi gets none of this: cloud-init then asks for an address on the port that it finds, whatever
    manages the network. Its renderer for systemd-networkd takes ``wired`` for the name of a port and ignores the match
    (cloud-init 25.1, seen on the emulated board): the board would never come online.
    """
    wlan: dict[str, object] = {"dhcp4": True, "optional": True, "access-points": {wifi.ssid: {"password": wifi.psk}}}
    if wifi.country is not None:
        wlan["regulatory-domain"] = wifi.country
    return {
        "version": 2,
        "ethernets": {"wired": {"match": {"name": "e*"}, "dhcp4": True, "optional": True}},
        "wifis": {"wlan0": wlan},
    }


def _with_firstrun(cmdline: bytes | None, mount: str) -> bytes:
    if cmdline is None or not cmdline.strip() or len(cmdline) > CMDLINE_BYTES_MAX or b"\n" in cmdline.strip():
        raise ImageRefusedError(
            ImageRefusal.WRONG_SYSTEM, "no cmdline.txt of one line: not a system that runs firstrun"
        )
    if b" systemd.run=" in cmdline:
        raise ImageRefusedError(ImageRefusal.WRONG_SYSTEM, "cmdline.txt runs something at first boot already")
    words = f"systemd.run={mount}/firstrun.sh systemd.run_success_action=reboot systemd.unit=kernel-command-line.target"
    return cmdline.strip() + f" {words}\n".encode()


def _keyfile(wifi: Wifi) -> bytes:
    # The name of the network as a list of bytes: no character of it can end the value.
    ssid = "".join(f"{byte};" for byte in wifi.ssid.encode())
    return (
        "[connection]\nid=flchain-wifi\ntype=wifi\nautoconnect=true\n\n"
        f"[wifi]\nmode=infrastructure\nssid={ssid}\n\n"
        f"[wifi-security]\nkey-mgmt=wpa-psk\npsk={wifi.psk}\n\n[ipv4]\nmethod=auto\n\n[ipv6]\nmethod=auto\n"
    ).encode()


def _resource(folder: str, name: str) -> bytes:
    return (resources.files("firmware_profiles") / folder / name).read_bytes()
