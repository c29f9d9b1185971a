"""The script of the first boot, run for real on a throw-away copy of this system: an overlay in a mount namespace."""

import base64
import hashlib
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from firmware_profiles.image.identity import Identity, Wifi
from firmware_profiles.image.seed import Payload, payload_files
from tests.support.vendor_images import program

TOKEN = "c1aim-Token_0123456789abcdefghij"
SEED = "/flchain-seed"
ROOT = Path(__file__).resolve().parents[2]
# Everything below $1 vanishes with the namespace. The system that runs the tests is the read-only lower layer.
CAGE = """
set -eu
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/system"
mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/system"
mount --rbind /dev "$1/system/dev"
mount --rbind /proc "$1/system/proc"
cp -r "$2" "$1/system$3"
rm -rf "$1/system/var/lib/flchain" "$1/system/opt/flchain"
echo inside
exec chroot "$1/system" /bin/sh -c "$4"
"""
Cage = Callable[[str], str]


def client_wheel(folder: Path) -> Path:
    """What the first boot needs of the client, and a command."""
    sources = sorted((ROOT / "edge_sdk").rglob("*.py"))
    files = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sources}
    files |= {
        "edge_flchain_probe.py": "def main():\n    print('client runs')\n",
        "edge_flchain-0.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: edge-flchain\nVersion: 0.1\n",
        "edge_flchain-0.1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "edge_flchain-0.1.dist-info/entry_points.txt": "[console_scripts]\nflchain = edge_flchain_probe:main\n",
    }
    lines = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(text)}")
    record = "edge_flchain-0.1.dist-info/RECORD"
    path = folder / "edge_flchain-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
    return path


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    """Seed folder as it lies on a card."""
    identity = Identity("board-7", None, "claim.txt", {"device.toml": b"[device]\n", "ca.pem": b"CA\n"})
    payload = Payload(
        identity, TOKEN, Wifi("net", "0" * 64, None), (client_wheel(tmp_path),), {"upgrade.toml": b"[upgrade]\n"}
    )
    folder = tmp_path / "seed"
    for name, content in payload_files(payload, SEED).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = content.data if isinstance(content.data, bytes) else content.data.read_bytes()
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def cage(tmp_path: Path, seed: Path) -> Cage:
    """Runs a shell command on the throw-away system and returns what it printed."""
    if os.geteuid():
        pytest.skip("not root: no throw-away system")
    unshare = program("unshare")
    place = tmp_path / "cage"
    place.mkdir()

    def run(command: str) -> str:
        arguments = ["sh", "-c", CAGE, "sh", str(place), str(seed), SEED, command]
        done = subprocess.run([unshare, "-m", *arguments], capture_output=True, text=True, check=False, timeout=110)
        if not done.stdout.startswith("inside"):
            pytest.skip(f"no overlay in a mount namespace: {done.stderr.strip()[-200:]}")
        return done.stdout.removeprefix("inside\n") + done.stderr

    return run


def test_installs_once_and_leaves_no_claim_in_the_seed(cage: Cage) -> None:
    shown = cage(
        f"sh {SEED}/install.sh && sh {SEED}/install.sh; echo status $?\n"
        "cd /var/lib/flchain; stat -c '%n %a %U' . claim.txt device.toml ca.pem .installed; cat claim.txt\n"
        "/opt/flchain/current/bin/flchain; readlink /opt/flchain/committed\n"
        "stat -c '%n %a %U' /etc/flchain/upgrade.toml\n"
        "readlink /etc/systemd/system/timers.target.wants/flchain-upgrade.timer\n"
        "readlink /etc/systemd/system/multi-user.target.wants/flchain-upgrade-boot.service\n"
        "stat -c '%n %a' /etc/NetworkManager/system-connections/flchain-wifi.nmconnection\n"
        "readlink /etc/systemd/system/multi-user.target.wants/flchain-device.service\n"
        f"ls {SEED}/state {SEED}/wifi.nmconnection\n"
    )
    assert "status 0" in shown
    for line in (". 700 flchain", "claim.txt 600 flchain", "device.toml 600 flchain", "client runs", TOKEN):
        assert line in shown
    assert "client runs\na\n/etc/flchain/upgrade.toml 644 root\n/etc/systemd/system/flchain-upgrade.timer\n" in shown
    assert "flchain-wifi.nmconnection 600" in shown
    assert "/etc/systemd/system/flchain-upgrade-boot.service" in shown
    assert "/etc/systemd/system/flchain-device.service" in shown
    assert f"{SEED}/wifi.nmconnection': No such file" in shown
    assert shown.count("claim.txt") == 1


def test_power_cut_after_copying_is_completed(cage: Cage) -> None:
    shown = cage(
        f"sh {SEED}/install.sh; rm /var/lib/flchain/.installed; rm /var/lib/flchain/claim.txt\n"
        f"sh {SEED}/install.sh; echo status $?; ls -A /var/lib/flchain\n"
    )
    assert "status 0" in shown
    assert ".installed" in shown
    assert "claim.txt" not in shown  # enrolled meanwhile: the used claim does not come back


def test_damaged_seed_installs_nothing(cage: Cage, seed: Path) -> None:
    (seed / "state" / "ca.pem").write_text("another CA\n")
    shown = cage(f"sh {SEED}/install.sh; echo status $?; ls -d /var/lib/flchain; cat {SEED}/state/claim.txt")
    assert "status 1" in shown
    assert "ca.pem: FAILED" in shown
    assert "'/var/lib/flchain': No such file" in shown
    assert TOKEN in shown
