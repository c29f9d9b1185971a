"""Run an ASGI application inside an event loop that belongs to somebody else, with bounds on what clients may hold."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn

from edge_sdk.errors import ConnectError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

CONNECTIONS_MAX: Final = 256
KEEP_ALIVE_S: Final = 15
HEADER_BYTES_MAX: Final = 16 * 1024
STOP_S: Final = 3
"""Open downloads get this long when the service stops."""
START_POLL_S: Final = 0.01


class _EmbeddedServer(uvicorn.Server):
    """uvicorn without its signal handlers: the process that embeds it owns SIGTERM."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpService:
    """One listening socket and the application behind it.

    The constructor binds the socket, so a taken port is known before anything else starts; port 0 picks a free one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        """Bind; with ``certificate`` and ``key`` (PEM) the service speaks TLS only.

        Raises:
            ConnectError: the address cannot be bound.
        """
        try:
            self._socket = _bound(host, port)
        except OSError as error:
            raise ConnectError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_S,
            h11_max_incomplete_event_size=HEADER_BYTES_MAX,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        self._server = _EmbeddedServer(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve from now on; returns when requests are answered."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name=f"http:{self.port}")
        while not self._server.started:
            if self._task.done():
                await self._task
                raise ConnectError(f"HTTP service on {self.host} port {self.port} stopped at its start")
            await asyncio.sleep(START_POLL_S)

    async def stop(self) -> None:
        """Close the socket, let open requests end for ``STOP_S``, then drop them."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()


def _bound(host: str, port: int) -> socket.socket:
    """A listening address of the family that the host's name has."""
    ((family, kind, protocol, _, address), *_) = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
