"""What the apps need of the outside world, as interfaces: adapters implement them, tests bring in-memory twins."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from edge_sdk.protocol.messages import EnergyQuality


class Clock(Protocol):
    """Two clocks: one for durations, one for the calendar."""

    def monotonic_ns(self) -> int:
        """Nanoseconds that never jump; the same clock in all processes of one machine."""

    def time_s(self) -> int:
        """Seconds since 1970 as this machine believes; may be years off on a board without a battery-backed clock."""


class Scope(StrEnum):
    """What a power figure covers. Different scopes are never compared in one figure."""

    PACKAGE = "package"
    """The processor."""
    MODULE = "module"
    """A compute module without its carrier board."""
    BOARD = "board"
    WALL = "wall"
    """With the power supply's loss."""


class PowerSource(Protocol):
    """A sensor that shows the power of this moment."""

    @property
    def scope(self) -> Scope:
        """What the figure covers."""

    @property
    def quality(self) -> EnergyQuality:
        """How the figure comes about."""

    def power_w(self) -> float:
        """Watts now.

        Raises:
            StoreError: the sensor cannot be read.
        """


class EnergyMeter(Protocol):
    """Energy since some fixed moment; differences are what counts."""

    @property
    def scope(self) -> Scope:
        """What the figure covers."""

    @property
    def quality(self) -> EnergyQuality:
        """How the figure comes about."""

    def energy_j(self) -> float:
        """Joules since the meter was opened; never falls.

        Raises:
            StoreError: the sensor cannot be read.
        """
