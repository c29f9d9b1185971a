"""The registrar of a running miner: desk, registrar and TLS endpoint in one piece, from its settings."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from coordinator.enrolment import page
from coordinator.enrolment.access import BrokerAccess
from coordinator.enrolment.authority import Authority
from coordinator.enrolment.claims import ClaimStore
from coordinator.enrolment.config import EnrolmentConfig
from coordinator.enrolment.desk import EnrolmentDesk, Fleet
from coordinator.enrolment.records import MemberStatus
from coordinator.enrolment.registrar import Lookup, Registrar
from coordinator.enrolment.server import create_enrolment_app
from coordinator.enrolment.sessions import SessionWatch
from coordinator.serving.metrics import MinerMetrics
from coordinator.serving.service import HttpService
from coordinator.serving.view import Submit
from edge_sdk.adapters.keys import load_signer
from edge_sdk.errors import ConfigError, RemoteProtocolError, StoreError
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.protocol.limits import ENVELOPE_BYTES_MAX
from edge_sdk.protocol.messages import Domain, Genesis, PublicKey, Reason, Status

if TYPE_CHECKING:
    from starlette.routing import Route

log = logging.getLogger(__name__)

WATCH_S: Final = 2.0
"""Between two looks at the ledger's evidence; gauges follow as often."""
EQUIVOCATED: Final = "two different updates with one number"


def broker_access(config: EnrolmentConfig, genesis: Genesis, authority: Authority, store: ClaimStore) -> BrokerAccess:
    """The broker's lists as the settings name them."""
    return BrokerAccess(
        authority,
        store,
        task=genesis.task,
        miners=[miner.miner_id for miner in genesis.miners],
        crl_file=config.crl_file,
        acl_file=config.acl_file,
        broker_pid_file=config.broker_pid_file,
    )


class EnrolmentService:
    """Starts and stops with the miner that hosts it."""

    def __init__(
        self,
        config: EnrolmentConfig,
        genesis: Genesis,
        *,
        lookup: Lookup,
        submit: Submit,
        time_s: Callable[[], int],
        metrics: MinerMetrics,
        equivocators: Callable[[], Iterable[DeviceId]] = tuple,
    ) -> None:
        """Load keys and claims, and bind the endpoint.

        Args:
            config: The settings.
            genesis: Of the chain.
            lookup: A device in the committed registry.
            submit: Takes a transaction to the ordered log.
            time_s: Calendar time.
            metrics: Counted into.
            equivocators: Devices against which the ledger holds evidence under their present key.

        Raises:
            ConfigError: the registrar's key is not the one that genesis names.
            StoreError: a file cannot be read.
            ConnectError: the address cannot be bound.
        """
        signer = load_signer(config.registrar_key)
        if signer.public_key != genesis.registrar:
            raise ConfigError(f"{config.registrar_key}: not the key of the registrar that genesis names")
        authority = Authority.load(config.ca_cert, config.ca_key)
        self.store = ClaimStore.open(config.claims_db)
        self.registrar = Registrar(self.store, signer=signer, chain_id=genesis.chain_id, lookup=lookup, submit=submit)
        fleet = Fleet(
            chain_id=genesis.chain_id,
            genesis=wire.to_bytes(genesis),
            miners=config.device_miners,
            brokers=config.device_brokers,
        )
        self._genesis = genesis
        self._lookup = lookup
        self._equivocators = equivocators
        self._metrics = metrics
        self._sessions = SessionWatch()
        self._holds: set[asyncio.Task[None]] = set()
        self._notes: dict[DeviceId, str] = {}
        """What each enrolled device says of its software, of the devices that were heard since the start."""
        self.routes: list[Route] = page.routes(self.store, time_s=time_s, notes=self._notes)
        self._desk = EnrolmentDesk(
            authority,
            self.store,
            broker_access(config, genesis, authority, self.store),
            fleet,
            certificate_days=config.certificate_days,
            time_s=time_s,
        )
        self._http = HttpService(
            create_enrolment_app(self._desk, self.registrar, count=metrics.count_enrolment),
            host=config.host,
            port=config.port,
            certificate=config.cert_file,
            key=config.key_file,
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        """Port of the TLS endpoint."""
        return self._http.port

    async def start(self) -> None:
        """Answer devices and settle the registry from now on."""
        await self._http.start()
        self._tasks = [asyncio.create_task(self.registrar.run(), name="registrar")]
        self._tasks.append(asyncio.create_task(self._watch(), name="enrolment-watch"))

    async def stop(self) -> None:
        """Stop answering; what is unsettled is taken up at the next start."""
        await self._http.stop()
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*self._holds)
        self.store.close()

    def observe_status(self, device_id: DeviceId, envelope: bytes) -> None:
        """Take in a birth or death of a device, as the broker brought it; a copied card shows in their numbers."""
        known = self._lookup(device_id)
        if known is None or known.revoked or len(envelope) > ENVELOPE_BYTES_MAX:
            return
        try:
            parts = cose.peek(envelope)
            cose.verify(parts, key=known.key, domain=Domain.STATUS, chain_id=self._genesis.chain_id)
            status = wire.from_bytes(Status, parts.payload)
        except RemoteProtocolError as error:
            self._metrics.count_refused_message(error.reason or Reason.MALFORMED)
            return
        if parts.sender != device_id or status.sender != device_id:
            self._metrics.count_refused_message(Reason.WRONG_TOPIC)
            return
        self._notes[device_id] = status.note
        evidence = self._sessions.observe(device_id, known.key, status)
        if evidence is not None:
            task = asyncio.create_task(self._hold_clone(device_id, known.key, evidence))
            self._holds.add(task)
            task.add_done_callback(self._holds.discard)

    async def _watch(self) -> None:
        """Hold who is proven to sign twice, and show the numbers, until cancelled."""
        while True:
            for device_id in self._equivocators():
                known = self._lookup(device_id)
                if known is not None and not known.revoked:
                    await self._hold_clone(device_id, known.key, EQUIVOCATED)
            try:
                members = await asyncio.to_thread(self.store.members)
                alarms = await asyncio.to_thread(self.store.alarms)
            except StoreError as error:
                log.warning("registrar's store not read, trying again", extra={"error": str(error)})
            else:
                counts = Counter(member.status for member in members)
                devices = {status.value: counts[status] for status in MemberStatus}
                self._metrics.set_fleet(devices=devices, alarms=sum(alarm.cleared_s is None for alarm in alarms))
            await asyncio.sleep(WATCH_S)

    async def _hold_clone(self, device_id: DeviceId, key: PublicKey, evidence: str) -> None:
        try:
            if await asyncio.to_thread(self._desk.hold_clone, device_id, key, evidence):
                self.registrar.wake()
        except StoreError as error:
            log.warning("copied card not held yet", extra={"device": device_id, "error": str(error)})
