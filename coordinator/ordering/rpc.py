"""How miners and commands submit transactions: a client of CometBFT's JSON-RPC, which ``local`` speaks too."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import httpx

from coordinator.ordering.limits import RPC_RESPONSE_BYTES_MAX, TX_LOG_CHARS_MAX
from coordinator.ordering.mempool import Admission, digest_of
from edge_sdk.errors import ConfigError, DecodeError, RemoteProtocolError, TransportError
from edge_sdk.protocol.limits import TX_BYTES_MAX

TIMEOUT_S: Final = 10.0
UNIX_PREFIX: Final = "unix:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Answer to a submitted transaction."""

    code: int
    """0: it waits for a height. Else the application's reason (``Reason`` on our miners)."""
    info: str
    digest: bytes
    is_known: bool = False
    """It waits already, or was ordered lately; not checked again."""


class OrderedLogClient:
    """Submits to the ordered log.

    ``url`` is ``unix:/path/of/socket`` (``local``) or ``http://host:port`` (a CometBFT node). ``miner_id`` names the
    miner that checks on ``local``; without it any live one does. Use as ``async with``.
    """

    def __init__(self, url: str, *, miner_id: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """Nothing connects before the first call.

        Raises:
            ConfigError: not such an address.
        """
        if url.startswith(UNIX_PREFIX) and len(url) > len(UNIX_PREFIX):
            transport = httpx.AsyncHTTPTransport(uds=url.removeprefix(UNIX_PREFIX))
            self._url = "http://local/"
        elif url.startswith(("http://", "https://")):
            transport = httpx.AsyncHTTPTransport()
            self._url = url
        else:
            raise ConfigError(f"ordering rpc = {url!r}: expected unix:/path or http://host:port")
        self._http = httpx.AsyncClient(transport=transport, timeout=timeout_s, trust_env=False)
        self._miner_id = miner_id if url.startswith(UNIX_PREFIX) else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit(self, tx: bytes) -> Submission:
        """Submit one transaction; once it is accepted, send it again only if it does not show up on the ledger.

        Raises:
            ValueError: empty, or larger than a transaction may be.
            TransportError: the engine or the checking miner cannot be reached, or there is no room: try again later.
            RemoteProtocolError: the answer is not one.
        """
        if not 0 < len(tx) <= TX_BYTES_MAX:
            raise ValueError(f"transaction of {len(tx)} bytes, expected 1..{TX_BYTES_MAX}")
        params = {"tx": base64.b64encode(tx).decode("ascii")}
        if self._miner_id is not None:
            params["miner"] = self._miner_id
        answer = await self._call("broadcast_tx_sync", params)
        error = answer.get("error")
        if isinstance(error, dict):
            problem = str(error.get("data") or error.get("message"))[:TX_LOG_CHARS_MAX]
            if Admission.KNOWN.value in problem:
                return Submission(code=0, info=problem, digest=digest_of(tx), is_known=True)
            raise TransportError(f"{self._url}: {problem}")
        result = _mapping(answer.get("result"), "result")
        code, log = result.get("code"), result.get("log")
        if not isinstance(code, int) or isinstance(code, bool) or not isinstance(log, str):
            raise DecodeError("answer to broadcast_tx_sync without code and log")
        return Submission(code=code, info=log[:TX_LOG_CHARS_MAX], digest=digest_of(tx))

    async def status(self) -> Mapping[str, object]:
        """The engine's status as it shows it; ``sync_info`` is common to both engines, ``local`` is ours.

        Raises:
            TransportError, RemoteProtocolError: as ``submit``.
        """
        return _mapping((await self._call("status", {})).get("result"), "result")

    async def height(self) -> int:
        """Last decided height.

        Raises:
            TransportError, RemoteProtocolError: as ``submit``.
        """
        text = _mapping((await self.status()).get("sync_info"), "sync_info").get("latest_block_height")
        if not isinstance(text, str) or not text.isdecimal() or len(text) > 19:
            raise DecodeError("status without a height")
        return int(text)

    async def _call(self, method: str, params: Mapping[str, str]) -> Mapping[str, object]:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        data = bytearray()
        try:
            async with self._http.stream("POST", self._url, json=body) as response:
                async for piece in response.aiter_bytes():
                    if len(data) + len(piece) > RPC_RESPONSE_BYTES_MAX:
                        raise RemoteProtocolError(f"{self._url}: answer is larger than {RPC_RESPONSE_BYTES_MAX} bytes")
                    data += piece
        except httpx.HTTPError as error:
            raise TransportError(f"{self._url}: {type(error).__name__}: {error}") from error
        if response.status_code in {408, 429, 502, 503, 504}:
            raise TransportError(f"{self._url}: HTTP {response.status_code}")
        try:
            return _mapping(json.loads(data), "answer")
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"{self._url}: HTTP {response.status_code} without a JSON-RPC answer") from error


def _mapping(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise DecodeError(f"{what} is not an object")
    return value
