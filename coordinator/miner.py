"""The miner: one process that takes updates in, scores and merges them with the others, and serves what was agreed.

This module wires the parts and runs the loops; it decides nothing. Everything durable is in the ledger and the blob
store, so the process may die between any two lines: what comes up again is read from there, from the ordered log and
from the state that both give.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from coordinator.abci_handler import MinerHandler
from coordinator.application import Application, Finalized
from coordinator.chain_view import MinerView
from coordinator.config import MinerConfig
from coordinator.courier import Courier
from coordinator.deadlines import Deadlines
from coordinator.downlink import Downlink
from coordinator.duties import DutyRunner, DutyTools
from coordinator.enrolment.service import EnrolmentService
from coordinator.follower import Follower
from coordinator.identity import Identity, load_identity
from coordinator.intake import Intake
from coordinator.journal import Journal
from coordinator.ledger.blobs import BlobStore
from coordinator.ledger.state import State
from coordinator.ledger.store import LedgerStore
from coordinator.library import Library
from coordinator.ordering.abci_server import serve_abci
from coordinator.ordering.rpc import OrderedLogClient
from coordinator.peers import Peers
from coordinator.pool import Pool
from coordinator.pruning import Pruner
from coordinator.reception import IntakeLedger, Reception, ReceptionTools
from coordinator.rounds import open_phase
from coordinator.serving.http import create_app
from coordinator.serving.metrics import MinerMetrics
from coordinator.serving.service import HttpService
from coordinator.serving.software import Software
from coordinator.submission import Submitter
from coordinator.upload_form import blob_bytes_max, upload_check
from coordinator.worker import Worker
from edge_sdk.adapters.durable_files import make_private_directory
from edge_sdk.adapters.run_record import RunRecord
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.adapters.watchdog import Watchdog
from edge_sdk.errors import EdgeFLError, StoreError
from edge_sdk.protocol import topics
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.protocol.messages import Domain
from edge_sdk.training.codecs.reading import UpdateForm

if TYPE_CHECKING:
    from starlette.routing import Route

log = logging.getLogger(__name__)


class Miner:
    """All parts of one miner, from its settings. Create it inside the event loop."""

    def __init__(self, config: MinerConfig, identity: Identity) -> None:
        """Open ledger and blob store, load fold and model, bind the HTTP address.

        Raises:
            ConfigError, StoreError, TrainingError, LedgerError, ConnectError: a part cannot start; the text names it.
        """
        self._config = config
        self._identity = identity
        genesis, clock = identity.genesis, SystemClock()
        make_private_directory(config.work_dir)
        self._worker = Worker(identity.artifact, config.fold_file, backend=config.backend)
        self._store = LedgerStore.open(config.ledger_file, genesis=genesis, miner_id=config.miner_id)
        blobs = BlobStore(config.blob_dir)
        self._application = Application(genesis, state=self._store.load_state())
        self._metrics = MinerMetrics()
        self._journal = Journal(RunRecord(config.run_record_file, clock=clock), self._metrics, clock)
        self._peers = Peers(config.peers)
        self._library = Library(genesis, blobs, self._store, self._peers)
        model = self._library.add_genesis_model(identity.genesis_model)
        blobs.put(identity.artifact.data)
        self._log = OrderedLogClient(config.rpc, miner_id=config.miner_id)
        self._submitter = Submitter(self._log.submit, lambda: self._application.state)
        self._handler = MinerHandler(self._application, self._store, self._metrics, on_commit=self._on_commit)
        self._view = MinerView(
            self._application,
            self._store,
            blobs,
            signer=identity.signer,
            public_url=config.public_url,
            problem=self._problem,
        )
        self._intake = self._make_intake(first_session=clock.time_s())
        self._courier = Courier(
            genesis=genesis, miner_id=config.miner_id, signer=identity.signer, publish=self._intake.publish
        )
        intake_ledger = IntakeLedger(self._application, self._store)
        form = UpdateForm.of_task(genesis.params)
        pool = Pool(
            ledger=intake_ledger, check_blob=upload_check(model, form), blob_bytes_max=blob_bytes_max(model, form)
        )
        downlink = Downlink(
            genesis,
            config.miner_id,
            state=lambda: self._application.state,
            public_blob=self._library.public,
            send=self._courier.chunks,
        )
        reception_tools = ReceptionTools(
            application=self._application,
            store=self._store,
            blobs=blobs,
            downlink=downlink,
            courier=self._courier,
            submitter=self._submitter,
            journal=self._journal,
            clock=clock,
            behaviour=config.behaviour,
            on_status=self._on_device_status,
        )
        self._reception = Reception(reception_tools, pool, intake_ledger)
        self._duties = DutyRunner(self._duty_tools(), lambda: self._application.state)
        self._clock = clock
        self._deadlines = Deadlines(config.miner_id, genesis.params)
        self._height_committed = asyncio.Event()
        self._follower = Follower(
            state=lambda: self._application.state,
            view=self._view,
            library=self._library,
            courier=self._courier,
            reception=self._reception,
            journal=self._journal,
            pruner=Pruner(self._store, blobs, blocks_kept=config.blob_retention_blocks),
            is_silent=config.behaviour.is_silent,
        )
        self._enrolment = self._make_enrolment(clock)
        self._http = HttpService(
            create_app(
                self._view,
                self._log.submit,
                self._metrics,
                further=self._further_routes(),
            ),
            host=config.http_host,
            port=config.http_port,
        )

    def _further_routes(self) -> list[Route]:
        """Routes of the registrar, and of the software repository that lies beside the models."""
        routes = [] if self._enrolment is None else self._enrolment.routes
        if self._config.software_dir is not None:
            routes = [*routes, *Software(self._config.software_dir, count=self._metrics.count_blob_bytes).routes]
        return routes

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then close everything in order.

        Raises:
            EdgeFLError: the disk or the ledger fails; the process must not go on.
        """
        is_silent = self._config.behaviour.is_silent
        watchdog = Watchdog()
        try:
            async with self._services(), asyncio.TaskGroup() as tasks:
                loops = [serve_abci(self._handler, self._config.abci_socket), self._follower.run()]
                loops.append(self._keep_watch(watchdog))
                if not is_silent:
                    self._reception.resume_promises()
                    loops += [self._submitter.run(), self._duties.run(), self._watch_deadlines()]
                    loops.append(self._reception.run(self._intake.messages()))
                running = [tasks.create_task(loop) for loop in loops]
                self._intake.start()
                watchdog.ready(f"miner {self._config.miner_id}")
                await stop.wait()
                watchdog.stopping()
                await self._intake.stop(self._courier.status(self._intake.session, version=0, is_online=False))
                for task in running:
                    task.cancel()
        finally:
            self._reception.close()
            self._worker.close()
            self._journal.close()
            self._close_store()

    def _close_store(self) -> None:
        """Close the ledger; what its write-ahead log still holds is read at the next start."""
        try:
            self._store.close()
        except StoreError as error:  # must not hide why the miner ends
            log.warning("%s", error)

    @contextlib.asynccontextmanager
    async def _services(self) -> AsyncIterator[None]:
        """HTTP, enrolment and the clients, for as long as the miner runs."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._peers.close)
            stack.push_async_callback(self._log.aclose)
            await self._http.start()
            stack.push_async_callback(self._http.stop)
            if self._enrolment is not None:
                await self._enrolment.start()
                stack.push_async_callback(self._enrolment.stop)
            yield

    def _on_commit(self, finalized: Finalized) -> None:
        """Wake everybody who looks at committed state."""
        self._follower.observe(finalized)
        self._submitter.observe(finalized.state)
        self._duties.wake()
        self._height_committed.set()

    def _on_device_status(self, device_id: DeviceId, envelope: bytes) -> None:
        if self._enrolment is not None:
            self._enrolment.observe_status(device_id, envelope)

    async def _watch_deadlines(self) -> None:
        """Tick a phase when this miner's patience with it ends."""
        loop = asyncio.get_running_loop()
        while True:
            self._height_committed.clear()
            state = self._application.state
            rest_s = self._deadlines.remaining_s(state, loop.time(), time_s=self._clock.time_s())
            if rest_s == 0.0:
                self._tick(state)
                rest_s = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._height_committed.wait()

    def _tick(self, state: State) -> None:
        opened = open_phase(state)
        place = (opened.block_index, opened.phase, opened.attempt)

        def is_done(now: State) -> bool:
            phase = open_phase(now)
            is_open = (phase.block_index, phase.phase, phase.attempt) == place
            is_wanted = phase.tick_is_due or phase.certified_until_s is not None
            return not is_open or not is_wanted or self._config.miner_id in phase.ticked

        tick = self._courier.seal(self._deadlines.tick(state), Domain.TICK)
        self._submitter.want(("tick", place), tick, is_done)

    async def _keep_watch(self, watchdog: Watchdog) -> None:
        """Tell the service manager that the event loop is alive."""
        if watchdog.interval_s is None:
            return
        while True:
            watchdog.alive()
            await asyncio.sleep(watchdog.interval_s)

    def _on_connected(self, session: int) -> None:
        if not self._config.behaviour.is_silent:
            version = self._application.state.version
            self._intake.publish(self._courier.status(session, version=version, is_online=True))
            self._follower.announce()

    def _problem(self) -> str:
        """Why this miner cannot serve its task now; empty when it can."""
        if not self._handler.is_driven:
            return "no ordering engine has called yet"
        return "" if self._intake.session else "no connection to a broker"

    def _make_intake(self, *, first_session: int) -> Intake:
        genesis, config = self._identity.genesis, self._config
        # A session subscribes to something: one that hears no devices hears at least of itself.
        own_status = (topics.miner_status(genesis.task, config.miner_id),)
        return Intake(
            config.brokers,
            client_id=f"miner-{config.miner_id}",
            subscriptions=own_status if config.behaviour.is_silent else topics.miner_filters(genesis.task),
            will_of=lambda session: self._courier.status(session, version=0, is_online=False),
            first_session=first_session,
            on_connected=self._on_connected,
        )

    def _make_enrolment(self, clock: SystemClock) -> EnrolmentService | None:
        settings = self._config.enrolment
        if settings is None:
            return None
        return EnrolmentService(
            settings,
            self._identity.genesis,
            lookup=self._view.device,
            equivocators=self._view.equivocators,
            submit=self._log.submit,
            time_s=clock.time_s,
            metrics=self._metrics,
        )

    def _duty_tools(self) -> DutyTools:
        return DutyTools(
            genesis=self._identity.genesis,
            miner_id=self._config.miner_id,
            store=self._store,
            library=self._library,
            worker=self._worker,
            submitter=self._submitter,
            journal=self._journal,
            seal=self._courier.seal,
            behaviour=self._config.behaviour,
        )


def run(config: MinerConfig) -> int:
    """Run a miner until SIGTERM or SIGINT; 0 after an ordered stop.

    Raises:
        EdgeFLError: it cannot start, or a part failed that it cannot do without.
    """
    asyncio.run(_run(config))
    return 0


async def _run(config: MinerConfig) -> None:
    stop = asyncio.Event()
    try:
        with _signals(stop):
            await Miner(config, load_identity(config)).run(stop)
    except BaseExceptionGroup as group:
        own = group.subgroup(EdgeFLError)
        error: BaseException = group if own is None else own
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
