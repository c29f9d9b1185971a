"""The sequencer's interface: the part of CometBFT's JSON-RPC that miners use, over HTTP on a Unix socket.

``POST /`` takes JSON-RPC 2.0 requests ``broadcast_tx_sync``, ``status`` and ``health``; ``GET /status`` and ``GET
/health`` answer as CometBFT's do. One parameter is ours: ``miner`` names who checks a transaction, where CometBFT has
a node for each.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from coordinator.ordering.limits import RPC_BODY_BYTES_MAX, RPC_BODY_TIMEOUT_S, RPC_REQUESTS_MAX
from coordinator.ordering.mempool import Admission
from coordinator.ordering.unix_socket import unix_listener
from edge_sdk.errors import TransportError

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What became of a submission: refused for room or as known (``admission``), or checked by a miner (``code``)."""

    digest: bytes
    admission: Admission
    code: int = 0
    log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Where the engine stands."""

    chain_id: str
    height: int
    head_hash: bytes
    app_hash: bytes
    time_s: int
    stalemate: str
    waiting_txs: int
    waiting_bytes: int
    dropped_txs: int
    members: tuple[Mapping[str, str | int], ...]


class Engine(Protocol):
    """What the interface offers to the outside."""

    async def submit(self, tx: bytes, miner_id: str | None = None) -> Submitted:
        """Let a transaction wait for a height."""

    def status(self) -> Status:
        """Where the engine stands."""


class _RpcError(Exception):
    """Becomes the ``error`` member of a response."""

    def __init__(self, code: int, message: str, data: str = "") -> None:
        super().__init__(message)
        self.body = {"code": code, "message": message, "data": data}


def create_app(engine: Engine) -> Starlette:
    """HTTP application of an engine."""

    async def post(request: Request) -> Response:
        request_id: str | int | None = None
        try:
            request_id, method, params = _parse(await _body(request))
            return _json({"jsonrpc": "2.0", "id": request_id, "result": await _call(engine, method, params)})
        except _RpcError as error:
            return _json({"jsonrpc": "2.0", "id": request_id, "error": error.body})
        except (ClientDisconnect, TimeoutError):
            return Response(status_code=408)

    async def get(request: Request) -> Response:
        result = await _call(engine, request.url.path.removeprefix("/"), {})
        return _json({"jsonrpc": "2.0", "id": -1, "result": result})

    routes = [Route("/", post, methods=["POST"])]
    routes += [Route(path, get, methods=["GET"]) for path in ("/status", "/health")]
    return Starlette(routes=routes)


async def serve_rpc(engine: Engine, path: Path, stop: asyncio.Event) -> None:
    """Serve on a Unix socket of mode 0600 until ``stop`` is set.

    Raises:
        ConfigError: the socket cannot be opened.
    """
    settings = uvicorn.Config(
        create_app(engine),
        lifespan="off",
        log_config=None,
        access_log=False,
        limit_concurrency=RPC_REQUESTS_MAX,
        timeout_graceful_shutdown=2,
    )
    server = _Server(settings)
    with unix_listener(path) as listener:
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            server.should_exit = True
            await serving


class _Server(uvicorn.Server):
    """Leaves signals to the process that embeds it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _body(request: Request) -> bytes:
    """Read a body, no more than its bound and no longer than its time."""
    body = bytearray()
    async with asyncio.timeout(RPC_BODY_TIMEOUT_S):
        async for piece in request.stream():
            if len(body) + len(piece) > RPC_BODY_BYTES_MAX:
                raise _RpcError(INVALID_REQUEST, "Invalid Request", f"body is larger than {RPC_BODY_BYTES_MAX} bytes")
            body += piece
    return bytes(body)


def _parse(body: bytes) -> tuple[str | int | None, str, Mapping[str, object]]:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _RpcError(PARSE_ERROR, "Parse error") from error
    if not isinstance(call, dict) or call.get("jsonrpc") != "2.0":
        raise _RpcError(INVALID_REQUEST, "Invalid Request", "expected one JSON-RPC 2.0 request")
    request_id, method, params = call.get("id"), call.get("method"), call.get("params", {})
    if not isinstance(request_id, str | int | None) or not isinstance(method, str):
        raise _RpcError(INVALID_REQUEST, "Invalid Request", "expected an id and a method")
    if not isinstance(params, dict):
        raise _RpcError(INVALID_PARAMS, "Invalid params", "expected an object")
    return request_id, method, params


async def _call(engine: Engine, method: str, params: Mapping[str, object]) -> Mapping[str, object]:
    match method:
        case "broadcast_tx_sync":
            return await _broadcast(engine, params)
        case "status":
            return _shown(engine.status())
        case "health":
            return {}
        case _:
            raise _RpcError(METHOD_NOT_FOUND, "Method not found")


async def _broadcast(engine: Engine, params: Mapping[str, object]) -> Mapping[str, object]:
    text, miner_id = params.get("tx"), params.get("miner")
    if not isinstance(text, str) or not isinstance(miner_id, str | None):
        raise _RpcError(INVALID_PARAMS, "Invalid params", "expected tx in base64, and a miner id or none")
    try:
        tx = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _RpcError(INVALID_PARAMS, "Invalid params", "tx is not base64") from error
    try:
        submitted = await engine.submit(tx, miner_id)
    except LookupError as error:
        raise _RpcError(INVALID_PARAMS, "Invalid params", "no such miner") from error
    except TransportError as error:
        raise _RpcError(INTERNAL_ERROR, "Internal error", str(error)) from error
    if submitted.admission is not Admission.ADDED:
        raise _RpcError(INTERNAL_ERROR, "Internal error", submitted.admission.value)
    return {
        "code": submitted.code,
        "data": "",
        "log": submitted.log,
        "codespace": "",
        "hash": submitted.digest.hex().upper(),
    }


def _shown(status: Status) -> Mapping[str, object]:
    """A status in CometBFT's shape, with our own part beside it. 64-bit numbers are texts there."""
    return {
        "node_info": {"network": status.chain_id, "moniker": "local"},
        "sync_info": {
            "latest_block_height": str(status.height),
            "latest_block_hash": status.head_hash.hex().upper(),
            "latest_app_hash": status.app_hash.hex().upper(),
            "latest_block_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status.time_s)),
            "catching_up": False,
        },
        "local": {
            "stalemate": status.stalemate,
            "waiting_txs": status.waiting_txs,
            "waiting_bytes": status.waiting_bytes,
            "dropped_txs": status.dropped_txs,
            "members": list(status.members),
        },
    }


def _json(body: Mapping[str, object]) -> Response:
    # ASCII only: an id may hold a lone surrogate, which UTF-8 cannot carry.
    return Response(json.dumps(body).encode("ascii"), media_type="application/json")
