"""A profile of one's own as TOML: the figures that were measured, each with condition and source, and no others."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata

from edge_sdk import __version__
from edge_sdk.adapters.board_facts import BoardFacts
from edge_sdk.measure.session import Measured, Plan
from firmware_profiles.profile import BoardProfile

PACKAGES = ("numpy", "onnxruntime")


def profile_text(
    measured: Measured,
    *,
    board_id: str,
    like: BoardProfile,
    facts: BoardFacts,
    meter: str | None,
    plan: Plan,
    date: str,
) -> str:
    """The file.

    Args:
        measured: The figures.
        board_id: Its name.
        like: Profile whose image route it takes over.
        facts: Of the board.
        meter: Kind of the meter; None where there was none.
        plan: What was measured.
        date: Of the measurement, UTC.
    """
    source = f"measured by flchain boards measure {__version__} on {date}"
    lines = [
        f"# Measured on {date}. What is absent had no meter: it is not available, never guessed.",
        "",
        "[board]",
        f"id = {_text(board_id)}",
        f"name = {_text(measured.facts.get('board', board_id))}",
        f"sources = [{_text(source)}]",
        "",
        "[measurement]",
        'source = "measured"',
        f"date = {_text(date)}",
        f"meter = {_text(meter or 'none')}",
        f"like = {_text(like.board_id)}",
    ]
    lines += [f"{name} = {_text(version)}" for name, version in _versions().items()]
    lines.append(
        f"conditions = {{ {', '.join(f'{_text(name)} = {_text(text)}' for name, text in measured.facts.items())} }}"
    )
    lines.append(f"missing = [{', '.join(map(_text, measured.missing))}]")
    for section, key, value, condition in _figures(measured, facts, plan):
        lines += ["", f"[{section}.{_key(key)}]", f"value = {value:.6g}", f"condition = {_text(condition)}"]
        lines.append(f"source = {_text(source)}")
    image = like.image
    lines += ["", "[image]"]
    for name in ("route", "init_format", "architecture", "python", "seed_label", "boot_mount", "source"):
        value = getattr(image, name)
        if value is not None:
            lines.append(f"{name} = {_text(str(value))}")
    return "\n".join(lines) + "\n"


def _figures(measured: Measured, facts: BoardFacts, plan: Plan) -> Iterator[tuple[str, str, float, str]]:
    """Section, key, value and condition of everything that is known."""
    cores, clock_mhz, memory = facts.cores(), facts.max_clock_mhz(), facts.memory_bytes()
    if cores is not None:
        yield "cpu", "cores", cores[0], f"online; {cores[1]} are there"
    if clock_mhz is not None:
        yield "cpu", "max_clock_mhz", clock_mhz, "cpufreq cpuinfo_max_freq"
    if memory is not None:
        yield "memory", "ram_mib", memory[0] / 2**20, "MemTotal"
    for state, power in measured.powers.items():
        what = {
            "idle": "idle",
            "load": "an endless Python loop on every core",
            "transmit": "TCP up, then down",
        }.get(state, "training steps, one process")
        yield "power", f"{state}_w", power.watts, f"{what}; {power.condition}"
    for name, steps in measured.steps.items():
        condition = f"{plan.backend}, one thread, {steps.steps} steps after warm-up"
        yield "training", f"{name}_step_ms", steps.median_ms, f"median; {condition}"
        yield "training", f"{name}_slowest_tenth_ms", steps.slowest_tenth_ms, condition
        yield "training", f"{name}_peak_rss_mib", steps.peak_rss_mib, f"VmHWM of the training process; {condition}"
    link = measured.link
    if link is not None:
        kind = "wifi" if link.is_wireless else "ethernet"
        condition = f"payload of one TCP connection, {link.span_s:g} s, {link.interface}"
        yield "link", f"{kind}_mbps", link.up_mbps, f"up; {condition}"
        yield "link", f"{kind}_down_mbps", link.down_mbps, f"down; {condition}"


def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version(), "flchain": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _key(text: str) -> str:
    """A bare TOML key."""
    return "".join(character if character.isascii() and character.isalnum() else "_" for character in text)


def _text(value: str) -> str:
    """A TOML basic string; JSON's escapes are a part of TOML's."""
    return json.dumps(value, ensure_ascii=False)
