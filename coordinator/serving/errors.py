"""Failures as JSON: one form for every status, no text of an internal error."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from coordinator.serving.documents import error_document

if TYPE_CHECKING:
    from starlette.requests import Request

log = logging.getLogger(__name__)

RENAMED: Final = {413: "content-too-large", 416: "range-not-satisfiable", 422: "unprocessable-content"}
"""Names by RFC 9110, which Python 3.13 took over: one word for clients whatever runs the miner."""
SAFE_HEADERS: Final = {"x-content-type-options": "nosniff"}


async def http_failure(_request: Request, error: Exception) -> Response:
    """Answer an ``HTTPException``, raised by us or by the router."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    headers = dict(error.headers or {}) | SAFE_HEADERS
    code = RENAMED.get(status.value, status.phrase.lower().replace(" ", "-"))
    return JSONResponse(error_document(code, str(error.detail)), status_code=status.value, headers=headers)


async def internal_failure(_request: Request, error: Exception) -> Response:
    """Answer a bug of ours: the traceback goes to the log, the client learns nothing of it."""
    log.error("request failed", exc_info=error)
    document = error_document("internal", "internal error; see the miner's log")
    return JSONResponse(document, status_code=HTTPStatus.INTERNAL_SERVER_ERROR, headers=SAFE_HEADERS)
