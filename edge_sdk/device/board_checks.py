"""The doctor's look at the board itself: power, heat, storage, clock, memory, mode, watchdog - with how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_sdk.adapters.board_facts import NOW, BoardFacts, Mount, Throttling
from edge_sdk.device.findings import Finding, Level

NEAR_LIMIT_C: Final = 5.0
TRAINING_BYTES: Final = 110 * 2**20
"""Peak of a device process that trains the LeNet-like model, measured on x86_64: edge_sdk/README.md."""
MEMORY_BYTES_MIN: Final = 400 * 2**20
"""What a board with 512 MB shows; below it, systemd, network and training do not fit together."""
LIFE_WARN: Final = 9
"""JEDEC eMMC 5.0, DEVICE_LIFE_TIME_EST: 0x09 = 80 to 90 % used."""
LIFE_EXCEEDED: Final = 11
VOLATILE: Final = ("tmpfs", "overlay", "ramfs")

_MEND_SUPPLY: Final = "use the board's own supply and a short cable; unplug what draws from its USB ports"
_MEND_HEAT: Final = "a heat sink or fan, a cooler place, or a lower [governor] temperature_max_c"
_MEND_MEMORY: Final = "add cgroup_enable=memory cgroup_memory=1 to the one line of cmdline.txt, and restart"
_MEND_SYNC: Final = "timedatectl set-ntp true, and let UDP port 123 out; a board without RTC needs fake-hwclock"


def examine_board(facts: BoardFacts, *, state: Path, temperature_max_c: float) -> Iterator[Finding]:
    """Yield one finding or more per matter.

    Args:
        facts: Of the board.
        state: The device's folder.
        temperature_max_c: Where the governor pauses training.
    """
    yield Finding(Level.OK, "board", facts.model() or "does not say what it is")
    yield from _power(facts)
    yield from _heat(facts, temperature_max_c)
    yield from _storage(facts, state)
    yield from _time(facts)
    yield from _memory(facts)
    yield from _swap(facts)
    yield from _mode(facts)
    yield from _watchdog(facts)


def _power(facts: BoardFacts) -> Iterator[Finding]:
    rails = facts.over_current()
    if rails:
        yield Finding(Level.FAIL, "power", f"critical current on {', '.join(rails)}", "a lower power mode: nvpmodel -m")
    flags = facts.throttling()
    if flags is None:
        if not rails:
            yield Finding(Level.OK, "power", "the board reports no throttling")
        return
    now, seen = flags & NOW, Throttling(flags >> 16) & NOW
    if Throttling.UNDER_VOLTAGE in now:
        yield Finding(Level.FAIL, "power", f"under-voltage now ({flags:#x})", _MEND_SUPPLY)
    elif Throttling.UNDER_VOLTAGE in seen:
        yield Finding(Level.WARN, "power", f"under-voltage since the start ({flags:#x})", _MEND_SUPPLY)
    slow = (now or seen) & ~Throttling.UNDER_VOLTAGE
    if slow:
        when = "now" if now & ~Throttling.UNDER_VOLTAGE else "since the start"
        names = " and ".join((flag.name or "").lower().replace("_", " ") for flag in slow)
        yield Finding(Level.WARN, "power", f"{names} {when} ({flags:#x})", _MEND_HEAT)
    if not flags:
        model = facts.model() or ""
        blind = "; this board cannot detect under-voltage" if " Zero " in f"{model} " else ""
        yield Finding(Level.OK, "power", f"neither under-voltage nor throttling since the start{blind}")


def _heat(facts: BoardFacts, limit_c: float) -> Iterator[Finding]:
    zones = facts.temperatures_c()
    if not zones:
        yield Finding(Level.OK, "heat", "no sensor: the governor cannot look at it")
        return
    name = max(zones, key=lambda zone: zones[zone])
    text = f"{zones[name]:.1f} degrees Celsius at {name}; training pauses at {limit_c:g}"
    cooling = facts.cooling()
    if zones[name] >= limit_c:
        yield Finding(Level.FAIL, "heat", text, _MEND_HEAT)
    elif zones[name] >= limit_c - NEAR_LIMIT_C:
        yield Finding(Level.WARN, "heat", text, _MEND_HEAT)
    elif cooling:
        yield Finding(Level.WARN, "heat", f"{text}; the kernel holds the clock down: {', '.join(cooling)}", _MEND_HEAT)
    else:
        yield Finding(Level.OK, "heat", text)


def _storage(facts: BoardFacts, state: Path) -> Iterator[Finding]:
    place = facts.mount_of(state)
    if place is None:
        yield Finding(Level.WARN, "storage", f"{state} lies on no mount that is listed", "look at /proc/mounts")
    else:
        yield _state_finding(facts, state, place)
    for device, count in facts.file_system_errors().items():
        mend = "stop the device, unmount and run e2fsck; errors that come back mean another card"
        yield Finding(Level.FAIL, "storage", f"{device}: ext4 has counted {count} errors", mend)
    for wear in facts.wear():
        used = "more than all" if wear.life >= LIFE_EXCEEDED else f"up to {wear.life * 10} %"
        text = f"{wear.device}: {used} of its life is used"
        if wear.life >= LIFE_EXCEEDED or wear.reserve >= 3:
            yield Finding(Level.FAIL, "storage", text, "replace the medium before it becomes read-only")
        elif wear.life >= LIFE_WARN or wear.reserve == 2:
            yield Finding(Level.WARN, "storage", text, "plan to replace the medium")
        else:
            yield Finding(Level.OK, "storage", text)


def _state_finding(facts: BoardFacts, state: Path, place: Mount) -> Finding:
    if place.is_read_only:
        mend = "a read-only root is fine, but the state needs a writable partition of its own"
        if facts.file_system_errors():
            mend = "errors made it read-only: run e2fsck, and replace a card that does it again"
        return Finding(Level.FAIL, "storage", f"{state} lies on {place.source}, mounted read-only", mend)
    if place.kind in VOLATILE:
        text = f"{state} lies on {place.kind}: key, outbox and model are lost at each start"
        return Finding(Level.FAIL, "storage", text, f"mount a small writable partition at {state}")
    return Finding(Level.OK, "storage", f"{state} lies on {place.source} ({place.kind}), writable")


def _time(facts: BoardFacts) -> Iterator[Finding]:
    has_chip, is_set = facts.has_clock_chip(), facts.is_clock_synchronised()
    kept = "a clock chip keeps it" if has_chip else "no clock chip: every start begins in the past"
    if is_set:
        yield Finding(Level.OK, "time", f"synchronised; {kept}")
    else:
        yield Finding(Level.WARN, "time", f"no time service says that it has set the clock; {kept}", _MEND_SYNC)


def _memory(facts: BoardFacts) -> Iterator[Finding]:
    found = facts.memory_bytes()
    if found is not None:
        total, available = found
        text = f"{available >> 20} of {total >> 20} MiB available, training takes about {TRAINING_BYTES >> 20}"
        if total < MEMORY_BYTES_MIN:
            yield Finding(Level.FAIL, "memory", text, "a board with 512 MB or more; the governor will not train here")
        elif available < TRAINING_BYTES:
            yield Finding(Level.WARN, "memory", text, "end other programs: systemd-cgtop --order=memory")
        else:
            yield Finding(Level.OK, "memory", text)
    if facts.bounds_memory() is False:
        text = "the kernel does not bound memory by service: MemoryMax has no effect"
        yield Finding(Level.WARN, "memory", text, _MEND_MEMORY)


def _swap(facts: BoardFacts) -> Iterator[Finding]:
    on_card = [(name, used) for name, used in facts.swaps() if "zram" not in name]
    if on_card:
        names = ", ".join(f"{name} ({used >> 20} MiB in use)" for name, used in on_card)
        mend = "swapoff -a; on Raspberry Pi OS: systemctl disable --now dphys-swapfile (or rpi-swap), or zram instead"
        yield Finding(Level.WARN, "swap", f"{names}: wears a card, and training stalls", mend)
    else:
        yield Finding(Level.OK, "swap", "none on storage")


def _mode(facts: BoardFacts) -> Iterator[Finding]:
    mode, governor, cores = facts.power_mode(), facts.governor(), facts.cores()
    parts = [f"power mode {mode}"] if mode else []
    parts += [f"governor {governor}"] if governor else []
    parts += [f"{cores[0]} of {cores[1]} cores"] if cores else []
    if cores and cores[0] < cores[1]:
        mend = "nvpmodel -q shows the modes, nvpmodel -m N sets one; another number of cores needs a restart"
        yield Finding(Level.WARN, "mode", ", ".join(parts), mend if mode else "look for isolcpus= or maxcpus= at boot")
    elif parts:
        yield Finding(Level.OK, "mode", ", ".join(parts))


def _watchdog(facts: BoardFacts) -> Iterator[Finding]:
    found = facts.watchdogs()
    if not found:
        text = "no hardware watchdog: a kernel that hangs stays so"
        yield Finding(Level.WARN, "watchdog", text, "load the board's driver (bcm2835_wdt, tegra_wdt, iTCO_wdt)")
    elif not any(found.values()):
        mend = "RuntimeWatchdogSec=14 in /etc/systemd/system.conf.d/watchdog.conf (a Pi takes 15 s at most)"
        yield Finding(Level.WARN, "watchdog", f"{', '.join(found)}: nobody feeds it", mend)
    else:
        yield Finding(Level.OK, "watchdog", ", ".join(name for name, is_fed in found.items() if is_fed))
