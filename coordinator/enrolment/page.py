"""The registrar's part of a miner's page: who is in, who is expected, who was refused, and what to decide.

``GET /enrolment`` is a table for people, without scripts; ``GET /v1/enrolment`` is the same as JSON. Both show names,
times and reasons; no token, key or certificate. They are as open as the miner's other pages: see that port as internal.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import html
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from coordinator.enrolment.claims import ClaimStore
from coordinator.enrolment.records import MemberStatus
from coordinator.serving.errors import SAFE_HEADERS

if TYPE_CHECKING:
    from starlette.requests import Request

    from edge_sdk.protocol.ids import DeviceId

ROWS_MAX: Final = 500
"""Of each table; a larger fleet is looked at with ``flchain registry list``."""
DEVICE_COLUMNS: Final = ("device", "status", "on the ledger", "certificate until", "waited before", "software")
_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
}
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:75rem}"
    "table{border-collapse:collapse;margin-bottom:2rem}td,th{padding:.3rem .9rem .3rem 0;text-align:left}"
    "th{border-bottom:1px solid #888}.alarm{color:#b00020;font-weight:600}"
)


def fleet_document(store: ClaimStore, *, now_s: int, notes: Mapping[DeviceId, str]) -> dict[str, Any]:
    """Everything that the page shows, newest state of the store; ``notes`` is what devices say of their software."""
    members, claims = store.members(), [claim for claim in store.claims() if claim.used_s is None]
    arrivals = {arrival.device_id: arrival for arrival in store.arrivals()}
    alarms = [alarm for alarm in store.alarms() if alarm.cleared_s is None]
    by_status = Counter(member.status.value for member in members)
    return {
        "time_s": now_s,
        "devices_by_status": {status.value: by_status[status.value] for status in MemberStatus},
        "devices": [
            {
                "device": member.device_id,
                "status": member.status.value,
                "serial": member.serial,
                "on_ledger": member.settled,
                "certificate_expiry_s": member.expiry_s,
                "enrolled_s": arrivals[member.device_id].time_s if member.device_id in arrivals else None,
                "waited": arrivals[member.device_id].waited if member.device_id in arrivals else "",
                "software": notes.get(member.device_id, ""),
            }
            for member in members[:ROWS_MAX]
        ],
        "expected": [
            {"device": claim.device_id, "claim_expiry_s": claim.expiry_s, "is_expired": claim.expiry_s <= now_s}
            for claim in claims[:ROWS_MAX]
        ],
        "refused": [
            {
                "device": attempt.device_id,
                "reason": attempt.refusal.value,
                "count": attempt.count,
                "last_s": attempt.last_s,
            }
            for attempt in store.attempts()[:ROWS_MAX]
        ],
        "alarms": [
            {
                "device": alarm.device_id,
                "kind": alarm.kind.value,
                "note": alarm.note,
                "first_s": alarm.time_s,
                "last_s": alarm.last_s,
                "count": alarm.count,
            }
            for alarm in alarms[-ROWS_MAX:]
        ],
    }


def routes(store: ClaimStore, *, time_s: Callable[[], int], notes: Mapping[DeviceId, str]) -> list[Route]:
    """Both addresses, over the registrar's store and what devices said last."""

    async def document(_request: Request) -> Response:
        found = await asyncio.to_thread(fleet_document, store, now_s=time_s(), notes=notes)
        return JSONResponse(found, headers=_HEADERS | SAFE_HEADERS)

    async def page(_request: Request) -> Response:
        found = await asyncio.to_thread(fleet_document, store, now_s=time_s(), notes=notes)
        return HTMLResponse(render(found), headers=_HEADERS | SAFE_HEADERS)

    return [Route("/v1/enrolment", document), Route("/enrolment", page)]


def render(document: dict[str, Any]) -> str:
    """The document as one HTML page; every text in it is escaped."""
    alarms = [
        (f"{row['device']}", row["kind"], row["note"], f"{row['count']} times, last {_calendar(row['last_s'])}")
        for row in document["alarms"]
    ]
    refused = [
        (row["device"], row["reason"], f"{row['count']} times, last {_calendar(row['last_s'])}")
        for row in document["refused"]
    ]
    expected = [
        (
            row["device"],
            "claim has expired: make a new one" if row["is_expired"] else "not seen yet",
            _calendar(row["claim_expiry_s"]),
        )
        for row in document["expected"]
    ]
    devices = [
        (
            row["device"],
            row["status"],
            "yes" if row["on_ledger"] else "not yet",
            _calendar(row["certificate_expiry_s"]),
            row["waited"].replace(",", " s, ").replace("=", " ") + (" s" if row["waited"] else ""),
            row["software"],
        )
        for row in document["devices"]
    ]
    tables = (
        _table("Alarms", "alarm", ("device", "kind", "what happened", "seen"), alarms),
        _table("Refused requests", "", ("device", "reason", "seen"), refused),
        _table("Expected boards", "", ("device", "state", "claim until"), expected),
        _table("Devices", "", DEVICE_COLUMNS, devices),
    )
    decide = (
        "<p>To decide: <code>flchain registry list | release | claim | revoke</code> on the registrar's machine.</p>"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="15">'
        f"<title>Enrolment</title><style>{_STYLE}</style><h1>Enrolment</h1>{''.join(tables)}{decide}</html>"
    )


def _table(title: str, kind: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return f"<h2>{title}</h2><p>none</p>"
    head = "".join(f"<th>{column}</th>" for column in columns)
    body = "".join(
        f'<tr class="{kind}">' + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<h2>{title}</h2><table><tr>{head}</tr>{body}</table>"


def _calendar(time_s: int) -> str:
    return dt.datetime.fromtimestamp(time_s, tz=dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
