"""The units' commands in their order, for real: a seed with real wheels installs on a throw-away copy of this system,
and what it installed enrols, trains and gets its update merged, as the user that the unit names."""

import configparser
import os
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

import firmware_profiles
from firmware_profiles import cli
from firmware_profiles.image.identity import load_claim, load_identity
from firmware_profiles.image.seed import EXT_FOLDER, Payload, payload_files
from tests.support.deployment import Deployment, write_digits
from tests.support.vendor_images import program

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(1800)]

SEED = f"/{EXT_FOLDER}"
UNITS = Path(firmware_profiles.__file__).parent / "systemd"
# Everything below $1 vanishes with the namespace. The system that runs the tests is the read-only lower layer.
CAGE = """
set -eu
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/system"
mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/system"
mount --rbind /dev "$1/system/dev"
mount --rbind /proc "$1/system/proc"
rm -rf "$1/system/var/lib/flchain" "$1/system/opt/flchain"
mkdir -p "$1/system/$(dirname "$3")"
cp -r "$2" "$1/system$3"
cp "$2/../data.npz" "$1/system/data.npz"
echo inside
exec chroot "$1/system" /bin/sh -c "$4"
"""
UNTIL_MERGED = """
import sqlite3, sys, time
deadline = time.monotonic() + 300
while time.monotonic() < deadline:
    try:
        db = sqlite3.connect("file:/var/lib/flchain/state.sqlite3?mode=ro", uri=True)
        merged = db.execute("SELECT count(*) FROM updates WHERE verdict = 1").fetchone()[0]
        version = db.execute("SELECT coalesce(max(version), -1) FROM installs").fetchone()[0]
        db.close()
        if merged and version >= 1:
            print(f"merged {merged}, installed version {version}")
            sys.exit(0)
    except sqlite3.Error:
        pass
    time.sleep(0.5)
sys.exit(1)
"""


def service(unit: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / unit, encoding="utf-8")
    return parser["Service"]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, mosquitto_path: Path) -> Iterator[Deployment]:
    running = Deployment(tmp_path_factory.mktemp("d") / "fleet", mosquitto_path)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_seed_installs_enrols_trains_and_is_merged(deployment: Deployment, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("not root: no throw-away system")
    if "x86_64" not in sysconfig.get_platform():
        pytest.skip("the wheelhouse of this test is for x86_64")
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    wheels = tmp_path / "wheels"
    words = ["--profile", "x86-64-generic", "--python", version or "none", "-o", str(wheels)]
    if cli.main(["image", "wheelhouse", *words]):
        pytest.skip(f"the system's Python is {version or 'absent'}: the client does not run on it")

    deployment.claim("board-7", tmp_path / "board")
    identity = load_identity(tmp_path / "board" / "device.toml")
    claim = load_claim(tmp_path / "board" / "claim.txt")
    payload = Payload(identity, claim, None, tuple(sorted(wheels.iterdir())))
    for name, content in payload_files(payload, SEED).items():
        path = tmp_path / "seed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.data if isinstance(content.data, bytes) else content.data.read_bytes())
    write_digits(tmp_path / "data.npz")

    first, device = service("flchain-firstboot.service"), service("flchain-device.service")
    user = f"setpriv --reuid={device['User']} --regid={device['Group']} --clear-groups --no-new-privs"
    commands = [
        "export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/ OMP_NUM_THREADS=1",
        "unset PYTHONPATH PYTHONHOME PIP_FIND_LINKS PIP_EXTRA_INDEX_URL",
        f"{first['ExecStart']} || exit 10",
        f"test ! -e {SEED}/state/claim.txt || exit 11",
        "install -o flchain -g flchain -m 0600 /data.npz /var/lib/flchain/data.npz",
        "cd /var/lib/flchain",
        f"{user} {device['ExecStart']} > /var/lib/flchain/service.log 2>&1 & board=$!",
        f"/usr/bin/python3 -c {shlex.quote(UNTIL_MERGED)} || {{ tail -c 3000 service.log; kill $board; exit 12; }}",
        "kill -TERM $board; wait $board; echo stopped $?",
        "ls claim.txt 2>&1; stat -c '%n %a %U' key.pem cert.pem",
        f"{user} /opt/flchain/current/bin/flchain device doctor --config device.toml | grep -v '^ ' | head -40",
    ]
    place = tmp_path / "cage"
    place.mkdir()
    arguments = ["sh", "-c", CAGE, "sh", str(place), str(tmp_path / "seed"), SEED, "\n".join(commands)]
    line = [program("unshare"), "-m", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=900)
    if not done.stdout.startswith("inside"):
        pytest.skip(f"no overlay in a mount namespace: {done.stderr.strip()[-200:]}")
    shown = done.stdout + done.stderr
    assert done.returncode in {0, 1}, shown
    assert "merged " in shown
    assert "stopped 0" in shown
    assert "key.pem 600 flchain" in shown
    assert "claim.txt': No such file" in shown
    assert "ok    certificate: valid for" in shown
    assert deployment.status_of("board-7") == "enrolled"
