"""The units: bounds and sandbox are stated, systemd itself understands them, the shell script parses."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

import firmware_profiles

ROOT = Path(firmware_profiles.__file__).parent
UNITS = ("flchain-device.service", "flchain-firstboot.service", "flchain-upgrade.service", "flchain-upgrade.timer")


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
