"""``flchain device doctor``: look at what a device needs, say what is wrong and how to mend it. Changes nothing."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from edge_sdk.adapters import mqtt
from edge_sdk.adapters.board_facts import BoardFacts
from edge_sdk.adapters.durable_files import read_file
from edge_sdk.adapters.enrolment import certificate_life, is_renewal_due
from edge_sdk.adapters.http_blobs import HttpBlobs
from edge_sdk.adapters.keys import load_signer
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.device.board_checks import examine_board
from edge_sdk.device.config import DeviceConfig
from edge_sdk.device.findings import Finding, Level
from edge_sdk.device.first_boot import CLOCK_BUILD_S, read_waiting
from edge_sdk.device.inbox import Inbox
from edge_sdk.device.parts import load_genesis
from edge_sdk.device.status import open_state
from edge_sdk.errors import ConfigError, DecodeError, EdgeFLError, InvalidCertificateError
from edge_sdk.participant.models import check_offer
from edge_sdk.participant.state import Rules
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX
from edge_sdk.protocol.messages import Announcement, Genesis

log: Final = logging.getLogger(__name__)

DISK_FREE_BYTES_MIN: Final = 256 * 1024 * 1024
BROKER_TIMEOUT_S: Final = 15.0
ARTIFACT_OF_MINER: Final = "artifact.flm from the operator of a miner"
MEND_ENROLMENT: Final = {
    "clock": "timedatectl set-ntp true; a board without RTC needs fake-hwclock",
    "unreachable": "check the network, [enrolment] url, its port and the firewall; the board goes on by itself",
    "refused: cloned-key": "put a new claim in claim.txt and run flchain device enrol --new-key, on one board only",
    "refused": "ask the operator for a new claim and put it in claim.txt; the board goes on by itself",
}
MEND_CLOCK: Final = "timedatectl set-ntp true; a board without RTC needs fake-hwclock"


def examine(config: DeviceConfig, *, root: Path = Path("/")) -> Iterator[Finding]:
    """Yield one finding or more per check, as they are made; ``root`` holds the board's sys, proc, run and etc."""
    state, limit_c = config.work_dir.absolute(), config.limits.temperature_max_c
    yield from examine_board(BoardFacts(root=root), state=state, temperature_max_c=limit_c)
    genesis: Genesis | None = None
    try:
        genesis = load_genesis(config)
        yield Finding(Level.OK, "genesis", f"chain {genesis.chain_id}, {len(genesis.miners)} miners")
    except EdgeFLError as error:
        yield Finding(Level.FAIL, "genesis", str(error), "flchain device enrol, or copy genesis.cbor from the operator")
    for check in (
        _clock,
        _disk,
        _enrolment,
        _key,
        _certificate,
        _state,
        _backend,
        _artifact,
        _data,
        _brokers,
        _miners,
        _model,
    ):
        try:
            yield from check(config, genesis)
        except (EdgeFLError, OSError) as error:
            yield Finding(Level.FAIL, check.__name__.lstrip("_"), str(error))


def _clock(_: DeviceConfig, genesis: Genesis | None) -> Iterator[Finding]:
    now_s = SystemClock().time_s()
    earliest_s = CLOCK_BUILD_S if genesis is None else max(CLOCK_BUILD_S, genesis.created_s)
    if now_s < earliest_s:
        text = f"{now_s} s since 1970 is before {earliest_s}: certificates cannot be judged, new models are refused"
        yield Finding(Level.FAIL, "clock", text, MEND_CLOCK)
    else:
        yield Finding(Level.OK, "clock", f"{now_s} s since 1970")


def _disk(config: DeviceConfig, _: Genesis | None) -> Iterator[Finding]:
    if not config.work_dir.is_dir():
        text, mend = f"{config.work_dir} is not there", f"mkdir -m 700 -p {config.work_dir}"
        yield Finding(Level.WARN, "disk", text, mend)
        return
    free = shutil.disk_usage(config.work_dir).free
    if free < config.outbox_bytes:
        text = f"{free} bytes free, the outbox may take {config.outbox_bytes}"
        yield Finding(Level.FAIL, "disk", text, "free some space, or lower [limits] outbox_bytes")
    elif free < DISK_FREE_BYTES_MIN:
        yield Finding(Level.WARN, "disk", f"only {free} bytes free", "free some space")
    else:
        yield Finding(Level.OK, "disk", f"{free // 2**20} MiB free")


def _enrolment(config: DeviceConfig, _: Genesis | None) -> Iterator[Finding]:
    """Only of a board that waits for it: a member has a certificate to look at."""
    waiting = read_waiting(config)
    if waiting is not None:
        reason, tries = str(waiting.get("waits_for", "unknown")), waiting.get("tries", 0)
        cure = next((text for start, text in MEND_ENROLMENT.items() if reason.startswith(start)), "ask the operator")
        yield Finding(Level.FAIL, "enrolment", f"waits after {tries} tries: {reason}: {waiting.get('text', '')}", cure)


def _key(config: DeviceConfig, _: Genesis | None) -> Iterator[Finding]:
    if not config.key_file.exists():
        yield Finding(Level.FAIL, "key", f"{config.key_file} is not there", "flchain device enrol")
        return
    signer = load_signer(config.key_file)
    yield Finding(Level.OK, "key", f"{signer.algorithm.name.lower()}, readable by its owner only")


def _certificate(config: DeviceConfig, _: Genesis | None) -> Iterator[Finding]:
    life = certificate_life(config.cert_file)
    if life is None:
        needs_one = config.enrolment_url is not None or any(broker.cert_file for broker in config.brokers)
        level, mend = (Level.FAIL, "flchain device enrol") if needs_one else (Level.OK, "")
        yield Finding(level, "certificate", "none" if needs_one else "none needed by this configuration", mend)
        return
    now_s = SystemClock().time_s()
    if now_s < life[0]:
        yield Finding(Level.FAIL, "certificate", "not valid yet", "set the clock")
    elif now_s > life[1]:
        text = f"expired {(now_s - life[1]) // 3600} h ago"
        yield Finding(Level.FAIL, "certificate", text, "ask the registrar for a new claim, then flchain device enrol")
    elif is_renewal_due(life, now_s=now_s):
        text = f"two thirds of its life are over, {(life[1] - now_s) // 3600} h left"
        yield Finding(Level.WARN, "certificate", text, "a running device renews it; check [enrolment] url")
    else:
        yield Finding(Level.OK, "certificate", f"valid for {(life[1] - now_s) // 3600} h")


def _state(config: DeviceConfig, _: Genesis | None) -> Iterator[Finding]:
    path = config.outbox_file
    if not path.exists():
        yield Finding(Level.OK, "state", "new device")
        return
    try:
        with closing(open_state(path)) as db:
            answer = db.execute("PRAGMA quick_check(1)").fetchone()
            waiting = db.execute("SELECT count(*) FROM updates WHERE verdict IS NULL").fetchone()[0]
    except sqlite3.Error as error:
        answer, waiting = (str(error),), 0
    if answer != ("ok",):
        mend = "keep the file for analysis, move it away, and enrol this device anew"
        yield Finding(Level.FAIL, "state", f"{path}: {' '.join(str(answer[0]).split())}", mend)
    else:
        yield Finding(Level.OK, "state", f"{waiting} updates wait for their outcome")


def _backend(config: DeviceConfig, _: Genesis | None) -> Iterator[Finding]:
    from edge_sdk.training.backends import describe_backend

    try:
        text = describe_backend(config.backend)
    except ConfigError as error:
        yield Finding(Level.FAIL, "backend", str(error), "install it, or set [training] backend")
    else:
        yield Finding(Level.OK, "backend", text if text.startswith(config.backend) else f"{config.backend}: {text}")


def _artifact(config: DeviceConfig, genesis: Genesis | None) -> Iterator[Finding]:
    """Whether it is here and holds; if not, how it will come."""
    if genesis is None:
        return
    path = config.artifact_file
    data = read_file(path, bytes_max=ARTIFACT_BYTES_MAX)
    if data is not None:
        from edge_sdk.training.artifact import Artifact

        try:
            artifact = Artifact.load(data, digest=genesis.artifact_digest, author=genesis.artifact_author)
        except DecodeError as error:
            text = f"{path} is not the one that genesis names: {error}"
            yield Finding(Level.FAIL, "artifact", text, f"remove it, or copy {ARTIFACT_OF_MINER}")
        else:
            yield Finding(Level.OK, "artifact", f"{path}, signed by {artifact.authored_by}")
        return
    if genesis.artifact_bytes is not None:
        text = f"not here yet; {genesis.artifact_bytes} bytes come with the first model, over HTTP or MQTT"
        yield Finding(Level.OK, "artifact", text)
        return
    # A genesis of before: nobody has signed the length, so that it cannot be asked for in chunks.
    http = HttpBlobs(ca_file=config.miner_ca_file)
    if any(http.is_healthy(url) is None for url in config.miner_urls):
        yield Finding(Level.OK, "artifact", "not here yet; it comes over HTTP with the first model")
        return
    text = f"{path} is not there, and no configured miner answers over HTTP; it does not come in MQTT chunks"
    # Without configured miners the announced ones are asked; whether they answer shows only when the device runs.
    level = Level.FAIL if config.miner_urls else Level.WARN
    yield Finding(level, "artifact", text, f"copy {ARTIFACT_OF_MINER} to {path}")


def _data(config: DeviceConfig, genesis: Genesis | None) -> Iterator[Finding]:
    if config.is_replay and not config.data.exists():
        yield Finding(Level.WARN, "data", f"{config.data}: no rows yet", "feed it: flchain device feed < rows")
        return
    if not config.data.exists():
        yield Finding(Level.FAIL, "data", f"{config.data} is not there", "set [device] data to the examples")
        return
    if genesis is None or not config.artifact_file.exists():
        yield Finding(Level.OK, "data", f"{config.data}; its content is checked with the first model")
        return
    from edge_sdk.device.job import Trainers

    count = Trainers(config, genesis, stopping=threading.Event()).count_examples()
    yield Finding(Level.OK, "data", f"{count} examples")


def _brokers(config: DeviceConfig, _: Genesis | None) -> Iterator[Finding]:
    reached = False
    for broker in config.brokers:
        answer = _try_broker(config, broker)
        level = Level.OK if isinstance(answer, mqtt.Connected) else Level.WARN
        reached = reached or level is Level.OK
        if isinstance(answer, mqtt.Connected):
            text = f"{broker}: {'MQTT 5' if answer.is_mqtt5 else 'MQTT 3.1.1'}"
        else:
            text = f"{broker}: {answer}"
        yield Finding(level, "broker", text, "" if level is Level.OK else "check host, port, credentials and firewall")
    if not reached:
        yield Finding(Level.FAIL, "broker", "none can be reached", "the device trains and keeps its updates until then")


def _try_broker(config: DeviceConfig, broker: mqtt.BrokerSettings) -> mqtt.Connected | str:
    """Connect under another client id, so that a running device keeps its session."""
    done = threading.Event()
    events: list[mqtt.LinkEvent] = []

    def sink(event: mqtt.LinkEvent) -> None:
        events.append(event)
        if isinstance(event, mqtt.Connected | mqtt.Disconnected):
            done.set()

    topic = f"fl/v1/{config.task}/down/{config.device_id}/cmd"
    link = mqtt.MqttLink(
        client_id=f"{config.device_id}-doctor",
        brokers=[broker],
        subscriptions=[topic],
        will_of=lambda _: None,
        sink=sink,
    )
    link.start()
    done.wait(BROKER_TIMEOUT_S)
    link.stop()
    connected = next((event for event in events if isinstance(event, mqtt.Connected)), None)
    reasons = [event.reason for event in events if isinstance(event, mqtt.Disconnected)]
    return connected or (reasons[0] if reasons else "no answer")


def _miners(config: DeviceConfig, _: Genesis | None) -> Iterator[Finding]:
    http = HttpBlobs(ca_file=config.miner_ca_file)
    for url in config.miner_urls:
        wrong = http.is_healthy(url)
        if wrong is None:
            yield Finding(Level.OK, "miner", url)
        else:
            yield Finding(
                Level.WARN, "miner", f"{url}: {wrong}", "models come from the other miners, or in MQTT chunks"
            )
    if not config.miner_urls:
        yield Finding(Level.OK, "miner", "none configured; announced ones are used")


def _model(config: DeviceConfig, genesis: Genesis | None) -> Iterator[Finding]:
    """Judge the newest model by the rule of a running device: what a quorum signed also shows a clock that is wrong."""
    offers = [] if genesis is None else _offers(config, genesis)
    if genesis is None or not offers:
        return
    newest = max(offers, key=lambda offer: offer.version)
    what = f"version {newest.version} of {newest.miner_id}"
    try:
        check_offer(newest, Rules(genesis=genesis, device_id=config.device_id), time_s=SystemClock().time_s())
    except InvalidCertificateError as error:
        is_clock = error.reason in {"clock", "expired"}
        mend = MEND_CLOCK if is_clock else "ask the operator of that miner; the device keeps its model"
        yield Finding(Level.FAIL, "clock" if is_clock else "model", f"{what} is refused: {error}", mend)
    else:
        yield Finding(Level.OK, "model", f"{what} is certified")


def _offers(config: DeviceConfig, genesis: Genesis) -> list[Announcement]:
    """What the configured miners offer; a miner that gives nothing usable has its own finding."""
    http, inbox = HttpBlobs(ca_file=config.miner_ca_file), Inbox(genesis, config.device_id)
    offers = []
    for url in config.miner_urls:
        try:
            envelope = http.announcement(url)
            if envelope is not None:
                offers.append(inbox.read_announcement(envelope))
        except EdgeFLError as error:
            log.debug("no announcement: %s", error)
    return offers
