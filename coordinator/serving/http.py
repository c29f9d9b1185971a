"""HTTP interface of a miner: read-only, except that a signed transaction may be posted.

Nothing here asks for trust: models come with certificates, blobs under their digest, outcomes with proofs. Names in
paths are parsed to numbers and digests before anything is looked up: no path of a request reaches the file system.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coordinator.serving.body import read_body
from coordinator.serving.documents import base64_text, block_document, health_document, model_document
from coordinator.serving.errors import SAFE_HEADERS, http_failure, internal_failure
from coordinator.serving.files import IMMUTABLE, REVALIDATE, immutable_file, short_answer
from coordinator.serving.metrics import MinerMetrics
from coordinator.serving.observe import CountResponses
from coordinator.serving.view import ChainView, ModelView, Submit
from edge_sdk.errors import RemoteProtocolError, TransportError
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import TX_BYTES_MAX
from edge_sdk.protocol.messages import Reason

if TYPE_CHECKING:
    from starlette.requests import Request

log = logging.getLogger(__name__)

BLOCKS_PER_PAGE: Final = 20
BLOCKS_PER_PAGE_MAX: Final = 100
SUBMISSIONS_MAX: Final = 16
"""Transactions that wait for the log at once; the next sender is told to come back."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_REASONS: Final = frozenset(Reason)
_RETRY_LATER: Final = {"retry-after": "1"}


def create_app(view: ChainView, submit: Submit, metrics: MinerMetrics, *, further: Sequence[Route] = ()) -> Starlette:
    """Build the application of one miner.

    Args:
        view: Committed state to read from.
        submit: Takes a posted transaction to the ordered log.
        metrics: Counted into, and shown at ``/metrics``.
        further: Routes of other parts, such as the registrar's page.
    """
    endpoints = Endpoints(view, submit, metrics)
    routes = [
        Route("/v1/models/latest", endpoints.latest_model),
        Route("/v1/models/{version}", endpoints.model),
        Route("/v1/blobs/sha256/{digest}", endpoints.blob),
        Route("/v1/blocks", endpoints.blocks),
        Route("/v1/blocks/{index}", endpoints.block),
        Route("/v1/outcomes/{digest}", endpoints.outcome),
        Route("/v1/genesis", endpoints.genesis),
        Route("/v1/txs", endpoints.post_transaction, methods=["POST"]),
        Route("/healthz", endpoints.health),
        Route("/metrics", endpoints.metrics),
        *further,
    ]
    patterns: dict[object, str] = {route.endpoint: route.path for route in routes}
    return Starlette(
        routes=routes,
        middleware=[Middleware(CountResponses, patterns=patterns, count=metrics.count_response)],
        exception_handlers={HTTPException: http_failure, Exception: internal_failure},
    )


class Endpoints:
    """One method per route."""

    def __init__(self, view: ChainView, submit: Submit, metrics: MinerMetrics) -> None:
        self._view = view
        self._submit = submit
        self._metrics = metrics
        self._submissions = 0

    async def latest_model(self, request: Request) -> Response:
        """Newest certified model."""
        return _document(request, model_document(self._view.latest()))

    async def model(self, request: Request) -> Response:
        """One certified version."""
        version = _number(request.path_params["version"], what="version")
        found: ModelView | None = self._view.model(version)
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"no certified version {version}")
        return _document(request, model_document(found))

    async def blocks(self, request: Request) -> Response:
        """Decided blocks from an index on; ``next`` is the index to go on from, or null at the end."""
        query = request.query_params
        first = max(1, _number(query.get("from", "1"), what="from"))
        limit = _number(query.get("limit", str(BLOCKS_PER_PAGE)), what="limit")
        if not 1 <= limit <= BLOCKS_PER_PAGE_MAX:
            raise HTTPException(HTTPStatus.BAD_REQUEST, f"limit {limit} is not in 1..{BLOCKS_PER_PAGE_MAX}")
        found = self._view.blocks(first, limit)
        following = found[-1].header.index + 1 if len(found) == limit else None
        return _document(request, {"blocks": [block_document(block) for block in found], "next": following})

    async def block(self, request: Request) -> Response:
        """One decided block with its entries."""
        index = _number(request.path_params["index"], what="index")
        found = self._view.block(index)
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"no decided block {index}")
        return _document(request, block_document(found))

    async def outcome(self, request: Request) -> Response:
        """Certified end of one update, with its proof."""
        digest = _digest(request)
        found = self._view.outcome(digest)
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "no certified outcome of this update")
        return _document(request, {"update_digest": digest.hex(), "outcome": base64_text(found)}, cache=IMMUTABLE)

    async def genesis(self, request: Request) -> Response:
        """Bytes of the trust anchor; a client compares their SHA-256 with what it was given."""
        return short_answer(request, self._view.genesis(), media_type="application/cbor", cache=IMMUTABLE)

    async def blob(self, request: Request) -> Response:
        """Bytes of a blob, or a range of them, straight from its file."""
        digest = _digest(request)
        path = self._view.blob_path(digest)
        return await immutable_file(request, path, digest, what="blob", count=self._metrics.count_blob_bytes)

    async def post_transaction(self, request: Request) -> Response:
        """Hand a signed envelope to the ordered log: 202 when its first check passes, 422 with the reason when not."""
        if self._submissions >= SUBMISSIONS_MAX:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "too many submissions", headers=_RETRY_LATER)
        self._submissions += 1
        try:
            transaction = await read_body(request, bytes_max=TX_BYTES_MAX)
            result = await self._submit(transaction)
        except (TransportError, RemoteProtocolError) as error:
            log.warning("transaction not submitted", extra={"error": str(error)})
            detail = "the ordered log cannot be reached"
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=_RETRY_LATER) from error
        finally:
            self._submissions -= 1
        accepted = result.code == Reason.NONE
        document = {
            "code": int(result.code),
            "reason": Reason(result.code).name.lower() if result.code in _REASONS else "unknown",
            "info": result.info,
            "tx_digest": hashlib.sha256(transaction).hexdigest(),
        }
        status = HTTPStatus.ACCEPTED if accepted else HTTPStatus.UNPROCESSABLE_ENTITY
        return JSONResponse(document, status_code=status, headers=SAFE_HEADERS)

    async def health(self, _request: Request) -> Response:
        """200 while the miner serves its task, 503 with the reason while it does not."""
        health = self._view.health()
        status = HTTPStatus.OK if health.ready else HTTPStatus.SERVICE_UNAVAILABLE
        headers = {"cache-control": "no-store"} | SAFE_HEADERS
        return JSONResponse(health_document(health), status_code=status, headers=headers)

    async def metrics(self, _request: Request) -> Response:
        """Prometheus' text format."""
        text, content_type = self._metrics.text()
        headers = {"content-type": content_type, "cache-control": "no-store"} | SAFE_HEADERS
        return Response(text, headers=headers)


def _number(text: str, *, what: str) -> int:
    """A canonical decimal of at most 16 digits: one resource has one address, and no huge integer is built."""
    if _NUMBER.fullmatch(text) is None:
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"{what} is not a decimal number of at most 16 digits")
    return int(text)


def _digest(request: Request) -> Digest:
    text: str = request.path_params["digest"]
    if _HEX_DIGEST.fullmatch(text) is None:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "not a SHA-256 digest in 64 lower-case hex digits")
    return Digest(bytes.fromhex(text))


def _document(request: Request, document: dict[str, Any], *, cache: str = REVALIDATE) -> Response:
    return short_answer(request, json.dumps(document).encode(), media_type="application/json", cache=cache)
