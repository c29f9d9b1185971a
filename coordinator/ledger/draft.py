"""A state under change: what one height does to it, without touching the committed one.

Transactions of a height see each other's effects through the draft; ``freeze`` turns it into the next state and names
the records that changed, so that a store writes those and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from coordinator.events import Event, EvidenceFound
from coordinator.ledger.registry import DeviceRecord
from coordinator.ledger.state import Evidence, EvidenceKind, State, UpdateRecord
from edge_sdk.protocol.ids import DeviceId, Digest
from edge_sdk.protocol.limits import EVIDENCE_MAX

K = TypeVar("K")
V = TypeVar("V")


class Overlay(Generic[K, V]):
    """A mapping with changes laid over it; reading costs two look-ups, nothing is copied before ``freeze``."""

    def __init__(self, base: Mapping[K, V]) -> None:
        self._base = base
        self.changed: dict[K, V] = {}
        self.removed: set[K] = set()

    def get(self, key: K) -> V | None:
        """Return the value, or None."""
        if key in self.changed:
            return self.changed[key]
        return None if key in self.removed else self._base.get(key)

    def __getitem__(self, key: K) -> V:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __contains__(self, key: K) -> bool:
        return self.get(key) is not None

    def __len__(self) -> int:
        added = sum(key not in self._base for key in self.changed)
        return len(self._base) + added - len(self.removed)

    def __setitem__(self, key: K, value: V) -> None:
        self.changed[key] = value

    def remove(self, key: K) -> None:
        """Remove a key that is there."""
        self.changed.pop(key, None)
        if key in self._base:
            self.removed.add(key)

    def values(self) -> Iterator[V]:
        """Yield all values, in the order of the base, new ones last."""
        for key, value in self._base.items():
            if key not in self.removed:
                yield self.changed.get(key, value)
        yield from (value for key, value in self.changed.items() if key not in self._base)

    def freeze(self) -> Mapping[K, V]:
        """Return the changed mapping; the base itself when nothing changed."""
        if not self.changed and not self.removed:
            return self._base
        merged = {**self._base, **self.changed}
        for key in self.removed:
            del merged[key]
        return merged


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Records that a height changed, for the store."""

    devices: tuple[DeviceRecord, ...] = ()
    updates: tuple[UpdateRecord, ...] = ()
    removed: tuple[Digest, ...] = ()


class Draft:
    """The state of one height while its transactions are applied."""

    def __init__(self, state: State, *, height: int, time_s: int) -> None:
        self.core = replace(state.core, height=height, time_s=max(state.core.time_s, time_s))
        self.devices: Overlay[DeviceId, DeviceRecord] = Overlay(state.registry)
        self.updates: Overlay[Digest, UpdateRecord] = Overlay(state.updates)
        self.events: list[Event] = []
        self._device_count = len(state.registry)

    @property
    def height(self) -> int:
        """Height being executed."""
        return self.core.height

    def has_evidence(self, kind: EvidenceKind, subject: str, detail: str) -> bool:
        """Whether the same finding is recorded already."""
        return any((e.kind, e.subject, e.detail) == (kind, subject, detail) for e in self.core.evidence)

    def add_evidence(self, kind: EvidenceKind, subject: str, detail: str) -> None:
        """Record a finding; the oldest makes room when the list is full, since its transactions stay on the log."""
        evidence = Evidence(kind=kind, height=self.height, subject=subject, detail=detail)
        self.core = replace(self.core, evidence=(*self.core.evidence, evidence)[-EVIDENCE_MAX:])
        self.events.append(EvidenceFound(evidence=evidence))

    def freeze(self) -> tuple[State, Changes]:
        """Return the next state and what changed."""
        registry = self.devices.freeze()
        if len(registry) != self._device_count:  # a new device: restore the canonical order
            registry = dict(sorted(registry.items()))
        changes = Changes(
            devices=tuple(self.devices.changed.values()),
            updates=tuple(self.updates.changed.values()),
            removed=tuple(sorted(self.updates.removed)),
        )
        return State(core=self.core, registry=registry, updates=self.updates.freeze()), changes
