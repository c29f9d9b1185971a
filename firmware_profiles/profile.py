"""Boards as data: every figure with its source and the condition it was measured under.

One TOML file per board in ``boards/``. A figure that nobody measured is absent and reads as None: what is computed from
it is then not available either, never invented.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Final

BOARDS: Final = resources.files("firmware_profiles") / "boards"


class UnknownBoardError(ValueError):
    """No profile has that name."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number about a board; the unit is the end of its name."""

    value: float
    condition: str
    source: str


class InitFormat(StrEnum):
    """How the vendor's system takes its settings at first boot; declared, never guessed from an image."""

    CLOUDINIT = "cloudinit"
    CLOUDINIT_RPI = "cloudinit-rpi"
    FIRSTRUN = "firstrun"
    L4T_ROOTFS = "l4t-rootfs"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRoute:
    """How a board gets its system, and what is known of that system."""

    route: str
    init_format: InitFormat
    architecture: str
    """As wheels name it: ``aarch64``, ``x86_64``."""
    python: str | None
    """``3.13``; None where the system's Python is not established."""
    seed_label: str | None
    """Label of the FAT volume that takes the seed; None where it goes into the root file system."""
    boot_mount: str | None
    """Where the system mounts that volume."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardProfile:
    """What is known of one board.

    ``idle_w`` and ``load_w`` belong to the same scope where both come from the same source: compare their conditions
    before using a difference.
    """

    board_id: str
    name: str
    cores: Figure | None
    max_clock_mhz: Figure | None
    ram_mib: Figure | None
    idle_w: Figure | None
    load_w: Figure | None
    ethernet_mbps: Figure | None
    wifi_mbps: Figure | None
    image: ImageRoute
    sources: tuple[str, ...]

    @property
    def has_power_model(self) -> bool:
        """Whether idle and load power are both known, so that energy can be modelled."""
        return self.idle_w is not None and self.load_w is not None


def board_ids() -> tuple[str, ...]:
    """Names of all profiles, sorted."""
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in BOARDS.iterdir() if entry.name.endswith(".toml")))


def load_profile(board_id: str) -> BoardProfile:
    """Return the profile of ``board_id``.

    Raises:
        UnknownBoardError: there is none; the text lists those that exist.
    """
    known = board_ids()
    if board_id not in known:  # checked against the listing first: a name can never become another path
        raise UnknownBoardError(f"no board {board_id!r}: expected one of {', '.join(known)}")
    content = tomllib.loads((BOARDS / f"{board_id}.toml").read_text(encoding="utf-8"))
    board = content["board"]
    return BoardProfile(
        board_id=board["id"],
        name=board["name"],
        cores=_figure(content, "cpu", "cores"),
        max_clock_mhz=_figure(content, "cpu", "max_clock_mhz"),
        ram_mib=_figure(content, "memory", "ram_mib"),
        idle_w=_figure(content, "power", "idle_w"),
        load_w=_figure(content, "power", "load_w"),
        ethernet_mbps=_figure(content, "link", "ethernet_mbps"),
        wifi_mbps=_figure(content, "link", "wifi_mbps"),
        image=_image(content["image"]),
        sources=tuple(board["sources"]),
    )


def _image(table: Mapping[str, str]) -> ImageRoute:
    return ImageRoute(
        route=table["route"],
        init_format=InitFormat(table["init_format"]),
        architecture=table["architecture"],
        python=table.get("python"),
        seed_label=table.get("seed_label"),
        boot_mount=table.get("boot_mount"),
        source=table["source"],
    )


def _figure(content: Mapping[str, Mapping[str, Mapping[str, object]]], section: str, key: str) -> Figure | None:
    entry = content.get(section, {}).get(key)
    if entry is None:
        return None
    value = entry["value"]
    assert isinstance(value, int | float), f"{section}.{key}"
    return Figure(value=float(value), condition=str(entry["condition"]), source=str(entry["source"]))
