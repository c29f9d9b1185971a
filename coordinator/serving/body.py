"""Request bodies from anybody: length judged before reading and counted while reading, time bounded."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

BODY_S_MAX: Final = 10.0
"""A body is at most some ten kilobytes: a client that needs longer holds a connection for nothing."""


async def read_body(request: Request, *, bytes_max: int) -> bytes:
    """Read a whole request body of at most ``bytes_max`` bytes.

    Raises:
        HTTPException: 413 when it is, or says that it is, longer; 400 when it is empty, broken off or its length is no
            number; 408 when it takes longer than ``BODY_S_MAX``.
    """
    declared = request.headers.get("content-length")
    if declared is not None:
        if not declared.isascii() or not declared.isdigit():
            raise HTTPException(HTTPStatus.BAD_REQUEST, "Content-Length is not a number")
        if len(declared) > len(str(bytes_max)) or int(declared) > bytes_max:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body too long: at most {bytes_max} bytes")
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S_MAX):
            async for piece in request.stream():
                if len(data) + len(piece) > bytes_max:
                    raise HTTPException(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body too long: at most {bytes_max} bytes"
                    )
                data += piece
    except TimeoutError as error:
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, f"body not received within {BODY_S_MAX:g} s") from error
    except ClientDisconnect as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "body broken off") from error
    if not data:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "body is empty")
    return bytes(data)
