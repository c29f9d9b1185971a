"""One pass of the updater: finish what was begun, look for a release, prepare it, try it, keep it or take it back.

Everything up to the trial happens in the free environment and in the state folder; it may be cut off anywhere, and the
next pass finds what is there already. From then on the journal says what holds, see ``journal``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
import sys
import time
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final

from edge_sdk.adapters import failpoints
from edge_sdk.adapters.durable_files import make_private_directory, read_file
from edge_sdk.adapters.health_file import read_health
from edge_sdk.adapters.http_files import HttpFiles
from edge_sdk.adapters.outbox import SCHEMA_VERSION
from edge_sdk.adapters.quiet import quiet_time
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.device.config import DeviceConfig
from edge_sdk.device.first_boot import CLOCK_BUILD_S, must_enrol
from edge_sdk.errors import ConfigError, StoreError, TransportError, UpgradeError, UpgradeRefusedError
from edge_sdk.upgrade.config import UpgradeConfig
from edge_sdk.upgrade.environments import COMMITTED, CURRENT, Environments
from edge_sdk.upgrade.journal import TRIALS_MAX, Journal, JournalFile, Phase
from edge_sdk.upgrade.metadata import BYTES_MAX, RoleName, Target
from edge_sdk.upgrade.mirror import Mirror
from edge_sdk.upgrade.offer import Board, Pass, consider
from edge_sdk.upgrade.release import BYTES_MAX as RELEASE_BYTES_MAX
from edge_sdk.upgrade.release import TARGET_NAME, Release, WheelSet, read_release
from edge_sdk.upgrade.self_test import SelfTest, rights_of
from edge_sdk.upgrade.service import Service
from edge_sdk.upgrade.trial import Seen, Trial, Verdict

log: Final = logging.getLogger(__name__)

LOOK_S: Final = 1.0
LOOK_AGAIN_S: Final = 600.0
"""After a longer wait for a job the release may have been withdrawn, or its signatures have ended."""
SPARE_BYTES: Final = 32 * 1024 * 1024
"""Left free beside downloads and environment: the device's state grows meanwhile."""
COMPILED_SHARE: Final = 1.5
"""Unpacked wheels with their compiled modules, of unpacked wheels alone."""


class Result(Enum):
    """How a pass ended."""

    NOTHING = "nothing"
    COMMITTED = "committed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """End of a pass."""

    result: Result
    text: str


STOPPED: Final = Outcome(Result.NOTHING, "the device is stopped; its software is not changed meanwhile")


@dataclass(frozen=True, slots=True)
class Offer:
    """A release for this board, and where its wheels come from."""

    mirror: Mirror
    info: Target
    release: Release
    wheels: WheelSet
    deadline_s: float
    """Monotonic; of all downloads of this pass."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A release whose environment is built."""

    release: Release
    slot: str


class Updater:
    """The updater of one board; one at a time, see ``cli_upgrade``."""

    def __init__(self, config: UpgradeConfig) -> None:
        """Open what is on the disk.

        Raises:
            ConfigError: a setting or device.toml is wrong.
            UpgradeError: the client is not installed in environments of this folder.
        """
        self._config = config
        self._device = DeviceConfig.load(config.device_config)
        self._environments = Environments(config.environments)
        self._service = Service(config)
        make_private_directory(config.state_dir)
        self._journal_file = JournalFile(config.state_dir / "journal.json")
        self._journal = self._journal_file.read()

    def run(self) -> Outcome:
        """Make one pass.

        Raises:
            EdgeFLError: it could not be made; what ran goes on running.
        """
        if self._journal.phase is not Phase.IDLE:
            log.info("an upgrade to release %d was cut off: %s", self._journal.release, self._journal.phase.value)
            return self._finish()
        self._environments.running()
        prepared = self._prepare()
        if isinstance(prepared, Pass):
            return Outcome(Result.NOTHING, prepared.why)
        return self._try(prepared)

    def before_device(self) -> Outcome:
        """Before the device starts with the board: let a release go that keeps the board from coming up.

        The timer comes minutes later, and a release on trial that takes the board down within these minutes would come
        back with every boot. Only the link is moved here; the next pass finishes.
        """
        journal = self._journal
        if journal.phase is Phase.TRIAL:
            journal = journal.count_boot()
            if journal.boots >= TRIALS_MAX:
                journal = journal.decide_rollback(f"the board went down {journal.boots} times on trial", is_final=True)
            self._journal = self._journal_file.write(journal)
        if journal.phase is not Phase.ROLLBACK:
            return Outcome(Result.NOTHING, "nothing to take back")
        self._environments.point(CURRENT, journal.former)
        return Outcome(Result.FAILED, f"release {journal.release} is taken back: {journal.reason}")

    def status(self) -> dict[str, Any]:
        """What the journal and the links say."""
        journal, health = self._journal, read_health(self._device.work_dir)
        return {
            "phase": journal.phase.value,
            "release": journal.release or journal.floor,
            "version": journal.version,
            "floor": journal.floor,
            "held": journal.held,
            "current": self._environments.target(CURRENT),
            "committed": self._environments.target(COMMITTED),
            "device": None
            if health is None
            else {"version": health.version, "prefix": str(health.prefix), "connected": health.connected},
        }

    # --- look and prepare ---

    def _look(self) -> Offer | Pass:
        """Find what this board is to run."""
        if must_enrol(self._device):
            return Pass("the device is not enrolled yet: a trial could not tell anything")
        if self._is_metered():
            return Pass("the link is metered")
        mirror = self._mirror()
        try:
            mirror.refresh()
        except TransportError as error:
            # A board without a network is nothing unusual; one that nobody answers for longer than metadata lives is.
            if not mirror.trusted.is_timestamp_in_force():
                raise
            return Pass(f"no server can be asked now: {error}")
        failpoints.hit("upgrade.after_metadata")
        deadline_s = time.monotonic() + self._config.download_s
        published = mirror.trusted.targets
        if published is None or TARGET_NAME not in published.targets:
            return Pass("nothing is published yet")
        info = mirror.trusted.target(TARGET_NAME)
        if info.length > RELEASE_BYTES_MAX:
            raise UpgradeRefusedError(f"{TARGET_NAME}: {info.length} bytes", reason="length")
        release = read_release(mirror.fetch(info, timeout_s=self._left_s(deadline_s)).read_bytes())
        found = consider(release, self._board(), floor=self._journal.floor, held=self._journal.held)
        return found if isinstance(found, Pass) else Offer(mirror, info, release, found, deadline_s)

    def _prepare(self) -> Prepared | Pass:
        """Find, download and build what this board is to run."""
        offer = self._look()
        if isinstance(offer, Pass):
            return offer
        mirror, release = offer.mirror, offer.release
        targets = [mirror.trusted.target(name) for name in offer.wheels.wheels]
        # Wheels stay for the next release: it brings a new client, and mostly the same dependencies.
        mirror.keep_only([offer.info, *targets])
        slot, marker = self._environments.free(), _marker(release, targets)
        if not self._environments.is_complete(slot, marker):
            self._environments.clear(slot)  # what it holds is of no use, and takes the room
            self._check_room(mirror.missing_bytes(targets), offer.wheels)
            wheels = self._download(mirror, targets, offer.deadline_s)
            if isinstance(wheels, Pass):
                return wheels
            self._build(slot, wheels, marker, release, bytes_max=offer.wheels.unpacked_bytes)
        failpoints.hit("upgrade.after_build")
        return Prepared(release, slot)

    def _changed_since(self, prepared: Prepared) -> str | None:
        """Why a release is not tried any more that was offered before a long wait; None where it still is."""
        offer = self._look()
        if isinstance(offer, Pass):
            return offer.why
        is_same = replace(offer.release, percent=prepared.release.percent) == prepared.release
        return None if is_same else f"{_named(offer.release)} is published by now, and has its turn at the next pass"

    def _build(self, slot: str, wheels: list[Path], marker: bytes, release: Release, *, bytes_max: int) -> None:
        """Fill an environment; wheels that cannot be unpacked count against their release, or each pass would try."""
        try:
            self._environments.build(slot, wheels, marker, bytes_max=bytes_max)
        except UpgradeRefusedError as error:
            journal = self._journal.failed(release.number, f"its wheels: {error}", is_final=False)
            self._journal = self._journal_file.write(journal)
            raise

    def _is_metered(self) -> bool:
        return self._device.metered_file is not None and self._device.metered_file.exists()

    def _mirror(self) -> Mirror:
        config = self._config
        anchor = read_file(config.root_file, bytes_max=BYTES_MAX[RoleName.ROOT])
        if anchor is None:
            raise ConfigError(f"{config.path}: [upgrade] root_file = {config.root_file}: expected a file")
        time_s = SystemClock().time_s()
        if time_s < CLOCK_BUILD_S:
            raise UpgradeRefusedError(f"clock: {time_s} s since 1970: it was never set", reason="clock")
        return Mirror(config.state_dir, anchor, HttpFiles(ca_file=config.ca_file), config.urls, time_s=time_s)

    def _board(self) -> Board:
        return Board(
            device_id=self._device.device_id,
            profile=self._device.board_profile,
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
            machine=platform.machine(),
            state_schema=SCHEMA_VERSION,
        )

    def _download(self, mirror: Mirror, targets: list[Target], deadline_s: float) -> list[Path] | Pass:
        """Bring every wheel under the name that it is unpacked from; smallest first, so that progress shows."""
        paths = []
        for target in sorted(targets, key=lambda item: item.length):
            if self._is_metered():
                return Pass("the link is metered")
            paths.append(mirror.fetch(target, timeout_s=self._left_s(deadline_s)))
            log.info("%s: %d bytes, verified", target.name, target.length)
        return paths

    def _left_s(self, deadline_s: float) -> float:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            text = f"download not complete after {self._config.download_s} s; the next call goes on"
            raise TransportError(text)
        return left_s

    def _check_room(self, missing_bytes: int, found: WheelSet) -> None:
        unpacked = round(found.unpacked_bytes * COMPILED_SHARE)
        needs = {self._config.state_dir: missing_bytes, self._config.environments: unpacked}
        if len({path.stat().st_dev for path in needs}) == 1:
            needs = {self._config.environments: missing_bytes + unpacked}
        for path, need in needs.items():
            free = shutil.disk_usage(path).free
            if free < need + SPARE_BYTES:
                raise StoreError(f"{path}: {free} bytes free, the upgrade needs {need + SPARE_BYTES}")

    # --- try ---

    def _try(self, prepared: Prepared) -> Outcome:
        """Wait for quiet, test, decide to try, switch, watch."""
        if self._is_stopped():
            return STOPPED
        health = read_health(self._device.work_dir)
        if health is not None and not health.connected:
            return Outcome(Result.NOTHING, "the device has no connection now: a trial could not tell anything")
        files = (self._config.device_config, self._config.path)
        test = SelfTest(files, rights_of(self._config.user), self._config.test_s)
        former, began_s = self._environments.running(), time.monotonic()
        with quiet_time(self._device.work_dir, wait_s=self._config.quiet_wait_s) as is_quiet:
            if not is_quiet:
                return Outcome(Result.NOTHING, f"a job still runs after {self._config.quiet_wait_s} s")
            if time.monotonic() - began_s > LOOK_AGAIN_S and (why := self._changed_since(prepared)) is not None:
                return Outcome(Result.NOTHING, why)
            # Counted before it runs: one that takes the updater or the power with it must not return every hour.
            self._journal_file.write(self._failed_test(prepared, "it was cut off"))
            reason = test.run(self._environments.path(prepared.slot), prepared.release)
            failpoints.hit("upgrade.after_self_test")
            if reason is not None:
                self._journal = self._journal_file.write(self._failed_test(prepared, reason))
                return Outcome(Result.FAILED, f"{_named(prepared.release)} failed its self-test: {reason}")
            if self._is_stopped():  # by somebody, in the hours of waiting: a trial would start it again
                self._journal_file.write(self._journal)
                return STOPPED
            failpoints.hit("upgrade.before_trial")
            self._journal = self._journal.begin_trial(
                prepared.release.number, prepared.release.version, slot=prepared.slot, former=former
            )
            self._start_trial()
        return self._watch()

    def _is_stopped(self) -> bool:
        return self._service.state() in {"inactive", "deactivating"}

    def _failed_test(self, prepared: Prepared, reason: str) -> Journal:
        return self._journal.failed(prepared.release.number, f"self-test: {reason}", is_final=False)

    def _switch(self, slot: str) -> None:
        """Let the service run from an environment, unless it does already."""
        health = read_health(self._device.work_dir)
        runs_it = health is not None and health.prefix == self._environments.path(slot)
        if self._environments.target(CURRENT) == slot and runs_it:
            return
        try:
            self._service.stop()
            failpoints.hit("upgrade.after_stop")
            self._environments.point(CURRENT, slot)
            failpoints.hit("upgrade.after_link")
        finally:
            # Also where the disk refuses the link: a board that runs the other software is better than one that rests.
            self._service.start()
        failpoints.hit("upgrade.after_start")

    # --- finish ---

    def _finish(self) -> Outcome:
        """Do what the journal says."""
        match self._journal.phase:
            case Phase.TRIAL:
                return self._resume_trial()
            case Phase.COMMIT:
                return self._commit()
            case Phase.ROLLBACK:
                return self._roll_back()
            case Phase.IDLE:
                raise UpgradeError("nothing to finish")

    def _resume_trial(self) -> Outcome:
        """Start a trial again that was cut off; a release that keeps cutting it off has failed."""
        if self._journal.trials >= TRIALS_MAX:
            reason = f"its trial was cut off {self._journal.trials} times"
            self._journal = self._journal_file.write(self._journal.decide_rollback(reason, is_final=True))
            return self._roll_back()
        if self._environments.target(CURRENT) == self._journal.slot:
            self._start_trial()
            return self._watch()
        # The power went before the link moved, and the old client runs: it is not stopped in a job either.
        with quiet_time(self._device.work_dir, wait_s=self._config.quiet_wait_s) as is_quiet:
            if not is_quiet:
                return Outcome(Result.NOTHING, f"a job still runs after {self._config.quiet_wait_s} s")
            self._start_trial()
        return self._watch()

    def _start_trial(self) -> None:
        """Count the start, durably, then make it."""
        self._journal = self._journal_file.write(self._journal.count_trial())
        failpoints.hit("upgrade.after_trial")
        self._switch(self._journal.slot)

    def _watch(self) -> Outcome:
        """Look at the new process until it is well, or is not."""
        now_s = time.monotonic()
        trial, verdict = Trial(now_s, self._config.healthy_s, self._config.limit_s), Verdict.OPEN
        prefix = self._environments.path(self._journal.slot)
        while verdict is Verdict.OPEN:
            time.sleep(LOOK_S)
            failpoints.hit("upgrade.mid_trial")
            health = read_health(self._device.work_dir)
            is_new = health is not None and health.prefix == prefix
            seen = Seen(
                state=self._service.state(),
                pid=health.pid if health is not None and is_new else None,
                sessions=health.sessions if health is not None and is_new else 0,
            )
            trial, verdict = trial.look(seen, time.monotonic())
        match verdict:
            case Verdict.GOOD:
                self._journal = self._journal_file.write(self._journal.decide_commit())
                failpoints.hit("upgrade.after_commit_decision")
                return self._commit()
            case Verdict.CRASHED:
                reason = f"it ended {trial.crashes} times by itself" if trial.crashes else "it did not come up"
            case _:
                reason = f"it did not connect within {self._config.limit_s} s"
        decided = self._journal.decide_rollback(reason, is_final=verdict is Verdict.CRASHED)
        try:
            self._journal = self._journal_file.write(decided)
        except StoreError:
            # A full disk must not keep running what failed. The journal still says trial: at worst there is another.
            self._switch(decided.former)
            raise
        failpoints.hit("upgrade.after_rollback_decision")
        return self._roll_back()

    def _commit(self) -> Outcome:
        """Let the updater itself run from the new environment from now on."""
        self._environments.point(COMMITTED, self._journal.slot)
        failpoints.hit("upgrade.after_commit_link")
        self._journal = self._journal_file.write(self._journal.settle())
        failpoints.hit("upgrade.after_commit")
        return Outcome(Result.COMMITTED, f"release {self._journal.floor} ({self._journal.version}) is committed")

    def _roll_back(self) -> Outcome:
        """Return to the former environment; a job of the failed release is not waited for, its checkpoint holds."""
        release, reason = self._journal.release, self._journal.reason
        self._switch(self._journal.former)
        self._journal = self._journal_file.write(self._journal.settle())
        failpoints.hit("upgrade.after_rollback")
        return Outcome(Result.FAILED, f"release {release} is rolled back: {reason}")


def _marker(release: Release, targets: list[Target]) -> bytes:
    """Names an environment's content: wheels and their digests, not the percentage of the fleet."""
    wheels = {target.name: target.sha256.hex() for target in targets}
    content = json.dumps({"version": release.version, "wheels": wheels}, sort_keys=True)
    return json.dumps(
        {"version": release.version, "content": hashlib.sha256(content.encode()).hexdigest()}, sort_keys=True
    ).encode()


def _named(release: Release) -> str:
    return f"release {release.number} ({release.version})"
