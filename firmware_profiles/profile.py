"""Boards as data: every figure with its source and the condition it was measured under.

One TOML file per board in ``boards/``. A figure that nobody measured is absent and reads as None: what is computed from
it is then not available either, never invented.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, Final

BOARDS: Final = resources.files("firmware_profiles") / "boards"
SUFFIX: Final = ".toml"
SECTIONS: Final = ("cpu", "memory", "power", "link", "training", "heat")


FILE_BYTES_MAX: Final = 256 * 1024
FIGURES_MAX: Final = 200
_KNOWN: Final = (
    ("cpu", "cores"),
    ("cpu", "max_clock_mhz"),
    ("memory", "ram_mib"),
    ("power", "idle_w"),
    ("power", "load_w"),
    ("link", "ethernet_mbps"),
    ("link", "wifi_mbps"),
)


class UnknownBoardError(ValueError):
    """No profile has that name."""


class BadProfileError(UnknownBoardError):
    """A profile of one's own is not one; the text names file and key."""


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
    further: Mapping[str, Figure]
    """Every other figure, by ``section.key``."""
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
    """Return the profile of ``board_id``, or of a file of one's own where the name ends with ``.toml``.

    Raises:
        UnknownBoardError: there is none; the text lists those that exist.
        BadProfileError: the file is not a profile.
    """
    if board_id.endswith(SUFFIX):
        return _load_file(Path(board_id))
    known = board_ids()
    if board_id not in known:  # checked against the listing first: a name can never become another path
        raise UnknownBoardError(f"no board {board_id!r}: expected one of {', '.join(known)}")
    return _profile(tomllib.loads((BOARDS / f"{board_id}.toml").read_text(encoding="utf-8")))


def board_like(model: str) -> str | None:
    """Name of the profile whose ``model_contains`` is in what a board says of itself; None where none is."""
    for board_id in board_ids():
        content = tomllib.loads((BOARDS / f"{board_id}.toml").read_text(encoding="utf-8"))
        words = content["board"].get("model_contains")
        if words is not None and words in model:
            return board_id
    return None


def _load_file(path: Path) -> BoardProfile:
    """A file that somebody wrote: everything about it may be wrong."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise BadProfileError(f"{path}: more than {FILE_BYTES_MAX} bytes: expected a board profile")
        return _profile(tomllib.loads(data.decode("utf-8")))
    except OSError as error:
        raise BadProfileError(f"{path}: {error.strerror}: expected a board profile") from error
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        if isinstance(error, BadProfileError):
            raise
        raise BadProfileError(
            f"{path}: {error!r}: expected a board profile as flchain boards measure writes it"
        ) from error


def _profile(content: Mapping[str, Any]) -> BoardProfile:
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
        further=_further(content),
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


def _further(content: Mapping[str, Any]) -> dict[str, Figure]:
    """Figures that no field of their own holds."""
    found: dict[str, Figure] = {}
    for section in SECTIONS:
        for key in content.get(section, {}):
            figure = None if (section, key) in _KNOWN else _figure(content, section, key)
            if figure is not None and len(found) < FIGURES_MAX:
                found[f"{section}.{key}"] = figure
    return found


def _figure(content: Mapping[str, Any], section: str, key: str) -> Figure | None:
    entry = content.get(section, {}).get(key)
    if entry is None:
        return None
    value = entry["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"[{section}.{key}] value = {value!r}: expected a number")
    return Figure(value=float(value), condition=str(entry["condition"]), source=str(entry["source"]))
