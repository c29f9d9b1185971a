"""What the work thread does for the participant; each task turns its failures into the event that stands for them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from edge_sdk.adapters import failpoints
from edge_sdk.adapters.durable_files import read_file, sync_file
from edge_sdk.adapters.slots import SlotModel
from edge_sdk.device.downloads import Downloads
from edge_sdk.device.job import MadeUpdate, PinnedBase, StoppedError
from edge_sdk.device.parts import Parts
from edge_sdk.errors import DecodeError, StoreError, TrainingError, TransportError
from edge_sdk.participant import events as e
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX

log: Final = logging.getLogger(__name__)
NS_PER_MS: Final = 1_000_000


class Tasks:
    """Bodies of the tasks. ``staged`` and ``made`` are read by the loop after the event that announces them."""

    def __init__(self, parts: Parts, downloads: Downloads) -> None:
        """Keep the parts."""
        self._config = parts.config
        self._genesis = parts.genesis
        self._clock = parts.clock
        self._slots = parts.slots
        self._trainers = parts.trainers
        self._downloads = downloads
        self._http = parts.http
        self._record = parts.record
        self._sensors = parts.sensors
        self._signer = parts.signer
        self._training_lock = parts.training_lock
        self._stopping = parts.stopping
        self.staged: SlotModel | None = None
        self.made: MadeUpdate | None = None

    def now_ms(self) -> int:
        """Monotonic milliseconds, as events carry them."""
        return self._clock.monotonic_ns() // NS_PER_MS

    def fetch(self, effect: e.FetchModel) -> e.Event:
        """Download a model into the inactive slot."""
        version, announcement = effect.model.version, effect.announcement
        urls = (*self._config.miner_urls, *announcement.urls)
        try:
            with self._record.measure("fetch", version=version, miner=announcement.miner_id) as span:
                self._fetch_artifact(urls)
                span.bytes_count = self._downloads.fetch(
                    urls, announcement.model_digest, announcement.model_bytes, self._slots.part()
                )
                failpoints.hit("device.after_fetch")
                self.staged = self._slots.stage(version, effect.model.root, announcement.model_digest)
        except (TransportError, DecodeError, StoreError) as error:
            return e.ModelFailed(self.now_ms(), version, str(error))
        return e.ModelFetched(self.now_ms(), version)

    def self_test(self, effect: e.SelfTest) -> e.Event:
        """Run the staged model on local examples."""
        staged = self.staged
        if staged is None or staged.version != effect.version:
            return e.ModelFailed(self.now_ms(), effect.version, "no staged model")
        try:
            with self._record.measure("self_test", version=effect.version) as span:
                span.ids["loss"] = round(self._trainers.self_test(self._slots.read(staged), effect.version), 4)
        except (TrainingError, DecodeError, StoreError) as error:
            return e.ModelFailed(self.now_ms(), effect.version, f"self-test: {error}")
        finally:
            self._trainers.release()
        self._mark_personal()
        return e.ModelTested(self.now_ms(), effect.version)

    def train(self, base: PinnedBase) -> e.Event | None:
        """Run or resume a job, with the artifact in its place; not while the software of this board is changed."""
        try:
            self._fetch_artifact(
                self._config.miner_urls
            )  # lost since the model came: in a fleet at rest no other comes
        except (TransportError, StoreError) as error:
            return None if self._stopping.is_set() else e.TrainingFailed(self.now_ms(), base.version, str(error))
        with self._training_lock.held(self._stopping) as is_free:
            return self._train(base) if is_free else None

    def _train(self, base: PinnedBase) -> e.Event | None:
        try:
            with self._record.measure("train", base_version=base.version) as span:
                span.ids["steps"] = self._trainers.train(base)
        except StoppedError:
            return None
        except (TrainingError, StoreError, DecodeError) as error:
            self._trainers.release()
            return e.TrainingFailed(self.now_ms(), base.version, str(error))
        self._trainers.energy_mj = span.energy_mj or 0
        self._trainers.energy_quality = self._record.quality
        self._mark_personal()
        self._mark_memory("trained")
        failpoints.hit("device.after_training")
        return e.TrainingEnded(self.now_ms(), base.version)

    def make_update(self, effect: e.MakeUpdate, base: PinnedBase, residual: bytes | None) -> e.Event:
        """Encode and sign the update of the finished job."""
        try:
            with self._record.measure("make_update", base_version=base.version) as span:
                made = self._trainers.make_update(
                    base, effect.seq, effect.expiry_height, residual=residual, signer=self._signer
                )
                span.bytes_count = len(made.blob)
                span.ids["update"] = made.digest.hex()
        except (TrainingError, DecodeError) as error:
            self._trainers.release()
            return e.TrainingFailed(self.now_ms(), base.version, str(error))
        self.made = made
        self._mark_memory("released")
        return e.UpdateMade(
            now_ms=self.now_ms(),
            digest=made.digest,
            seq=made.seq,
            base_version=made.base_version,
            blob_bytes=len(made.blob),
            expiry_height=made.expiry_height,
        )

    def ask_outcome(self, digest: Digest, urls: tuple[str, ...]) -> e.Event | None:
        """Ask the miners what became of an update."""
        try:
            outcome = self._http.outcome(urls, digest)
        except TransportError as error:
            log.info("no outcome of %s: %s", digest.hex()[:12], error)
            return None
        return None if outcome is None else e.OutcomeArrived(self.now_ms(), outcome)

    def bound(self, function: Callable[[], e.Event | None]) -> Callable[[], e.Event | None]:
        """A task that does nothing once the process ends."""
        return lambda: None if self._stopping.is_set() else function()

    def _fetch_artifact(self, urls: tuple[str, ...]) -> None:
        """Bring the artifact that genesis names, where the board does not hold it, or holds another one."""
        path = self._config.artifact_file
        digest, size = self._genesis.artifact_digest, self._genesis.artifact_bytes
        try:
            held = read_file(path, bytes_max=ARTIFACT_BYTES_MAX)
        except StoreError as error:  # too long, or a medium that no longer gives it back
            log.warning("%s: fetched anew", error)
        else:
            if held is not None and sha256(held) == digest:
                return
            if held is not None:
                log.warning("%s is not the artifact that genesis names: fetched anew", path)
        part = path.with_name(path.name + ".part")
        with self._record.measure("fetch_artifact") as span:
            try:
                if size is None:  # a genesis of before, without the length: a board cannot ask for chunks of it
                    received = self._http.fetch(urls, digest, None, part, bytes_max=ARTIFACT_BYTES_MAX)
                else:
                    received = self._downloads.fetch(urls, digest, size, part)
            except TransportError as error:
                raise TransportError(f"{path} is not on this board and was not to be had: {error}") from error
            span.bytes_count = received
        sync_file(part)
        try:
            part.replace(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be written: {error.strerror}") from error

    def _mark_personal(self) -> None:
        personal = self._trainers.personal
        kept = None if personal is None else personal.take_kept()
        if kept is not None:
            self._record.mark("personal", **kept.summary())

    def _mark_memory(self, moment: str) -> None:
        memory = self._sensors.process_memory()
        self._record.mark("memory", moment=moment, rss_kib=memory.rss_kib, peak_kib=memory.peak_kib)
