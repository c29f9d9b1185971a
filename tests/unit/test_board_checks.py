"""The doctor's look at the board, on trees of every family, healthy and with one fault each."""

from pathlib import Path

import pytest

from edge_sdk.adapters.board_facts import BoardFacts
from edge_sdk.device.board_checks import examine_board
from edge_sdk.device.findings import Finding, Level
from tests.support.board_trees import FAMILIES, Tree, raspberry, write_tree

STATE = Path("/var/lib/flchain")
HWMON = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
READ_ONLY_ROOT = "/dev/mmcblk0p2 / ext4 ro,noatime 0 0\n"


def look(root: Path, tree: Tree, *, without: tuple[str, ...] = ()) -> dict[str, list[Finding]]:
    """Findings by what they are about."""
    kept = {name: text for name, text in tree.items() if not name.startswith(without or ("nothing/",))}
    facts = BoardFacts(root=write_tree(root, kept))
    found: dict[str, list[Finding]] = {}
    for finding in examine_board(facts, state=STATE, temperature_max_c=80):
        found.setdefault(finding.what, []).append(finding)
    return found


def test_every_family_has_a_tree() -> None:
    assert {"rpi-zero-2w", "rpi-4b", "rpi-5", "jetson-nano", "jetson-agx-orin", "x86-64-generic"} <= set(FAMILIES)


@pytest.mark.parametrize("board", FAMILIES)
def test_healthy_board(tmp_path: Path, board: str) -> None:
    found = look(tmp_path, FAMILIES[board])
    assert {finding.level for findings in found.values() for finding in findings} == {Level.OK}, found
    assert {"board", "power", "heat", "storage", "time", "memory", "swap", "mode", "watchdog"} == set(found)


def test_what_the_boards_say_of_themselves(tmp_path: Path) -> None:
    assert "cannot detect under-voltage" in look(tmp_path / "a", FAMILIES["rpi-zero-2w"])["power"][0].text
    assert "25W" in look(tmp_path / "b", FAMILIES["jetson-orin-nano"])["mode"][0].text
    assert "no clock chip" in look(tmp_path / "c", FAMILIES["rpi-4b"])["time"][0].text
    assert look(tmp_path / "d", FAMILIES["x86-64-generic"])["board"][0].text == "NucBox G3 Plus"
    assert "up to 10 %" in look(tmp_path / "e", FAMILIES["rpi-cm4"])["storage"][1].text


FAULTS: dict[str, tuple[str, Tree, str, Level, str, str]] = {
    "under-voltage now": ("rpi-4b", {}, "power", Level.FAIL, "under-voltage now (0x50005)", "supply"),
    "memory is not bounded": (
        "rpi-4b",
        {"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n"},
        "memory",
        Level.WARN,
        "MemoryMax has no effect",
        "cgroup_enable=memory",
    ),
    "memory is not bounded, old hierarchy": (
        "rpi-3b-plus",
        {"proc/cgroups": "#subsys_name hierarchy num_cgroups enabled\nmemory 0 70 0\n"},
        "memory",
        Level.WARN,
        "MemoryMax has no effect",
        "cmdline.txt",
    ),
    "too little memory": (
        "rpi-zero-2w",
        {"proc/meminfo": "MemTotal: 248000 kB\nMemAvailable: 90000 kB\n"},
        "memory",
        Level.FAIL,
        "of 242 MiB available",
        "512 MB",
    ),
    "memory taken": (
        "rpi-zero-2w",
        {"proc/meminfo": "MemTotal: 427000 kB\nMemAvailable: 90000 kB\n"},
        "memory",
        Level.WARN,
        "87 of 416 MiB",
        "systemd-cgtop",
    ),
    "hot": (
        "rpi-3b-plus",
        {"sys/class/thermal/thermal_zone0/temp": "81500\n"},
        "heat",
        Level.FAIL,
        "81.5",
        "heat sink",
    ),
    "nearly hot": (
        "jetson-xavier-nx",
        {"sys/class/thermal/thermal_zone0/temp": "76000\n"},
        "heat",
        Level.WARN,
        "training pauses at 80",
        "fan",
    ),
    "clock held down": (
        "jetson-orin-nano",
        {
            "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
            "sys/class/thermal/cooling_device0/cur_state": "3\n",
        },
        "heat",
        Level.WARN,
        "cpufreq-cpu0",
        "fan",
    ),
    "over-current": (
        "jetson-orin-nano",
        {f"{HWMON}/curr1_crit_alarm": "1\n"},
        "power",
        Level.FAIL,
        "VDD_IN",
        "nvpmodel",
    ),
    "read-only state": (
        "rpi-5",
        {"proc/mounts": READ_ONLY_ROOT},
        "storage",
        Level.FAIL,
        "read-only",
        "partition of its own",
    ),
    "volatile state": (
        "rpi-5",
        {"proc/mounts": "overlay / overlay rw,lowerdir=/x 0 0\n"},
        "storage",
        Level.FAIL,
        "lost at each start",
        "writable partition",
    ),
    "file system errors": (
        "rpi-4b",
        {"sys/fs/ext4/mmcblk0p2/errors_count": "3\n"},
        "storage",
        Level.FAIL,
        "counted 3 errors",
        "e2fsck",
    ),
    "worn": (
        "rpi-cm4",
        {"sys/block/mmcblk0/device/life_time": "0x03 0x0a\n"},
        "storage",
        Level.WARN,
        "100 %",
        "replace",
    ),
    "worn out": (
        "rpi-cm4",
        {"sys/block/mmcblk0/device/pre_eol_info": "0x03\n"},
        "storage",
        Level.FAIL,
        "10 %",
        "replace",
    ),
    "swap on the card": (
        "rpi-zero-2w",
        {"proc/swaps": "Filename Type Size Used Priority\n/var/swap file 102396 20480 -2\n"},
        "swap",
        Level.WARN,
        "/var/swap (20 MiB in use)",
        "dphys-swapfile",
    ),
    "cores switched off": (
        "jetson-nano",
        {"sys/devices/system/cpu/online": "0-1\n", "var/lib/nvpmodel/status": "pmode:0001\n"},
        "mode",
        Level.WARN,
        "power mode 5W, governor schedutil, 2 of 4 cores",
        "nvpmodel",
    ),
    "watchdog idle": (
        "rpi-4b",
        {"sys/class/watchdog/watchdog0/state": "inactive\n"},
        "watchdog",
        Level.WARN,
        "nobody feeds it",
        "RuntimeWatchdogSec",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named_with_its_cure(tmp_path: Path, name: str) -> None:
    board, changes, what, level, words, cure = FAULTS[name]
    tree = FAMILIES[board] | changes
    without = ("sys/fs/cgroup",) if "proc/cgroups" in changes else ()
    if name == "under-voltage now":
        tree = raspberry("Raspberry Pi 4 Model B", max_khz=1_500_000, ram_mib=4096, throttled="0x50005")
    found = look(tmp_path, tree, without=without)
    (bad,) = [finding for finding in found[what] if finding.level is level and words in finding.text]
    assert cure in bad.mend
    others = {finding.level for key, findings in found.items() if key != what for finding in findings}
    assert others == {Level.OK}, "one fault, one alarm"


def test_throttling_of_the_past_is_a_warning(tmp_path: Path) -> None:
    tree = raspberry("Raspberry Pi 5 Model B", max_khz=2_400_000, ram_mib=8192, throttled="0x80000")
    (finding,) = look(tmp_path, tree)["power"]
    assert (finding.level, finding.text) == (Level.WARN, "soft temperature limit since the start (0x80000)")


def test_throttling_by_sysfs_needs_no_program(tmp_path: Path) -> None:
    """Our service may not open the firmware's mailbox on every system; the kernel shows the same word as a file."""
    tree = {name: text for name, text in FAMILIES["rpi-4b"].items() if "vcgencmd" not in name}
    tree["sys/devices/platform/soc/soc:firmware/get_throttled"] = "20002\n"
    (finding,) = look(tmp_path, tree)["power"]
    assert (finding.level, finding.text) == (Level.WARN, "frequency capped now (0x20002)")


def test_clock_that_nobody_has_set(tmp_path: Path) -> None:
    (finding,) = look(tmp_path, FAMILIES["rpi-zero-2w"], without=("run/",))["time"]
    assert finding.level is Level.WARN
    assert "every start begins in the past" in finding.text
    assert "fake-hwclock" in finding.mend


def test_no_watchdog_and_no_sensors(tmp_path: Path) -> None:
    found = look(tmp_path, {"proc/mounts": "/dev/sda1 / ext4 rw 0 0\n"})
    assert [finding.level for finding in found["watchdog"]] == [Level.WARN]
    assert found["heat"][0].text == "no sensor: the governor cannot look at it"
    assert found["board"][0].text == "does not say what it is"
    assert "memory" not in found
    assert "mode" not in found


def test_what_is_no_number_is_no_fact(tmp_path: Path) -> None:
    nonsense = {name: "garbage\n" for name in FAMILIES["rpi-cm4"] if not name.endswith("vcgencmd")}
    facts = BoardFacts(root=write_tree(tmp_path, nonsense))
    assert facts.memory_bytes() is None
    assert facts.wear() == []
    assert facts.temperatures_c() == {}
    assert facts.max_clock_mhz() is None
    assert list(examine_board(facts, state=STATE, temperature_max_c=80))
