"""Blobs from other miners over HTTP, by digest.

A peer may be wrong, slow or hostile: time and length are bounded, and the hash is checked before a byte is used.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import httpx

from edge_sdk.protocol.ids import Digest, MinerId, check_digest
from edge_sdk.protocol.limits import BLOB_BYTES_MAX

log = logging.getLogger(__name__)

FETCHES_MAX: Final = 4
"""Downloads at once, over all peers: bounds memory to this many blobs."""
CONNECT_S: Final = 2.0
DOCUMENT_BYTES_MAX: Final = 64 * 1024
FETCH_S: Final = 15.0
"""Whole download of one blob from one peer; a peer that trickles is left for the next."""


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """What a peer says of a version; nothing of it is trusted."""

    miner_id: MinerId
    digest: Digest
    size_bytes: int


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
                log.info("blob %s not had from %s: %r", digest.hex(), peer, error)
                continue
            if blob is not None:
                return blob
            log.warning("%s has no blob %s, or a wrong one", peer, digest.hex())
        return None

    async def model_offers(self, version: int) -> list[ModelOffer]:
        """Ask all peers for their bytes of a certified version; those that answer sensibly, in order."""
        answers = await asyncio.gather(*(self._offer(peer, version) for peer in self._urls))
        return [offer for offer in answers if offer is not None]

    async def _offer(self, peer: MinerId, version: int) -> ModelOffer | None:
        try:
            async with asyncio.timeout(FETCH_S):
                data = await self._read(f"{self._urls[peer]}/v1/models/{version}", bytes_max=DOCUMENT_BYTES_MAX)
        except (httpx.HTTPError, TimeoutError) as error:
            log.info("version %d not had from %s: %r", version, peer, error)
            return None
        try:
            document = json.loads(data or b"null")
            digest, size_bytes = bytes.fromhex(document["model_digest"]), int(document["model_bytes"])
            return ModelOffer(peer, check_digest(digest), min(size_bytes, BLOB_BYTES_MAX))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            log.warning("%s describes no model: %r", peer, error)
            return None

    async def _get(self, url: str, digest: Digest, bytes_expected: int) -> bytes | None:
        """One download; None when the peer's answer is not the blob."""
        data = await self._read(f"{url}/v1/blobs/sha256/{digest.hex()}", bytes_max=bytes_expected)
        if data is None or len(data) != bytes_expected or hashlib.sha256(data).digest() != digest:
            return None
        return data

    async def _read(self, url: str, *, bytes_max: int) -> bytes | None:
        """Body of a successful answer; None for any other, or for one that is longer than allowed."""
        data = bytearray()
        async with self._client.stream("GET", url, headers={"accept-encoding": "identity"}) as response:
            if response.status_code != httpx.codes.OK:
                return None
            async for piece in response.aiter_raw():
                if len(data) + len(piece) > bytes_max:
                    return None
                data += piece
        return bytes(data)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
