import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.enrolment.claims import ClaimStore
from coordinator.enrolment.records import Member
from coordinator.enrolment.registrar import Registrar
from coordinator.serving.view import DeviceView
from edge_sdk.errors import ConnectError
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.protocol.messages import Domain, Enrol, Reason, Revoke
from tests.support.enrolment import NOW_S, Issuer, make_request
from tests.support.serving import CHAIN, Answer, FakeView, Log

D1 = DeviceId("d1")
ISSUER = Issuer()


class Ledger(Log):
    """A log that executes registry transactions by the rules of the chain, when it is told to."""

    def __init__(self, view: FakeView, signer: cose.SoftwareSigner) -> None:
        super().__init__()
        self._view = view
        self._key = signer.public_key

    def execute(self) -> list[str]:
        """Execute what waits; names of what had an effect."""
        effects = []
        waiting, self.transactions = self.transactions, []
        for transaction in waiting:
            envelope = cose.peek(transaction)
            payload = cose.verify(envelope, key=self._key, domain=envelope.domain, chain_id=CHAIN)
            known = self._view.devices.get(D1)
            if envelope.domain is Domain.ENROL:
                enrol = wire.from_bytes(Enrol, payload)
                if known is None or enrol.serial > known.serial:
                    self._view.devices[D1] = DeviceView(device_id=D1, key=enrol.key, serial=enrol.serial, revoked=False)
                    effects.append(f"enrol {enrol.serial}")
            else:
                revoke = wire.from_bytes(Revoke, payload)
                if known is not None and known.serial == revoke.serial and not known.revoked:
                    self._view.devices[D1] = DeviceView(device_id=D1, key=known.key, serial=known.serial, revoked=True)
                    effects.append(f"revoke {revoke.serial}")
        return effects


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ClaimStore]:
    store = ClaimStore.open(tmp_path / "claims.sqlite3")
    yield store
    store.close()


@pytest.fixture
def view(tmp_path: Path) -> FakeView:
    return FakeView(tmp_path)


@pytest.fixture
def signer() -> cose.SoftwareSigner:
    return cose.SoftwareSigner(Ed25519PrivateKey.generate())


@pytest.fixture
def ledger(view: FakeView, signer: cose.SoftwareSigner) -> Ledger:
    return Ledger(view, signer)


@pytest.fixture
def registrar(store: ClaimStore, view: FakeView, signer: cose.SoftwareSigner, ledger: Ledger) -> Registrar:
    return Registrar(store, signer=signer, chain_id=CHAIN, lookup=view.device, submit=ledger)


def admit(store: ClaimStore) -> Member:
    token = store.issue_claim(D1, now_s=NOW_S, ttl_s=60)
    return store.redeem(token, make_request(), issue=ISSUER, now_s=NOW_S)


def reconcile(registrar: Registrar) -> int:
    return asyncio.run(registrar.reconcile())


def test_enrolment_reaches_the_ledger_and_settles(registrar: Registrar, store: ClaimStore, ledger: Ledger) -> None:
    admit(store)
    assert reconcile(registrar) == 1
    assert ledger.execute() == ["enrol 1"]
    assert reconcile(registrar) == 0
    assert store.unsettled() == []
    assert ledger.transactions == []


def test_lost_transaction_is_submitted_again(registrar: Registrar, store: ClaimStore, ledger: Ledger) -> None:
    admit(store)
    reconcile(registrar)
    ledger.transactions.clear()
    reconcile(registrar)
    assert ledger.execute() == ["enrol 1"]


def test_log_out_of_reach_loses_nothing(registrar: Registrar, store: ClaimStore, ledger: Ledger) -> None:
    admit(store)
    ledger.answer = ConnectError("down")
    with pytest.raises(ConnectError):
        reconcile(registrar)
    ledger.answer = Answer(Reason.NONE)
    reconcile(registrar)
    assert ledger.execute() == ["enrol 1"]


def test_revocation_reaches_the_ledger(registrar: Registrar, store: ClaimStore, ledger: Ledger) -> None:
    admit(store)
    reconcile(registrar)
    ledger.execute()
    reconcile(registrar)
    store.revoke(D1, now_s=NOW_S)
    assert reconcile(registrar) == 1
    assert ledger.execute() == ["revoke 1"]
    assert reconcile(registrar) == 0


def test_late_enrolment_of_a_revoked_device_is_caught(registrar: Registrar, store: ClaimStore, ledger: Ledger) -> None:
    admit(store)
    reconcile(registrar)  # the enrolment is under way
    store.revoke(D1, now_s=NOW_S)
    under_way = list(ledger.transactions)
    ledger.transactions.clear()
    reconcile(registrar)
    assert ledger.transactions == [], "nothing enrols a device that was withdrawn"
    ledger.transactions = under_way
    assert ledger.execute() == ["enrol 1"]
    reconcile(registrar)
    assert ledger.execute() == ["revoke 1"]
    assert reconcile(registrar) == 0


def test_new_key_of_a_revoked_device_does_not_hide_the_old_serial(
    registrar: Registrar, store: ClaimStore, ledger: Ledger
) -> None:
    member = admit(store)
    reconcile(registrar)
    ledger.execute()
    store.renew(make_request(), current=member.key, issue=ISSUER)
    store.revoke(D1, now_s=NOW_S)  # serial 2 never reached the ledger
    reconcile(registrar)
    assert ledger.execute() == ["revoke 1"]


def test_run_goes_on_after_failures(registrar: Registrar, store: ClaimStore, ledger: Ledger) -> None:
    admit(store)
    ledger.answer = ConnectError("down")

    async def scenario() -> None:
        task = asyncio.create_task(registrar.run())
        await asyncio.sleep(0.05)
        ledger.answer = Answer(Reason.NONE)
        registrar.wake()
        await asyncio.sleep(0.05)
        ledger.execute()
        registrar.wake()
        await asyncio.sleep(0.05)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert store.unsettled() == []
