"""The device as a process: one loop that feeds the participant and carries out what it asks for.

Threads: this loop, the MQTT link's two, and one for work. Only the loop steps the participant and writes the outbox.
A stop by SIGTERM or SIGINT ends the current transaction, saves a checkpoint of a running job, says goodbye to the
broker and returns 0; a stop by SIGKILL loses nothing either, it only costs the next start a little.
"""

from __future__ import annotations

import logging
import secrets
import signal
from collections import deque
from types import FrameType
from typing import Final

from edge_sdk import __version__
from edge_sdk.adapters import mqtt
from edge_sdk.adapters.enrolment import certificate_life, is_renewal_due, renew
from edge_sdk.adapters.watchdog import Watchdog
from edge_sdk.device.actor import SHARDS, Actor
from edge_sdk.device.config import DeviceConfig
from edge_sdk.device.downloads import Downloads, Ranges
from edge_sdk.device.first_boot import places
from edge_sdk.device.inbox import Inbox, Incoming, Item, Mailbox, Stop
from edge_sdk.device.parts import open_parts
from edge_sdk.device.restore import restored
from edge_sdk.device.tasks import NS_PER_MS, Tasks
from edge_sdk.device.worker import Crash, Worker
from edge_sdk.errors import EdgeFLError, RemoteProtocolError, StoreError, TransportError
from edge_sdk.governor import Judgement, judge
from edge_sdk.participant import events as e
from edge_sdk.participant.machine import apply, next_due_ms
from edge_sdk.participant.state import Rules, Stage, State
from edge_sdk.protocol import cose, topics
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.messages import Announcement, Chunk, Domain, Fetch, Outcome, Receipt, Resume, Status
from edge_sdk.protocol.wire import to_bytes

log: Final = logging.getLogger(__name__)

HOUSEKEEPING_S: Final = 5.0
OFFER_AGAIN_S: Final = 60.0
"""Announcements that were refused for the clock's sake are looked at again: a board learns the time late."""
RENEWAL_S: Final = 3_600.0
SESSIONS_PER_RUN: Final = 2**20
SESSION_OFFSETS: Final = 2**19
"""The first session of a run is drawn among these: a copied card that starts in the same run shows by other numbers."""
STOP_TIMEOUT_S: Final = 20.0
GOODBYE_S: Final = 1.0
MS_PER_S: Final = 1_000


class Device:
    """One device process."""

    def __init__(self, config: DeviceConfig) -> None:
        """Open the parts; see ``open_parts`` for the errors."""
        self._config = config
        self._parts = parts = open_parts(config)
        self._mailbox = Mailbox()
        self._inbox = Inbox(parts.genesis, config.device_id)
        self._watchdog = Watchdog()
        self._shard = topics.shard_of(config.device_id, SHARDS)
        self._link = mqtt.MqttLink(
            client_id=config.device_id,
            brokers=config.brokers,
            subscriptions=topics.device_filters(config.task, config.device_id),
            will_of=lambda session: self._status(session, online=False),
            sink=self._mailbox.put,
            first_session=parts.outbox.begin_run() * SESSIONS_PER_RUN + secrets.randbelow(SESSION_OFFSETS),
        )
        self._downloads = Downloads(parts.http, ask=self._ask_chunks, stopping=parts.stopping)
        self._tasks = Tasks(parts, self._downloads)
        self._worker = Worker(self._mailbox.put)
        self._actor = Actor(parts, self._tasks, self._worker, self._link)
        self._announcements: dict[str, Announcement] = {}
        self._judgement = Judgement()
        self._installed_version = 0
        self._session = 0
        self._tick_due_ms: int | None = None
        self._housekeeping_due_ms = 0
        self._offer_due_ms = 0
        self._renewal_due_ms = 0
        self._is_stopping = False
        self._state = State(
            rules=Rules(
                genesis=parts.genesis,
                device_id=config.device_id,
                in_flight_max=config.in_flight,
                outbox_bytes_max=config.outbox_bytes,
                outbox_age_ms_max=config.outbox_age_s * MS_PER_S,
            )
        )

    def run(self) -> int:
        """Work until a signal; the exit status.

        Raises:
            EdgeFLError: the device cannot go on, for instance because its store lies.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._worker.start()
        self._step(restored(self._parts, now_ms=self._now_ms()))
        self._parts.health.write(connected=False)
        self._link.start()
        self._watchdog.ready(f"device {self._config.device_id} of task {self._config.task}")
        try:
            while not self._is_stopping:
                self._turn()
        finally:
            self._stop()
        return 0

    def stop(self) -> None:
        """Ask the loop to end, from any thread."""
        self._mailbox.put(Stop())

    # --- the loop ---

    def _turn(self) -> None:
        """Wait for the next thing, do it, and look after the rest."""
        item = self._mailbox.get(self._wait_s())
        if item is not None:
            self._take(item)
        now_ms = self._now_ms()
        if self._tick_due_ms is not None and self._tick_due_ms <= now_ms:
            self._step(e.Tick(now_ms))
        if now_ms >= self._housekeeping_due_ms:
            self._housekeeping_due_ms = now_ms + round(HOUSEKEEPING_S * MS_PER_S)
            self._keep_house(now_ms)
        self._watchdog.alive()

    def _wait_s(self) -> float:
        due_ms = [self._housekeeping_due_ms]
        if self._tick_due_ms is not None:
            due_ms.append(self._tick_due_ms)
        wait_s = (min(due_ms) - self._now_ms()) / MS_PER_S
        return wait_s if self._watchdog.interval_s is None else min(wait_s, self._watchdog.interval_s)

    def _take(self, item: Item) -> None:
        match item:
            case Stop():
                self._is_stopping = True
            case Crash():
                raise item.error
            case mqtt.Connected():
                self._connected(item)
            case mqtt.Disconnected():
                log.info("session %d at %s ended: %s", item.session, item.broker, item.reason)
                self._parts.health.write(connected=False)
                self._actor.link_lost()
                self._step(e.LinkDown(self._now_ms()))
            case mqtt.Published():
                for event in self._actor.published(item):
                    self._step(event)
            case mqtt.Arrived():
                self._arrived(item)
            case _:
                self._step(item)

    def _step(self, event: e.Event) -> None:
        """Step the participant, carry out its effects, and go on with what follows at once."""
        events = deque([event])
        while events:
            event = events.popleft()
            self._state, effects = apply(self._state, event)
            for effect in effects:
                events.extend(self._actor.carry_out(effect))
        self._tick_due_ms = next_due_ms(self._state, event.now_ms)
        installed = self._state.installed
        if installed is not None and installed.version != self._installed_version:
            self._installed_version = installed.version
            self._publish_status()

    # --- the link ---

    def _connected(self, event: mqtt.Connected) -> None:
        log.info(
            "connected to %s, session %d (%s, %s)",
            event.broker,
            event.session,
            "MQTT 5" if event.is_mqtt5 else "MQTT 3.1.1",
            "kept" if event.is_session_present else "new",
        )
        self._session = event.session
        self._parts.health.write(connected=True)
        memory = self._parts.sensors.process_memory()
        self._parts.record.mark("memory", moment="connected", rss_kib=memory.rss_kib, peak_kib=memory.peak_kib)
        self._publish_status()
        self._step(e.LinkUp(self._now_ms()))

    def _arrived(self, message: mqtt.Arrived) -> None:
        try:
            incoming = self._inbox.read(message)
        except RemoteProtocolError as error:
            reason = "unknown" if error.reason is None else error.reason.name.lower()
            kind, text = f"message.refused.{reason}", f"on {message.topic}: {error}"
            self._actor.reports.add(kind, text, now_ms=self._now_ms(), level=logging.INFO)
            return
        if incoming is not None:
            self._use(incoming)

    def _use(self, incoming: Incoming) -> None:
        now_ms, content = self._now_ms(), incoming.content
        match content:
            case Receipt():
                self._actor.receipt_envelope = incoming.envelope
                self._step(e.ReceiptArrived(now_ms, content))
            case Resume():
                self._step(e.ResumeArrived(now_ms, content))
            case Outcome():
                self._step(e.OutcomeArrived(now_ms, content))
            case Announcement():
                self._announcements[content.miner_id] = content  # at most one per miner of the genesis
                self._actor.announced_urls = tuple(url for item in self._announcements.values() for url in item.urls)
                self._step(e.ModelAnnounced(now_ms, self._parts.clock.time_s(), content))
            case Chunk():
                self._downloads.offer_chunk(content)

    def _status(self, session: int, *, online: bool) -> mqtt.Message:
        status = Status(
            sender=self._config.device_id,
            session=session,
            online=online,
            installed_version=self._installed_version,
            note=f"client {__version__}",
        )
        return mqtt.Message(
            topics.status(self._config.task, self._shard, self._config.device_id),
            self._sign(to_bytes(status), Domain.STATUS),
            retain=True,
        )

    def _publish_status(self) -> None:
        if self._session:
            try:
                self._link.publish(self._status(self._session, online=True))
            except TransportError as error:
                log.info("status waits for the next session: %s", error)

    def _ask_chunks(self, digest: Digest, ranges: Ranges) -> None:
        """Ask the miners for chunks of a blob; called on the work thread."""
        fetch = Fetch(device_id=self._config.device_id, blob_digest=digest, ranges=ranges)
        topic = topics.fetch(self._config.task, self._shard, self._config.device_id)
        self._link.publish(mqtt.Message(topic, self._sign(to_bytes(fetch), Domain.FETCH)))

    def _sign(self, payload: bytes, domain: Domain) -> bytes:
        return cose.sign(
            payload,
            signer=self._parts.signer,
            domain=domain,
            chain_id=self._parts.genesis.chain_id,
            sender=self._config.device_id,
        )

    # --- housekeeping ---

    def _keep_house(self, now_ms: int) -> None:
        job = self._state.job
        is_training = job is not None and job.stage is Stage.TRAINING
        judgement = judge(self._judgement, self._parts.sensors.readings(), self._config.limits, is_training=is_training)
        if judgement.mode is not self._judgement.mode:
            log.info("governor: %s %s", judgement.mode.value, judgement.why)
            self._step(e.ModeChanged(now_ms, judgement.mode))
        self._judgement = judgement
        for event in self._actor.settle_waiting():
            self._step(event)
        if now_ms >= self._offer_due_ms:
            self._offer_due_ms = now_ms + round(OFFER_AGAIN_S * MS_PER_S)
            for announcement in self._announcements.values():
                self._step(e.ModelAnnounced(now_ms, self._parts.clock.time_s(), announcement))
        if now_ms >= self._renewal_due_ms:
            self._renewal_due_ms = now_ms + round(RENEWAL_S * MS_PER_S)
            self._worker.offer(self._tasks.bound(self._renew_certificate))

    def _renew_certificate(self) -> None:
        """Renew at two thirds of the certificate's life; on the work thread."""
        config = self._config
        if config.enrolment_url is None:
            return
        try:
            life = certificate_life(config.cert_file)
            if life is None or not is_renewal_due(life, now_s=self._parts.clock.time_s()):
                return
            renew(
                config.enrolment_url,
                places(config),
                device_id=config.device_id,
                chain_id=self._parts.genesis.chain_id,
                genesis_digest=config.genesis_digest,
            )
        except EdgeFLError as error:
            log.warning("certificate not renewed, next try in an hour: %s", error)

    # --- the end ---

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        log.info("signal %d: stopping", number)
        self._parts.stopping.set()
        self.stop()

    def _stop(self) -> None:
        """End everything in order; also after an error."""
        self._watchdog.stopping()
        self._parts.stopping.set()
        self._parts.trainers.gate.set()
        if not self._worker.stop(timeout_s=STOP_TIMEOUT_S):
            log.warning("the running task did not end in %g s", STOP_TIMEOUT_S)
        self._say_goodbye()
        self._link.stop()
        try:
            self._parts.outbox.close()
        except StoreError as error:
            log.warning("outbox: %s", error)
        self._parts.record.close()

    def _say_goodbye(self) -> None:
        """Publish the death of the session ourselves: after a clean disconnect the broker does not send the will."""
        try:
            token = self._link.publish(self._status(self._session, online=False))
        except TransportError:
            return
        deadline_ms = self._now_ms() + round(GOODBYE_S * MS_PER_S)
        while (left_ms := deadline_ms - self._now_ms()) > 0:
            item = self._mailbox.get(left_ms / MS_PER_S)
            if isinstance(item, mqtt.Published) and item.token == token:
                return

    def _now_ms(self) -> int:
        return self._parts.clock.monotonic_ns() // NS_PER_MS
