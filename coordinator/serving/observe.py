"""Count responses by route pattern and status, below every handler and error page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

UNMATCHED: Final = "unmatched"


class CountResponses:
    """ASGI middleware. The label is the pattern of the matched endpoint, never the path that a client made up."""

    def __init__(self, app: ASGIApp, *, patterns: Mapping[object, str], count: Callable[[str, int], None]) -> None:
        """Wrap ``app``; ``patterns`` maps endpoints of the route table to their patterns."""
        self._app = app
        self._patterns = patterns
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and count its status when the answer starts."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(self._patterns.get(scope.get("endpoint"), UNMATCHED), message["status"])
            await send(message)

        await self._app(scope, receive, counted)
