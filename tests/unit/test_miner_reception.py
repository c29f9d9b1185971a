"""Uploads that end late: what a block has decided is no promise any more, whenever the last byte comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.behaviour import Behaviour
from coordinator.courier import Courier
from coordinator.downlink import Downlink
from coordinator.execution import TxResult
from coordinator.journal import Journal
from coordinator.ledger.blobs import BlobStore
from coordinator.ledger.rows import UploadRow
from coordinator.ledger.store import LedgerStore
from coordinator.pool import Pool
from coordinator.reception import IntakeLedger, Reception, ReceptionTools
from coordinator.rounds import MergeBlock, duties
from coordinator.serving.metrics import MinerMetrics
from coordinator.submission import Submitter
from coordinator.upload_form import blob_bytes_max, upload_check
from edge_sdk.adapters.mqtt import Arrived, Message
from edge_sdk.adapters.run_record import RunRecord
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.protocol import chunks, cose, topics, wire
from edge_sdk.protocol.digest import sha256, update_digest
from edge_sdk.protocol.ids import DeviceId, Digest, MinerId
from edge_sdk.protocol.messages import Outcome, Reason, Receipt, ReceiptStatus, UpdateManifest, Verdict
from edge_sdk.protocol.topics import Kind
from edge_sdk.training.codecs.reading import UpdateForm
from tests.support.chain import CREATED_S, PARAMS, TASK, Names, Runner, scores, signer, toy_payload

MINER = MinerId("miner-0")
DEVICE = DeviceId("dev-0")
SHARD = 0
PATIENCE_S = 10.0


class GatedBlobs(BlobStore):
    """A disk whose next write can be held up."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.is_reached = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def put(self, data: bytes) -> Digest:
        self.is_reached.set()
        assert self.may_go_on.wait(PATIENCE_S)
        return super().put(data)


class Site:
    """One miner's reception with a real ledger, fed by hand."""

    def __init__(self, root: Path) -> None:
        self.names = names = Names(params=replace(PARAMS, block_size=1))
        self.store = LedgerStore.open(root / "ledger.sqlite3", genesis=names.genesis, miner_id=MINER)
        self.runner = Runner(names, self.store)
        self.runner.ok(names.enrol(DEVICE))
        self.blobs = GatedBlobs(root / "blobs")
        self.said: list[Message] = []
        self.refusal = Reason.NONE
        clock = SystemClock()
        self._record = RunRecord(root / "run.jsonl", clock=clock)
        courier = Courier(genesis=names.genesis, miner_id=MINER, signer=signer(MINER), publish=self._say)
        app = self.runner.app
        self.submitter = Submitter(self._submit, lambda: app.state)
        tools = ReceptionTools(
            application=app,
            store=self.store,
            blobs=self.blobs,
            downlink=Downlink(
                names.genesis,
                MINER,
                state=lambda: app.state,
                public_blob=lambda _: None,
                send=courier.chunks,
            ),
            courier=courier,
            submitter=self.submitter,
            journal=Journal(self._record, MinerMetrics(), clock),
            clock=clock,
            behaviour=Behaviour.HONEST,
            on_status=lambda *_: None,
        )
        ledger = IntakeLedger(app, self.store)
        form = UpdateForm.of_task(names.genesis.params)
        pool = Pool(
            ledger=ledger, check_blob=upload_check(names.model, form), blob_bytes_max=blob_bytes_max(names.model, form)
        )
        self.reception = Reception(tools, pool, ledger)
        self.messages: asyncio.Queue[Arrived] = asyncio.Queue()

    def close(self) -> None:
        self.reception.close()
        self._record.close()
        self.store.close()

    def decide(self, envelope: bytes) -> None:
        """Let the other three miners take an update through a certified block."""
        others = self.names.miners[1:]
        manifest = manifest_of(envelope)
        if update_digest(envelope) not in self.runner.app.state.updates:
            self.runner.ok(envelope)
        self.runner.ok(*(self.names.receipt(miner, envelope, DEVICE, manifest.seq) for miner in others))
        round_ = self.runner.round()
        verdict = scores(500, 500)
        self.runner.ok(*(self.names.commit(miner, round_, verdict) for miner in self.names.miners))
        self.runner.ok(*(self.names.reveal(miner, round_, verdict) for miner in self.names.miners))
        (duty,) = duties(self.runner.app.state, MINER, self.names.genesis)
        assert isinstance(duty, MergeBlock)
        statement = duty.statement(sha256(b"merged"))
        self.runner.ok(*(self.names.vote(miner, statement) for miner in others))
        assert self.store.outcome(update_digest(envelope)) is not None

    def send(self, envelope: bytes) -> None:
        self.messages.put_nowait(Arrived(topics.update(TASK, SHARD, DEVICE), envelope, is_retained=False))

    def send_blob(self, envelope: bytes, blob: bytes) -> None:
        for chunk in chunks.split(blob, update_digest(envelope)):
            topic = topics.chunk(TASK, SHARD, DEVICE)
            self.messages.put_nowait(Arrived(topic, wire.to_bytes(chunk), is_retained=False))

    def heard(self, kind: Kind) -> list[bytes]:
        return [message.payload for message in self.said if topics.parse(message.topic).kind is kind]

    def receipts(self) -> list[Receipt]:
        return [wire.from_bytes(Receipt, cose.peek(payload).payload) for payload in self.heard(Kind.RECEIPT)]

    def outcomes(self) -> list[Outcome]:
        return [wire.from_bytes(Outcome, payload) for payload in self.heard(Kind.OUTCOME)]

    async def arrivals(self) -> AsyncIterator[Arrived]:
        while True:
            yield await self.messages.get()

    def _say(self, message: Message) -> bool:
        self.said.append(message)
        return True

    async def _submit(self, tx: bytes) -> TxResult:
        return TxResult(self.refusal)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def manifest_of(envelope: bytes) -> UpdateManifest:
    return wire.from_bytes(UpdateManifest, cose.peek(envelope).payload)


def blob_of(seq: int) -> bytes:
    return wire.to_bytes(toy_payload(seq))


def row_of(envelope: bytes) -> UploadRow:
    manifest = manifest_of(envelope)
    return UploadRow(
        update_digest=update_digest(envelope),
        device_id=DEVICE,
        seq=manifest.seq,
        envelope=envelope,
        blob_digest=manifest.blob_digest,
        blob_bytes=manifest.blob_bytes,
        received_s=CREATED_S,
    )


@asynccontextmanager
async def working(loop: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(loop)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - looks from outside, as a device would
            await asyncio.sleep(0.005)


def test_an_upload_in_time_is_kept_until_its_block_is_certified(site: Site) -> None:
    envelope = site.names.update(DEVICE, 1)

    async def scenario() -> None:
        async with working(site.reception.run(site.arrivals())):
            site.send(envelope)
            site.send_blob(envelope, blob_of(1))
            await until(site.receipts)

    asyncio.run(scenario())
    assert [receipt.status for receipt in site.receipts()] == [ReceiptStatus.STORED]
    assert site.store.uploads() == (replace(row_of(envelope), received_s=site.store.uploads()[0].received_s),)
    site.decide(envelope)
    assert site.store.uploads() == ()


def test_the_last_chunk_comes_after_the_certificate(site: Site) -> None:
    envelope = site.names.update(DEVICE, 1)

    async def scenario() -> None:
        async with working(site.reception.run(site.arrivals())):
            site.send(envelope)
            await until(site.messages.empty)
            site.decide(envelope)
            site.send_blob(envelope, blob_of(1))
            await until(site.outcomes)

    asyncio.run(scenario())
    check_settled(site, envelope)
    assert not list(site.blobs.files())


def test_the_certificate_comes_while_the_disk_writes(site: Site) -> None:
    envelope = site.names.update(DEVICE, 1)
    site.blobs.may_go_on.clear()

    async def scenario() -> None:
        async with working(site.reception.run(site.arrivals())):
            site.send(envelope)
            site.send_blob(envelope, blob_of(1))
            await until(site.blobs.is_reached.is_set)
            site.decide(envelope)
            site.blobs.may_go_on.set()
            await until(site.outcomes)

    asyncio.run(scenario())
    check_settled(site, envelope)


def test_a_row_that_an_earlier_process_left_behind_goes_at_the_start(site: Site) -> None:
    decided, open_ = site.names.update(DEVICE, 1), site.names.update(DEVICE, 2)
    site.decide(decided)
    for envelope in (decided, open_):
        site.store.put_upload(row_of(envelope))
    site.reception.resume_promises()
    assert [row.seq for row in site.store.uploads()] == [2]
    assert ("update", update_digest(open_)) in site.submitter
    assert ("update", update_digest(decided)) not in site.submitter
    assert ("receipt", update_digest(decided)) not in site.submitter


@pytest.mark.parametrize("is_decided", [True, False], ids=["decided meanwhile", "never on the ledger"])
def test_an_update_that_the_ledger_takes_no_more(site: Site, *, is_decided: bool) -> None:
    """Refused for good: a merged update is answered with its end, not with a refusal that contradicts it."""
    envelope = site.names.update(DEVICE, 1)
    site.refusal = Reason.SEQ_WINDOW
    site.store.put_upload(row_of(envelope))

    async def scenario() -> None:
        site.reception.resume_promises()
        if is_decided:
            site.decide(envelope)
            site.store.put_upload(row_of(envelope))
        async with working(site.submitter.run()):
            await until(lambda: site.said)

    asyncio.run(scenario())
    assert site.store.uploads() == ()
    if is_decided:
        check_settled(site, envelope)
    else:
        assert [(one.status, one.reason) for one in site.receipts()] == [(ReceiptStatus.REFUSED, Reason.SEQ_WINDOW)]


def check_settled(site: Site, envelope: bytes) -> None:
    """No promise is left, and the device has heard the end and nothing else."""
    assert site.store.uploads() == ()
    assert site.receipts() == []
    (outcome,) = site.outcomes()
    assert (outcome.entry.update_digest, outcome.entry.verdict) == (update_digest(envelope), Verdict.MERGED)
    assert ("update", update_digest(envelope)) not in site.submitter
