"""Files as answers: whole or in part, straight from the disk, in pieces that bound the memory of a download."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from coordinator.serving.errors import SAFE_HEADERS
from coordinator.serving.ranges import Span, UnsatisfiableRangeError, is_fresh, select_span

if TYPE_CHECKING:
    from starlette.requests import Request

PIECE_BYTES: Final = 256 * 1024
"""A file is read and sent in pieces of this size: the memory of one download."""
IMMUTABLE: Final = "public, max-age=31536000, immutable"
REVALIDATE: Final = "no-cache"


async def immutable_file(
    request: Request, path: Path | None, digest: bytes, *, what: str, count: Callable[[int], None]
) -> Response:
    """Answer with a file that its digest names, or with a range of it.

    Args:
        request: GET or HEAD.
        path: The file; None where there is none.
        digest: SHA-256, the file's strong entity tag.
        what: What the file is called in an error: ``blob``.
        count: Is told how many bytes are sent.

    Raises:
        HTTPException: 404 or 416.
    """
    size = None if path is None else await _file_bytes(path)
    if path is None or size is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"no such {what} here")
    etag = f'"{digest.hex()}"'
    headers = {"etag": etag, "accept-ranges": "bytes", "cache-control": IMMUTABLE} | SAFE_HEADERS
    if is_fresh(request.headers.get("if-none-match"), etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    try:
        span = select_span(
            size, range_header=request.headers.get("range"), if_range=request.headers.get("if-range"), etag=etag
        )
    except UnsatisfiableRangeError as error:
        detail = f"the {what} has {size} bytes"
        unsatisfied = {"content-range": f"bytes */{size}"}
        raise HTTPException(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, detail, headers=unsatisfied) from error
    headers["content-length"] = str(span.length)
    if span.partial:
        headers["content-range"] = span.content_range
    status = HTTPStatus.PARTIAL_CONTENT if span.partial else HTTPStatus.OK
    media_type = "application/octet-stream"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    count(span.length)
    return StreamingResponse(_pieces(path, span), status_code=status, headers=headers, media_type=media_type)


def short_answer(request: Request, data: bytes, *, media_type: str, cache: str) -> Response:
    """A short answer, tagged by its content, so that polling costs a 304."""
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    headers = {"etag": etag, "cache-control": cache} | SAFE_HEADERS
    if is_fresh(request.headers.get("if-none-match"), etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(data, media_type=media_type, headers=headers)


async def _file_bytes(path: Path) -> int | None:
    """Size of a file; None where there is none."""
    try:
        return (await asyncio.to_thread(path.stat)).st_size
    except FileNotFoundError:
        return None


async def _pieces(path: Path, span: Span) -> AsyncIterator[bytes]:
    """Bytes of a span. A file that is cut short meanwhile ends the transfer early: the client sees a wrong length."""
    async with await anyio.open_file(path, "rb") as file:
        await file.seek(span.start)
        left = span.length
        while left:
            piece = await file.read(min(PIECE_BYTES, left))
            if not piece:
                return
            left -= len(piece)
            yield piece
