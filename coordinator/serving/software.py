"""A software repository beside the models: the files of ``flchain upgrade`` below ``/v1/software``, nothing else.

The miner neither signs nor verifies them; boards do. Names are those that a TUF repository with consistent snapshots
has, so no other file of the folder can be asked for, the keys of a careless operator included.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.routing import Route

from coordinator.serving.files import IMMUTABLE, REVALIDATE, immutable_file, short_answer
from edge_sdk.adapters.durable_files import read_file
from edge_sdk.errors import StoreError
from edge_sdk.upgrade.metadata import BYTES_MAX

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

PREFIX: Final = "/v1/software"
_METADATA: Final = re.compile(r"timestamp\.json|[1-9][0-9]{0,9}\.(?:root|snapshot|targets)\.json", re.ASCII)
_TARGET: Final = re.compile(r"([0-9a-f]{64})\.[A-Za-z0-9_][A-Za-z0-9_.+!-]{0,199}", re.ASCII)


class Software:
    """Serves one repository."""

    def __init__(self, folder: Path, *, count: Callable[[int], None]) -> None:
        """Keep the folder; it may be published to while it is served.

        Args:
            folder: The repository.
            count: Is told how many bytes of targets are sent.
        """
        self._folder = folder
        self._count = count

    @property
    def routes(self) -> list[Route]:
        """Routes for the miner's application."""
        return [
            Route(f"{PREFIX}/metadata/{{name}}", self.metadata),
            Route(f"{PREFIX}/targets/{{name}}", self.target),
        ]

    async def metadata(self, request: Request) -> Response:
        """One signed document."""
        name: str = request.path_params["name"]
        if _METADATA.fullmatch(name) is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "no such metadata here")
        try:
            data = await asyncio.to_thread(
                read_file, self._folder / "metadata" / name, bytes_max=max(BYTES_MAX.values())
            )
        except StoreError as error:
            raise HTTPException(HTTPStatus.INTERNAL_SERVER_ERROR, "this metadata cannot be read") from error
        if data is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "no such metadata here")
        cache = REVALIDATE if name == "timestamp.json" else IMMUTABLE
        return short_answer(request, data, media_type="application/json", cache=cache)

    async def target(self, request: Request) -> Response:
        """A wheel or the release's description, or a range of it."""
        name: str = request.path_params["name"]
        match = _TARGET.fullmatch(name)
        if match is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "no such file here")
        path = self._folder / "targets" / name
        return await immutable_file(request, path, bytes.fromhex(match[1]), what="file", count=self._count)
