"""What Linux shows on each family of boards: small trees of /sys, /proc, /run and /etc, and the vendor's programs.

Names, units and formats are those of the boards' kernels and of the sources named in firmware_profiles/boards/*.toml;
the values are plausible, not measured. ``vcgencmd`` is a shell script that prints a recorded answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

Tree = dict[str, str]

_HWMON: Final = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
_IIO: Final = "sys/bus/i2c/devices/6-0040/iio:device0"
_CPU: Final = "sys/devices/system/cpu"
_MMC: Final = "sys/block/mmcblk0/device"

PMIC: Final = """\
  VDD_CORE_A current(7)=1.20000000A
     3V3_SYS_A current(1)=0.10000000A
  VDD_CORE_V volt(15)=0.90000000V
     3V3_SYS_V volt(9)=3.30000000V
      EXT5V_V volt(24)=5.10000000V
"""
PMIC_W: Final = 1.1451 * (1.2 * 0.9 + 0.1 * 3.3) + 0.5879


def _base(*, model: str, cores: int, max_khz: int, governor: str, ram_kib: int, celsius: float) -> Tree:
    """A healthy board: clock synchronised, state on a writable file system, memory controller on, watchdog running."""
    return {
        "proc/device-tree/model": model + "\0",
        "proc/meminfo": f"MemTotal: {ram_kib} kB\nMemAvailable: {ram_kib * 3 // 4} kB\nSwapTotal: 0 kB\n",
        "proc/swaps": "Filename Type Size Used Priority\n",
        "proc/mounts": "/dev/mmcblk0p2 / ext4 rw,noatime 0 0\nproc /proc proc rw 0 0\n",
        f"{_CPU}/present": f"0-{cores - 1}\n",
        f"{_CPU}/online": f"0-{cores - 1}\n",
        f"{_CPU}/cpufreq/policy0/scaling_governor": f"{governor}\n",
        f"{_CPU}/cpufreq/policy0/scaling_cur_freq": f"{max_khz}\n",
        f"{_CPU}/cpufreq/policy0/cpuinfo_max_freq": f"{max_khz}\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": f"{round(celsius * 1000)}\n",
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
        "sys/class/watchdog/watchdog0/state": "active\n",
        "sys/class/watchdog/watchdog0/identity": "Board watchdog\n",
        "run/systemd/timesync/synchronized": "",
        "sys/fs/ext4/mmcblk0p2/errors_count": "0\n",
    }


def _vcgencmd(answers: Mapping[str, str]) -> str:
    cases = "\n".join(f'  {name}) printf "%s" "{text}" ;;' for name, text in answers.items())
    return f'#!/bin/sh\ncase "$1" in\n{cases}\n  *) echo "error=2 error_msg=Invalid arguments"; exit 255 ;;\nesac\n'


def raspberry(
    model: str, *, cores: int = 4, max_khz: int, ram_mib: int, throttled: str = "0x0", pmic: str = ""
) -> Tree:
    """A Raspberry Pi: throttling by the firmware; power rails on the Pi 5 only."""
    answers = {"get_throttled": f"throttled={throttled}\n"} | ({"pmic_read_adc": pmic} if pmic else {})
    tree = _base(model=model, cores=cores, max_khz=max_khz, governor="ondemand", ram_kib=ram_mib * 1000, celsius=47.2)
    return tree | {"usr/bin/vcgencmd": _vcgencmd(answers)}


def jetson(model: str, *, cores: int, max_khz: int, ram_mib: int, rails: Mapping[str, tuple[int, int]]) -> Tree:
    """A Jetson of JetPack 5 or newer: INA3221 by hwmon, rails as label -> (mV, mA), power mode by nvpmodel."""
    tree = _base(model=model, cores=cores, max_khz=max_khz, governor="schedutil", ram_kib=ram_mib * 1000, celsius=51.5)
    for channel, (label, (volt_mv, ampere_ma)) in enumerate(rails.items(), start=1):
        tree[f"{_HWMON}/in{channel}_label"] = f"{label}\n"
        tree[f"{_HWMON}/in{channel}_input"] = f"{volt_mv}\n"
        tree[f"{_HWMON}/curr{channel}_input"] = f"{ampere_ma}\n"
        tree[f"{_HWMON}/curr{channel}_crit_alarm"] = "0\n"
    # The driver's own sum of shunt voltages, which is no rail.
    tree |= {f"{_HWMON}/in7_label": "sum of shunt voltages\n", f"{_HWMON}/in7_input": "12\n"}
    return tree | {
        "sys/class/rtc/rtc0/name": "tegra_rtc\n",
        "var/lib/nvpmodel/status": "pmode:0001\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n",
    }


def jetson_nano() -> Tree:
    """JetPack 4: the same chip by the industrial I/O driver, with the power of a rail in milliwatts."""
    tree = _base(
        model="NVIDIA Jetson Nano Developer Kit",
        cores=4,
        max_khz=1_479_000,
        governor="schedutil",
        ram_kib=4_059_000,
        celsius=38.0,
    )
    for number, (rail, power_mw) in enumerate({"POM_5V_IN": 1750, "POM_5V_GPU": 40, "POM_5V_CPU": 120}.items()):
        tree |= {f"{_IIO}/rail_name_{number}": f"{rail}\n", f"{_IIO}/in_power{number}_input": f"{power_mw}\n"}
    return tree | {
        "sys/class/rtc/rtc0/name": "max77620-rtc\n",
        "var/lib/nvpmodel/status": "pmode:0000\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=5W >\n",
    }


def x86() -> Tree:
    """An x86_64 edge box: RAPL package, real clock, no device tree."""
    tree = _base(model="", cores=4, max_khz=3_600_000, governor="powersave", ram_kib=16_000_000, celsius=44.0)
    del tree["proc/device-tree/model"]
    zone = "sys/class/powercap/intel-rapl:0"
    return tree | {
        "sys/devices/virtual/dmi/id/product_name": "NucBox G3 Plus\n",
        "sys/class/rtc/rtc0/name": "rtc_cmos\n",
        f"{_CPU}/cpu0/thermal_throttle/core_throttle_count": "7\n",
        f"{zone}/name": "package-0\n",
        f"{zone}/energy_uj": "1000000\n",
        f"{zone}/max_energy_range_uj": "262143328850\n",
    }


FAMILIES: Final[Mapping[str, Tree]] = {
    "rpi-zero-2w": raspberry("Raspberry Pi Zero 2 W Rev 1.0", max_khz=1_000_000, ram_mib=512),
    "rpi-3b-plus": raspberry("Raspberry Pi 3 Model B Plus Rev 1.3", max_khz=1_400_000, ram_mib=1024),
    "rpi-4b": raspberry("Raspberry Pi 4 Model B Rev 1.4", max_khz=1_500_000, ram_mib=4096),
    "rpi-cm4": raspberry("Raspberry Pi Compute Module 4 Rev 1.0", max_khz=1_500_000, ram_mib=4096)
    | {f"{_MMC}/life_time": "0x01 0x01\n", f"{_MMC}/pre_eol_info": "0x01\n"},
    "rpi-5": raspberry("Raspberry Pi 5 Model B Rev 1.0", max_khz=2_400_000, ram_mib=8192, pmic=PMIC)
    | {"sys/class/rtc/rtc0/name": "rpi_rtc\n"},
    "jetson-nano": jetson_nano(),
    "jetson-xavier-nx": jetson(
        "NVIDIA Jetson Xavier NX Developer Kit",
        cores=6,
        max_khz=1_900_000,
        ram_mib=8192,
        rails={"VDD_IN": (5000, 1200), "VDD_CPU_GPU_CV": (5000, 300), "VDD_SOC": (5000, 250)},
    ),
    "jetson-orin-nano": jetson(
        "NVIDIA Jetson Orin Nano Developer Kit",
        cores=6,
        max_khz=1_728_000,
        ram_mib=8192,
        rails={"VDD_IN": (5040, 960), "VDD_CPU_GPU_CV": (5040, 110), "VDD_SOC": (5040, 280)},
    ),
    "jetson-agx-orin": jetson(
        "NVIDIA Jetson AGX Orin Developer Kit",
        cores=12,
        max_khz=2_201_600,
        ram_mib=32768,
        rails={"VDD_GPU_SOC": (19800, 160), "VDD_CPU_CV": (19800, 40), "VIN_SYS_5V0": (4950, 700)},
    ),
    "x86-64-generic": x86(),
}
"""By the profile's name."""


def write_tree(root: Path, tree: Mapping[str, str]) -> Path:
    """Make the files below ``root``; what lies in a bin folder can be run."""
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.parent.name == "bin":
            path.chmod(0o755)
    return root
