"""Watches a run from outside, as any client could: blocks and models over HTTP, certificates and roots checked.

The accuracy curve is made here: each new certified model is verified like a device does and evaluated on the test set,
which no device and no miner has. A model that comes while an earlier one is evaluated waits; when several wait, only
the newest is taken, so that the observer never slows the fleet down by more than one thread's share.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx

from coordinator.datasets.task import ACCURACY, TaskData, measure_of, quality
from edge_sdk.errors import EdgeFLError, SignatureError
from edge_sdk.protocol import wire
from edge_sdk.protocol.certificate import verify_certificate
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.limits import BLOB_BYTES_MAX
from edge_sdk.protocol.messages import Certificate, Genesis, ModelParams
from edge_sdk.protocol.model import model_root
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.trainer import Trainer

log = logging.getLogger(__name__)

POLL_S: Final = 0.4
TIMEOUT_S: Final = 3.0
EVALUATION_SHARE: Final = 0.2
"""Part of the time that evaluations may take: on few cores they compete with the devices."""
BLOCKS_PER_PAGE: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenBlock:
    """One decided block."""

    index: int
    cause: str
    version: int
    merged: int
    refused: tuple[str, ...]
    """Reasons, one per refused update."""
    seen_s: float
    """Since the start of the run."""
    is_certified: bool


@dataclass(frozen=True, slots=True)
class Point:
    """Accuracy of one certified version on the test set, or what ``Progress.measure`` says."""

    seconds: float
    version: int
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What has been seen so far."""

    measure: str = ACCURACY
    """What the curve shows."""
    version: int = 0
    height: int = 0
    pending: int = 0
    miners_ready: int = 0
    blocks: tuple[SeenBlock, ...] = ()
    curve: tuple[Point, ...] = ()
    refusals: dict[str, int] = field(default_factory=dict)
    """Hostile and honest updates that were refused, by device."""


class Observer:
    """A thread that polls the miners. Read ``progress`` at any time."""

    def __init__(
        self, urls: Sequence[str], *, genesis: Genesis, artifact: Artifact, data: TaskData, origin_s: float
    ) -> None:
        """Prepare.

        Args:
            urls: HTTP addresses of the miners; the first that answers is asked.
            genesis: Trust anchor.
            artifact: For the evaluation.
            data: Its test part is used, nothing else.
            origin_s: ``time.monotonic()`` at second 0 of the curve.
        """
        self._urls = tuple(urls)
        self._genesis = genesis
        self._trainer = Trainer(artifact)
        self._data = data
        self._origin_s = origin_s
        self._client = httpx.Client(timeout=TIMEOUT_S)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self._next_evaluation_s = 0.0
        self.progress = Progress(measure=measure_of(data))

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; ``look`` may still be called."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def close(self) -> None:
        """Give back the connections."""
        self._client.close()

    def evaluate(self, params: ModelParams, version: int, seconds: float) -> None:
        """Append one point to the curve."""
        point = Point(seconds, version, quality(self._trainer, params, self._data))
        self.progress = replace(self.progress, version=version, curve=(*self.progress.curve, point))

    def look(self, *, is_last: bool = False) -> None:
        """Poll once; failures of single miners are normal and looked over. ``is_last``: evaluate whatever is newest."""
        ready = []
        for url in self._urls:
            try:
                health = self._json(url, "/healthz")
            except (httpx.HTTPError, ValueError):
                continue
            if health.get("status") == "ok":
                ready.append((int(health["height"]), int(health["pending"]), url))
        self.progress = replace(self.progress, miners_ready=len(ready))
        if not ready:
            return
        # The miner that is furthest knows most; which one it is changes as they take turns.
        height, pending, url = max(ready)
        self.progress = replace(self.progress, height=height, pending=pending)
        try:
            self._look_at_blocks(url)
            self._look_at_model(url, is_last=is_last)
        except (httpx.HTTPError, ValueError, KeyError, EdgeFLError) as error:
            log.warning("%s: %s", url, error)

    def _run(self) -> None:
        while not self._stopping.wait(POLL_S):
            self.look()

    def _look_at_blocks(self, url: str) -> None:
        known = {block.index: block for block in self.progress.blocks}
        open_ones = [block.index for block in self.progress.blocks if not block.is_certified]
        first: int | None = min(open_ones, default=max(known, default=0) + 1)
        refusals = dict(self.progress.refusals)
        while first is not None:
            page = self._json(url, f"/v1/blocks?from={first}&limit={BLOCKS_PER_PAGE}")
            for document in page["blocks"]:
                block = self._block(document)
                before = known.get(block.index)
                if before is None:
                    for entry in document["entries"]:
                        if entry["verdict"] == "refused":
                            refusals[entry["device_id"]] = refusals.get(entry["device_id"], 0) + 1
                    known[block.index] = block
                else:
                    known[block.index] = replace(block, seen_s=before.seen_s)
            first = page["next"]
        blocks = tuple(known[index] for index in sorted(known))
        self.progress = replace(self.progress, blocks=blocks, refusals=refusals)

    def _block(self, document: dict[str, Any]) -> SeenBlock:
        entries = document["entries"]
        return SeenBlock(
            index=int(document["index"]),
            cause=str(document["header"]["cause"]),
            version=int(document["header"]["version"]),
            merged=sum(entry["verdict"] == "merged" for entry in entries),
            refused=tuple(str(entry["reason"]) for entry in entries if entry["verdict"] == "refused"),
            seen_s=time.monotonic() - self._origin_s,
            is_certified=document["certificate"] is not None,
        )

    def _look_at_model(self, url: str, *, is_last: bool) -> None:
        now_s = time.monotonic()
        if now_s < self._next_evaluation_s and not is_last:
            return
        latest = self._json(url, "/v1/models/latest")
        if int(latest["version"]) <= self.progress.version:
            return
        params = self._model(url, latest)
        self.evaluate(params, int(latest["version"]), now_s - self._origin_s)
        spent_s = time.monotonic() - now_s
        self._next_evaluation_s = now_s + spent_s / EVALUATION_SHARE

    def _model(self, url: str, latest: dict[str, Any]) -> ModelParams:
        """Download and verify one model: certificate, digest, root.

        Raises:
            EdgeFLError: the miner's answer does not hold.
        """
        certificate = wire.from_bytes(Certificate, base64.b64decode(latest["certificate"]))
        verify_certificate(certificate, self._genesis)
        data = self._bytes(url, f"/v1/blobs/sha256/{latest['model_digest']}")
        params = wire.from_bytes(ModelParams, data, bytes_max=BLOB_BYTES_MAX)
        if sha256(data).hex() != latest["model_digest"] or model_root(params) != certificate.statement.model_root:
            raise SignatureError("the model is not the certified one")
        return params

    def _json(self, url: str, path: str) -> Any:
        response = self._client.get(url + path)
        response.raise_for_status()
        return response.json()

    def _bytes(self, url: str, path: str) -> bytes:
        with self._client.stream("GET", url + path) as response:
            response.raise_for_status()
            data = bytearray()
            for piece in response.iter_bytes():
                data += piece
                if len(data) > BLOB_BYTES_MAX:
                    raise SignatureError(f"a model of more than {BLOB_BYTES_MAX} bytes")
        return bytes(data)
