"""The first boot: a board that holds a claim asks until it is a member, without anybody beside it.

Whatever stands in the way - a clock in the past, no network, a registrar that refuses - may pass: the board waits,
twice as long each time, says why in its log and in ``enrolment.json``, and tells the registrar once it gets in.
The claim file is read again for every try, so that a new claim can be put in its place. Repeating is safe at any point:
the key is made once, and one claim with one key is one membership.
"""

from __future__ import annotations

import json
import logging
import secrets
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from edge_sdk.adapters.durable_files import PRIVATE_MODE, make_private_directory, read_file, write_file
from edge_sdk.adapters.enrolment import (
    ClockBehindError,
    Membership,
    Places,
    RegistrarRefusalError,
    Wait,
    certificate_life,
    enrol,
)
from edge_sdk.adapters.watchdog import Watchdog
from edge_sdk.device.config import DeviceConfig
from edge_sdk.errors import ConnectError, DecodeError, RemoteProtocolError, StoreError
from edge_sdk.ports import Clock
from edge_sdk.protocol.limits import ENVELOPE_BYTES_MAX
from edge_sdk.protocol.messages import Genesis
from edge_sdk.protocol.wire import from_bytes

log: Final = logging.getLogger(__name__)

CLOCK_BUILD_S: Final = 1_735_689_600
"""2025-01-01: this program is younger; a clock before it was never set."""
STATE_BYTES_MAX: Final = 4_096
NS_PER_S: Final = 10**9


@dataclass(slots=True)
class Patience:
    """Pauses between tries: doubling from ``first_s`` to ``longest_s``, each shortened by up to half by chance."""

    first_s: float
    longest_s: float
    tries: int = 0
    waited_ns: dict[Wait, int] = field(default_factory=dict)

    def next_s(self) -> float:
        """Length of the next pause."""
        pause_s = min(self.longest_s, self.first_s * (1 << min(self.tries, 32)))
        self.tries += 1
        return pause_s * (500 + secrets.randbelow(501)) / 1000

    @property
    def waited_s(self) -> dict[Wait, int]:
        """Whole seconds waited so far, by reason."""
        return {wait: spent // NS_PER_S for wait, spent in self.waited_ns.items()}


class FirstBoot:
    """Enrols a board, however long it takes."""

    def __init__(self, config: DeviceConfig, url: str, *, clock: Clock, watchdog: Watchdog) -> None:
        """Keep the parts; ``run`` does the work."""
        self._config = config
        self._url = url
        self._clock = clock
        self._watchdog = watchdog
        self._patience = Patience(config.enrolment_retry_s, config.enrolment_retry_max_s)
        self._stopping = threading.Event()

    def run(self) -> Membership | None:
        """Try until it is done; None after SIGTERM or SIGINT.

        Raises:
            ConfigError: there is no claim.
            StoreError: the disk refuses: no retry mends that.
        """
        make_private_directory(self._config.work_dir)
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self._stopping.is_set():
                membership = self._try_once()
                if membership is not None:
                    waiting_file(self._config).unlink(missing_ok=True)
                    return membership
            return None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _try_once(self) -> Membership | None:
        config = self._config
        try:
            earliest_s = earliest_time_s(config)
            now_s = self._clock.time_s()
            if now_s < earliest_s:
                self._wait(Wait.CLOCK, f"{now_s} s since 1970 is before {earliest_s}: the clock was never set")
                return None
            return enrol(
                self._url,
                places(config),
                device_id=config.device_id,
                algorithm=config.algorithm,
                genesis_digest=config.genesis_digest,
                waited=self._patience.waited_s,
            )
        except ClockBehindError as error:
            self._wait(Wait.CLOCK, str(error))
        except ConnectError as error:
            self._wait(Wait.UNREACHABLE, str(error))
        except RegistrarRefusalError as error:
            self._wait(Wait.REFUSED, str(error), code=error.code)
        except RemoteProtocolError as error:
            self._wait(Wait.REFUSED, str(error), code="bad-answer")
        return None

    def _wait(self, wait: Wait, text: str, *, code: str = "") -> None:
        """Say why, and pause; the service manager hears all the while that the process lives."""
        pause_s = self._patience.next_s()
        reason = f"{wait.value}: {code}" if code else wait.value
        log.warning("not enrolled, next try in %.0f s (%s): %s", pause_s, reason, text)
        self._watchdog.ready(f"waits for its enrolment: {reason}")
        self._remember(reason, text)
        start_ns = self._clock.monotonic_ns()
        left_s = pause_s
        while left_s > 0 and not self._stopping.is_set():
            self._watchdog.alive()
            interval_s = self._watchdog.interval_s
            self._stopping.wait(left_s if interval_s is None else min(left_s, interval_s))
            left_s = pause_s - (self._clock.monotonic_ns() - start_ns) / NS_PER_S
        spent_ns = self._clock.monotonic_ns() - start_ns
        self._patience.waited_ns[wait] = self._patience.waited_ns.get(wait, 0) + spent_ns

    def _remember(self, reason: str, text: str) -> None:
        document = {"waits_for": reason, "text": text, "tries": self._patience.tries, "time_s": self._clock.time_s()}
        try:
            write_file(waiting_file(self._config), json.dumps(document).encode(), mode=PRIVATE_MODE)
        except StoreError as error:  # the log says the same; a full disk must not end the waiting
            log.warning("%s", error)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        log.info("signal %d: stopping", number)
        self._stopping.set()


def must_enrol(config: DeviceConfig) -> bool:
    """Whether a claim waits on this board; a certificate beside it may be the one that the claim has just brought."""
    return config.enrolment_url is not None and config.claim_file.exists()


def is_enrolled(config: DeviceConfig) -> bool:
    """Whether the board has a certificate already, and could work without the registrar."""
    return config.cert_file.exists()


def earliest_time_s(config: DeviceConfig) -> int:
    """A moment that has passed for certain: of this program, of the pinned authority, and of the genesis if it is here.

    Raises:
        StoreError, DecodeError: a file is not what it should be.
    """
    moments = [CLOCK_BUILD_S]
    life = certificate_life(config.enrolment_ca_file)
    if life is not None:
        moments.append(life[0])
    genesis = read_file(config.genesis_file, bytes_max=ENVELOPE_BYTES_MAX)
    if genesis is not None:
        moments.append(from_bytes(Genesis, genesis).created_s)
    return max(moments)


def places(config: DeviceConfig) -> Places:
    """Files of the device's identity."""
    return Places(
        key_file=config.key_file,
        cert_file=config.cert_file,
        genesis_file=config.genesis_file,
        claim_file=config.claim_file,
        ca_file=config.enrolment_ca_file,
    )


def waiting_file(config: DeviceConfig) -> Path:
    """What a waiting board says of itself."""
    return config.work_dir / "enrolment.json"


def read_waiting(config: DeviceConfig) -> dict[str, Any] | None:
    """Content of that file; None where the board does not wait."""
    data = read_file(waiting_file(config), bytes_max=STATE_BYTES_MAX)
    if data is None:
        return None
    try:
        document = json.loads(data)
    except ValueError as error:
        raise DecodeError(f"{waiting_file(config)}: not JSON") from error
    return document if isinstance(document, dict) else None
