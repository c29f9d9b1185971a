"""What a board says of itself: model, throttling, power mode, storage, clock, memory. The root is an argument.

Sources: Raspberry Pi documentation (``get_throttled``, bits 0-3 now and 16-19 since boot), NVIDIA's ``nvpmodel`` (files
``/etc/nvpmodel.conf`` and ``/var/lib/nvpmodel/status``), the kernel's documentation of sysfs (thermal, rtc, watchdog,
mmc, ext4, cpufreq), systemd-timesyncd (``/run/systemd/timesync/synchronized``). What a board does not say is None.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Final

FILE_BYTES_MAX: Final = 64 * 1024
ENTRIES_MAX: Final = 64
PROGRAM_TIMEOUT_S: Final = 2.0
_MODE: Final = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)\s*>")
_RANGE: Final = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


class Throttling(IntFlag):
    """Bits of the Raspberry Pi firmware."""

    UNDER_VOLTAGE = 1 << 0
    FREQUENCY_CAPPED = 1 << 1
    THROTTLED = 1 << 2
    SOFT_TEMPERATURE_LIMIT = 1 << 3
    UNDER_VOLTAGE_SEEN = 1 << 16
    FREQUENCY_CAPPED_SEEN = 1 << 17
    THROTTLED_SEEN = 1 << 18
    SOFT_TEMPERATURE_LIMIT_SEEN = 1 << 19


NOW: Final = (
    Throttling.UNDER_VOLTAGE | Throttling.FREQUENCY_CAPPED | Throttling.THROTTLED | Throttling.SOFT_TEMPERATURE_LIMIT
)


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a path lies."""

    source: str
    point: str
    kind: str
    is_read_only: bool


@dataclass(frozen=True, slots=True)
class Wear:
    """An eMMC's own estimate: ``life`` in tenths, 11 = exceeded; ``reserve`` 1 = normal, 2 and 3 = low."""

    device: str
    life: int
    reserve: int


class BoardFacts:
    """Reads below a root; nothing is kept between two questions."""

    def __init__(self, *, root: Path = Path("/")) -> None:
        """Keep the root of ``sys``, ``proc``, ``run``, ``etc`` and ``usr/bin``."""
        self._root = root

    # --- what it is ---

    def model(self) -> str | None:
        """Name of the board, from the device tree or DMI."""
        for name in ("proc/device-tree/model", "sys/devices/virtual/dmi/id/product_name"):
            text = self.text(name)
            if text:
                return text.rstrip("\0")
        return None

    def cores(self) -> tuple[int, int] | None:
        """Cores that work now, and cores that are there."""
        online, present = (self.text(f"sys/devices/system/cpu/{name}") for name in ("online", "present"))
        return None if online is None or present is None else (_count(online), _count(present))

    def governor(self) -> str | None:
        """Of the first frequency domain."""
        return self.text("sys/devices/system/cpu/cpufreq/policy0/scaling_governor")

    def max_clock_mhz(self) -> float | None:
        """Highest frequency over all domains."""
        found = [self.integer(path) for path in self._glob("sys/devices/system/cpu/cpufreq/policy*/cpuinfo_max_freq")]
        return max((khz / 1000 for khz in found if khz is not None), default=None)

    def power_mode(self) -> str | None:
        """Name of a Jetson's mode. It caps clocks and cores; its watts are no limit."""
        number = (self.text("var/lib/nvpmodel/status") or "").removeprefix("pmode:")
        if not number.isdecimal():
            return None
        names: dict[int, str] = {
            int(found): name for found, name in _MODE.findall(self.text("etc/nvpmodel.conf") or "")
        }
        return names.get(int(number), f"mode {int(number)}")

    # --- power and heat ---

    def throttling(self) -> Throttling | None:
        """Of a Raspberry Pi; None on other boards."""
        text = self.text("sys/devices/platform/soc/soc:firmware/get_throttled")
        if text is None:
            answer = self.program("vcgencmd", "get_throttled")
            text = None if answer is None else answer.strip().removeprefix("throttled=")
        try:
            return None if text is None else Throttling(int(text, 16) & 0xF000F)
        except ValueError:
            return None

    def throttle_events(self) -> int | None:
        """How often the board has held its clock down since the start: x86 cores, Jetson's over-current events."""
        patterns = (
            "sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count",
            "sys/class/hwmon/hwmon*/oc*_event_cnt",
        )
        counts = [self.integer(path) for pattern in patterns for path in self._glob(pattern)]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def over_current(self) -> list[str]:
        """Rails of a Jetson whose critical current is exceeded."""
        alarms = self._glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/curr*_crit_alarm")
        return [self._rail(path) for path in alarms if self.integer(path) == 1]

    def temperatures_c(self) -> dict[str, float]:
        """Every thermal zone by its type."""
        found = {}
        for path in self._glob("sys/class/thermal/thermal_zone*/temp"):
            milli = self.integer(path)
            if milli is not None:
                found[self.text(path.parent / "type") or path.parent.name] = milli / 1000
        return found

    def cooling(self) -> list[str]:
        """Processor cooling that is at work: the kernel holds the clock down."""
        active = []
        for path in self._glob("sys/class/thermal/cooling_device*/cur_state"):
            kind = self.text(path.parent / "type") or ""
            if kind.lower().startswith(("cpufreq", "cpu-", "processor", "thermal-cpufreq")) and self.integer(path):
                active.append(kind)
        return active

    # --- storage ---

    def mount_of(self, path: Path) -> Mount | None:
        """The mount that a path of this system lies on."""
        found = None
        for line in (self.text("proc/mounts") or "").splitlines():
            words = line.split()
            if len(words) < 4:
                continue
            point = words[1].replace("\\040", " ")
            if path.is_relative_to(point) and (found is None or len(point) >= len(found.point)):
                found = Mount(words[0], point, words[2], "ro" in words[3].split(","))
        return found

    def file_system_errors(self) -> dict[str, int]:
        """Errors that ext4 has counted, by device."""
        counts = {path.parent.name: self.integer(path) for path in self._glob("sys/fs/ext4/*/errors_count")}
        return {name: count for name, count in counts.items() if count}

    def wear(self) -> list[Wear]:
        """Of every eMMC; SD cards do not say."""
        found = []
        for path in self._glob("sys/block/mmcblk*/device/life_time"):
            words = (self.text(path) or "").split()
            reserve = self.text(path.parent / "pre_eol_info") or "0"
            try:
                life = max(int(word, 16) for word in words)
                found.append(Wear(path.parts[-3], life, int(reserve, 16)))
            except ValueError:
                continue
        return found

    # --- clock, memory, watchdog ---

    def has_clock_chip(self) -> bool:
        """Whether the time survives without power."""
        return bool(self._glob("sys/class/rtc/rtc*"))

    def is_clock_synchronised(self) -> bool:
        """Whether a time service says that it has set the clock."""
        marks = ("run/systemd/timesync/synchronized", "run/chrony/chronyd.pid", "run/ntpd.pid")
        return any((self._root / name).exists() for name in marks)

    def memory_bytes(self) -> tuple[int, int] | None:
        """All of it, and what is available now."""
        fields = dict(re.findall(r"^(\w+):\s+(\d+)", self.text("proc/meminfo") or "", re.MULTILINE))
        try:
            return int(fields["MemTotal"]) * 1024, int(fields["MemAvailable"]) * 1024
        except KeyError:
            return None

    def bounds_memory(self) -> bool | None:
        """Whether systemd's ``MemoryMax`` has an effect; None where it cannot be seen."""
        controllers = self.text("sys/fs/cgroup/cgroup.controllers")
        if controllers is not None:
            return "memory" in controllers.split()
        for line in (self.text("proc/cgroups") or "").splitlines():
            words = line.split()
            if words[:1] == ["memory"]:
                return words[-1] == "1"
        return None

    def swaps(self) -> list[tuple[str, int]]:
        """Name and bytes in use of every swap area."""
        rows = [line.split() for line in (self.text("proc/swaps") or "").splitlines()[1:]]
        return [(row[0], int(row[3]) * 1024) for row in rows if len(row) >= 4 and row[3].isdecimal()]

    def watchdogs(self) -> dict[str, bool]:
        """Hardware watchdogs, and whether somebody feeds them."""
        found = {}
        for path in self._glob("sys/class/watchdog/watchdog*"):
            found[self.text(path / "identity") or path.name] = self.text(path / "state") == "active"
        return found

    # --- reading ---

    def text(self, name: str | Path) -> str | None:
        """Content of a file, stripped of blanks; None where it cannot be read: sensors come and go."""
        try:
            with (self._root / name).open("rb") as file:
                return file.read(FILE_BYTES_MAX).decode("utf-8", "replace").strip()
        except OSError:
            return None

    def integer(self, name: str | Path) -> int | None:
        """The integer in a file."""
        try:
            return int(self.text(name) or "")
        except ValueError:
            return None

    def program(self, name: str, *words: str) -> str | None:
        """What a program of the board prints; None where there is none, or it fails."""
        path = self._root / "usr/bin" / name
        if not path.exists():
            return None
        try:
            done = subprocess.run([path, *words], capture_output=True, check=True, timeout=PROGRAM_TIMEOUT_S, text=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout[:FILE_BYTES_MAX]

    def _glob(self, pattern: str) -> list[Path]:
        return sorted(self._root.glob(pattern))[:ENTRIES_MAX]

    def _rail(self, alarm: Path) -> str:
        channel = alarm.name.removeprefix("curr").removesuffix("_crit_alarm")
        return self.text(alarm.parent / f"in{channel}_label") or f"channel {channel}"


def _count(ranges: str) -> int:
    """Numbers in a list such as ``0-3,6``."""
    return sum(int(last or first) - int(first) + 1 for first, last in _RANGE.findall(ranges))
