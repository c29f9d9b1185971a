"""The units: bounds and sandbox are stated, systemd itself understands them, the shell script parses."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

import firmware_profiles

ROOT = Path(firmware_profiles.__file__).parent
UNITS = (
    "flchain-device.service",
    "flchain-firstboot.service",
    "flchain-upgrade.service",
    "flchain-upgrade-boot.service",
    "flchain-upgrade.timer",
)


@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_the_unit(tmp_path: Path, name: str) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze")
    unit = tmp_path / name
    # The program of the unit is on the board, not here.
    text = (ROOT / "systemd" / name).read_text(encoding="utf-8")
    for link in ("current", "committed"):
        text = text.replace(f"/opt/flchain/{link}/bin/flchain", "/bin/true")
    unit.write_text(text)
    if unit.suffix == ".timer":
        (tmp_path / unit.with_suffix(".service").name).write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n")
    done = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if name in line]
    assert ours == []


EXPOSURE_MAX = {
    "flchain-device.service": 20,
    "flchain-upgrade.service": 30,
    "flchain-upgrade-boot.service": 20,
    "flchain-firstboot.service": 70,
}
"""Tenths of systemd's score, 0 best: what trains is shut in; what installs the system works as root."""


@pytest.mark.parametrize("name", EXPOSURE_MAX)
def test_exposure_of_the_unit_by_systemds_own_judgement(tmp_path: Path, name: str) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze")
    unit = tmp_path / name
    unit.write_text((ROOT / "systemd" / name).read_text(encoding="utf-8"))
    line = [analyze, "security", "--offline=true", f"--threshold={EXPOSURE_MAX[name]}", "--no-pager", str(unit)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd older than 250 judges running units only")
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.parametrize("name", EXPOSURE_MAX)
def test_every_service_is_bounded(name: str) -> None:
    text = (ROOT / "systemd" / name).read_text(encoding="utf-8")
    bounds = ("MemoryMax=", "TasksMax=", "CPUWeight=", "LimitCORE=0", "NoNewPrivileges=yes", "TimeoutStartSec=")
    assert [bound for bound in bounds if f"\n{bound}" not in text] == []


def test_logs_stay_in_memory_and_are_bounded() -> None:
    text = (ROOT / "systemd" / "journald.conf").read_text(encoding="utf-8")
    for line in ("Storage=volatile", "RuntimeMaxUse=16M", "RateLimitBurst=200"):
        assert f"\n{line}" in text


def test_device_unit_fits_half_a_gibibyte_and_watches() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "systemd" / "flchain-device.service", encoding="utf-8")
    service = parser["Service"]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) >= 2 * 10
    assert int(service["MemoryHigh"].rstrip("M")) < int(service["MemoryMax"].rstrip("M")) <= 300
    assert {"NoNewPrivileges", "ProtectSystem", "CPUQuota", "TasksMax", "DevicePolicy"} <= set(service)


def test_scripts_parse() -> None:
    subprocess.run(["sh", "-n", str(ROOT / "image" / "install.sh")], check=True)


def test_the_updater_keeps_the_right_to_become_the_devices_user() -> None:
    lines = (ROOT / "systemd" / "flchain-upgrade.service").read_text(encoding="utf-8").splitlines()
    assert "CapabilityBoundingSet=CAP_DAC_READ_SEARCH CAP_KILL CAP_SETUID CAP_SETGID" in lines
    # Seen on the emulated board, systemd 257: with an explicit User=root setreuid is refused in spite of that line.
    assert not [line for line in lines if line.startswith("User=")]
