"""EST-shaped endpoints for devices (RFC 7030 section 3.2.2), with JSON instead of PKCS #7. Served over TLS only.

A real EST server can take their place: same paths, same meaning, same single-use secret.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coordinator.enrolment.authority import CSR_BYTES_MAX
from coordinator.enrolment.records import EnrolmentRefusedError, Member, Refusal
from coordinator.serving.body import read_body
from coordinator.serving.documents import error_document
from coordinator.serving.errors import SAFE_HEADERS, http_failure, internal_failure
from edge_sdk.adapters.enrolment import WAITED_HEADER, Wait

if TYPE_CHECKING:
    from starlette.requests import Request

    from coordinator.enrolment.desk import EnrolmentDesk
    from coordinator.enrolment.registrar import Registrar

RENEWAL_BYTES_MAX: Final = CSR_BYTES_MAX + 512
"""A request in its signed envelope."""
REQUESTS_MAX: Final = 8
"""Requests at once: each costs signatures and a durable transaction."""
SETTLE_S_MAX: Final = 5.0
"""A device waits this long for its key to be on the ledger; without it, its first updates would be refused."""
_SETTLE_POLL_S: Final = 0.1
_NO_STORE: Final = {"cache-control": "no-store"} | SAFE_HEADERS
_SCHEME: Final = "Bearer "
_WAITED: Final = re.compile(rf"\b({'|'.join(Wait)})=([0-9]{{1,9}})\b", re.ASCII)
_WAITED_CHARS_MAX: Final = 200

_STATUS: Final = {
    Refusal.UNKNOWN_CLAIM: HTTPStatus.UNAUTHORIZED,
    Refusal.EXPIRED_CLAIM: HTTPStatus.UNAUTHORIZED,
    Refusal.OTHER_DEVICE: HTTPStatus.FORBIDDEN,
    Refusal.REUSED_CLAIM: HTTPStatus.FORBIDDEN,
    Refusal.CLONED_KEY: HTTPStatus.FORBIDDEN,
    Refusal.NOT_ENROLLED: HTTPStatus.FORBIDDEN,
    Refusal.BAD_SIGNATURE: HTTPStatus.FORBIDDEN,
    Refusal.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
}


def create_enrolment_app(
    desk: EnrolmentDesk, registrar: Registrar, *, count: Callable[[str], None] = lambda _: None
) -> Starlette:
    """Build the application.

    Args:
        desk: Decides.
        registrar: Takes what was decided to the ledger.
        count: Learns how each request ended: ``enrolled``, ``renewed`` or the reason of a refusal.
    """
    endpoints = _Endpoints(desk, registrar, count)

    async def refusal(_request: Request, error: Exception) -> Response:
        assert isinstance(error, EnrolmentRefusedError)
        count(error.refusal.value)
        return _refusal(error)

    root = "/.well-known/est"
    return Starlette(
        routes=[
            Route(f"{root}/cacerts", endpoints.authority),
            Route(f"{root}/simpleenroll", endpoints.enrol, methods=["POST"]),
            Route(f"{root}/simplereenroll", endpoints.renew, methods=["POST"]),
        ],
        exception_handlers={
            HTTPException: http_failure,
            EnrolmentRefusedError: refusal,
            Exception: internal_failure,
        },
    )


class _Endpoints:
    """One method per route. The desk writes to a disk, so it works in a thread, one request at a time."""

    def __init__(self, desk: EnrolmentDesk, registrar: Registrar, count: Callable[[str], None]) -> None:
        self._desk = desk
        self._registrar = registrar
        self._count = count
        self._requests = 0
        self._turn = asyncio.Lock()

    async def authority(self, _request: Request) -> Response:
        """Certificate of the authority; a device compares it with the one that it was given."""
        return Response(self._desk.authority.certificate_pem, media_type="application/x-pem-file", headers=_NO_STORE)

    async def enrol(self, request: Request) -> Response:
        """A claim in the Authorization header, a PEM request in the body."""
        header = request.headers.get("authorization", "")
        if not header.startswith(_SCHEME):
            detail = "expected Authorization: Bearer CLAIM"
            raise HTTPException(HTTPStatus.UNAUTHORIZED, detail, headers={"www-authenticate": "Bearer"})
        token = header.removeprefix(_SCHEME).strip()
        with self._admitted():
            body = await read_body(request, bytes_max=CSR_BYTES_MAX)
            async with self._turn:
                waited = read_waited(request.headers.get(WAITED_HEADER, ""))
                member = await asyncio.to_thread(self._desk.enrol, token, body, waited=waited)
            self._count("enrolled")
            return await self._answer(member)

    async def renew(self, request: Request) -> Response:
        """A request, signed by the device's current key as RENEW."""
        with self._admitted():
            body = await read_body(request, bytes_max=RENEWAL_BYTES_MAX)
            async with self._turn:
                member = await asyncio.to_thread(self._desk.renew, body)
            self._count("renewed")
            return await self._answer(member)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._requests >= REQUESTS_MAX:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests", headers={"retry-after": "2"})
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def _answer(self, member: Member) -> Response:
        self._registrar.wake()
        settled = self._registrar.is_settled(member)
        deadline = asyncio.get_running_loop().time() + SETTLE_S_MAX
        while not settled and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_SETTLE_POLL_S)
            settled = self._registrar.is_settled(member)
        return JSONResponse(self._desk.answer(member, settled=settled), headers=_NO_STORE)


def read_waited(text: str) -> dict[Wait, int]:
    """What a board says it waited for; what has another form is not worth refusing a board for, and left out."""
    found = _WAITED.findall(text[:_WAITED_CHARS_MAX])
    return {Wait(name): int(seconds) for name, seconds in found}


def _refusal(error: EnrolmentRefusedError) -> Response:
    status = _STATUS[error.refusal]
    headers = dict(_NO_STORE)
    if status is HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_document(error.refusal.value, str(error)), status_code=status, headers=headers)
