"""Blobs from other miners over HTTP, by digest.

A peer may be wrong, slow or hostile: time and length are bounded, and the hash is checked before a byte is used.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Final

import httpx

from edge_sdk.protocol.ids import Digest, MinerId

log = logging.getLogger(__name__)

FETCHES_MAX: Final = 4
"""Downloads at once, over all peers: bounds memory to this many blobs."""
CONNECT_S: Final = 2.0
FETCH_S: Final = 15.0
"""Whole download of one blob from one peer; a peer that trickles is left for the next."""


class Peers:
    """The other miners' blob stores."""

    def __init__(self, urls: Mapping[MinerId, str]) -> None:
        """Remember who is where; connections are opened on demand and kept alive."""
        self._urls = dict(urls)
        self._slots = asyncio.Semaphore(FETCHES_MAX)
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(FETCH_S, connect=CONNECT_S), follow_redirects=False, trust_env=False
        )

    async def fetch(
        self, digest: Digest, *, bytes_expected: int, preferred: Sequence[MinerId] = (), attempts_max: int = 8
    ) -> bytes | None:
        """Ask peers in turn for a blob, those in ``preferred`` first.

        Args:
            digest: SHA-256 of the blob, from a signed manifest or a certificate's chain.
            bytes_expected: Its length, from the same place: not a byte more is read.
            preferred: Peers that said they store it.
            attempts_max: Peers that are asked at most.

        Returns:
            The blob, or None when no peer gave it.
        """
        order = [*preferred, *(peer for peer in self._urls if peer not in preferred)]
        for peer in [peer for peer in order if peer in self._urls][:attempts_max]:
            try:
                async with self._slots, asyncio.timeout(FETCH_S):
                    blob = await self._get(self._urls[peer], digest, bytes_expected)
            except (httpx.HTTPError, TimeoutError) as error:
                log.info("blob not had from peer", extra={"peer": peer, "blob": digest.hex(), "error": repr(error)})
                continue
            if blob is not None:
                return blob
            log.warning("peer has no such blob, or a wrong one", extra={"peer": peer, "blob": digest.hex()})
        return None

    async def _get(self, url: str, digest: Digest, bytes_expected: int) -> bytes | None:
        """One download; None when the peer's answer is not the blob."""
        path = f"{url.rstrip('/')}/v1/blobs/sha256/{digest.hex()}"
        data = bytearray()
        async with self._client.stream("GET", path, headers={"accept-encoding": "identity"}) as response:
            if response.status_code != httpx.codes.OK:
                return None
            async for piece in response.aiter_raw():
                if len(data) + len(piece) > bytes_expected:
                    return None
                data += piece
        if len(data) != bytes_expected or hashlib.sha256(data).digest() != digest:
            return None
        return bytes(data)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
