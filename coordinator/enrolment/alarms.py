"""What an operator should look at: alarms, refused requests and late arrivals, each kept within a bound.

The functions work inside an open transaction of the claim store, so that an alarm and what follows from it are one
step. An alarm that comes again is counted, not repeated: a board that keeps asking cannot push out the others.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Final

from coordinator.enrolment.records import Alarm, Arrival, Attempt, Refusal
from edge_sdk.adapters.enrolment import Wait
from edge_sdk.protocol.ids import DeviceId

ALARMS_MAX: Final = 10_000
"""Alarms kept; a flood of bad requests replaces the oldest."""


def raise_alarm(connection: sqlite3.Connection, device_id: DeviceId, kind: Refusal, note: str, *, now_s: int) -> None:
    """Keep an alarm, or count it where the same one is open."""
    again = connection.execute(
        "UPDATE alarms SET count = count + 1, last_s = ?"
        " WHERE device_id = ? AND kind = ? AND note = ? AND cleared_s IS NULL",
        (now_s, device_id, kind.value, note),
    )
    if again.rowcount:
        return
    connection.execute(
        "INSERT INTO alarms (time_s, last_s, device_id, kind, note) VALUES (?1, ?1, ?2, ?3, ?4)",
        (now_s, device_id, kind.value, note),
    )
    connection.execute("DELETE FROM alarms WHERE id <= (SELECT max(id) FROM alarms) - ?", (ALARMS_MAX,))


def clear_alarms(connection: sqlite3.Connection, device_id: DeviceId, *, now_s: int) -> None:
    """An operator has decided about a device."""
    connection.execute("UPDATE alarms SET cleared_s = ? WHERE device_id = ? AND cleared_s IS NULL", (now_s, device_id))


def count_attempt(connection: sqlite3.Connection, device_id: DeviceId, refusal: Refusal, *, now_s: int) -> None:
    """Count a refused request under a name that the store knows; others could fill the disk with names."""
    known = connection.execute(
        "SELECT 1 FROM claims WHERE device_id = ?1 UNION SELECT 1 FROM members WHERE device_id = ?1", (device_id,)
    ).fetchone()
    if known:
        connection.execute(
            "INSERT INTO attempts VALUES (?1, ?2, 1, ?3)"
            " ON CONFLICT (device_id, refusal) DO UPDATE SET count = count + 1, last_s = ?3",
            (device_id, refusal.value, now_s),
        )


def note_arrival(
    connection: sqlite3.Connection, device_id: DeviceId, waited: Mapping[Wait, int], *, now_s: int
) -> None:
    """A device is in: keep what it waited for, and forget the requests that were refused before."""
    text = ",".join(f"{wait.value}={seconds}" for wait, seconds in waited.items())
    connection.execute("INSERT OR REPLACE INTO arrivals VALUES (?, ?, ?)", (device_id, now_s, text))
    connection.execute("DELETE FROM attempts WHERE device_id = ?", (device_id,))


def read_alarm(row: tuple[int, int, int, int | None, str, str, str]) -> Alarm:
    """An alarm from its columns time_s, last_s, count, cleared_s, device_id, kind and note."""
    return Alarm(
        time_s=row[0],
        last_s=row[1],
        count=row[2],
        cleared_s=row[3],
        device_id=DeviceId(row[4]),
        kind=Refusal(row[5]),
        note=row[6],
    )


def read_attempt(row: tuple[str, str, int, int]) -> Attempt:
    """A refused request from its columns."""
    return Attempt(device_id=DeviceId(row[0]), refusal=Refusal(row[1]), count=row[2], last_s=row[3])


def read_arrival(row: tuple[str, int, str]) -> Arrival:
    """An arrival from its columns."""
    return Arrival(device_id=DeviceId(row[0]), time_s=row[1], waited=row[2])
