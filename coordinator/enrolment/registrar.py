"""The registrar: signs the ledger's registry, and keeps trying until the ledger shows what was decided.

Level-triggered: the claim store says what each device should be, the committed registry says what it is, and whatever
differs is submitted again. A crash between any two steps loses nothing and repeats nothing harmful: the ledger refuses
a serial that it has seen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from coordinator.enrolment.claims import ClaimStore
from coordinator.enrolment.records import Member, MemberStatus
from coordinator.serving.view import DeviceView, Submit
from edge_sdk.errors import RemoteProtocolError, StoreError, TransportError
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.ids import ChainId, DeviceId
from edge_sdk.protocol.messages import Domain, Enrol, PublicKey, Reason, Revoke

log = logging.getLogger(__name__)

RECONCILE_S: Final = 2.0
"""Between two looks at what the ledger does not show yet."""
SUBMISSIONS_PER_LOOK_MAX: Final = 64
"""A fleet that enrols at once is spread over several looks instead of flooding the mempool."""

Lookup = Callable[[DeviceId], DeviceView | None]


def enrol_transaction(
    device_id: DeviceId, key: PublicKey, *, serial: int, signer: cose.Signer, chain_id: ChainId
) -> bytes:
    """Sign that a device's updates are accepted under this key."""
    payload = wire.to_bytes(Enrol(device_id=device_id, key=key, serial=serial))
    return cose.sign(payload, signer=signer, domain=Domain.ENROL, chain_id=chain_id, sender=cose.SENDER_REGISTRAR)


def revoke_transaction(device_id: DeviceId, *, serial: int, signer: cose.Signer, chain_id: ChainId) -> bytes:
    """Sign that a device's updates are no longer accepted."""
    payload = wire.to_bytes(Revoke(device_id=device_id, serial=serial))
    return cose.sign(payload, signer=signer, domain=Domain.REVOKE, chain_id=chain_id, sender=cose.SENDER_REGISTRAR)


class Registrar:
    """Brings the ledger's registry in line with the claim store."""

    def __init__(
        self, store: ClaimStore, *, signer: cose.Signer, chain_id: ChainId, lookup: Lookup, submit: Submit
    ) -> None:
        """Take the parts that it works between.

        Args:
            store: What should be.
            signer: Holder of the key that genesis names as the registrar's.
            chain_id: Chain of the registry.
            lookup: What is, in the committed state.
            submit: Takes a transaction to the ordered log.
        """
        self._store = store
        self._signer = signer
        self._chain_id = chain_id
        self._lookup = lookup
        self._submit = submit
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look at once: the store has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        while True:
            try:
                await self.reconcile()
            except (StoreError, TransportError, RemoteProtocolError) as error:
                log.warning("registry not settled, trying again", extra={"error": str(error)})
            self._wake.clear()
            try:
                async with asyncio.timeout(RECONCILE_S):
                    await self._wake.wait()
            except TimeoutError:
                continue  # time for another look

    async def reconcile(self) -> int:
        """Submit what the ledger does not show yet, once.

        Returns:
            Number of devices that are still to be settled.

        Raises:
            TransportError: the log cannot be reached now.
            RemoteProtocolError: its answer is none.
            StoreError: the claim store cannot be read or written.
        """
        waiting = 0
        for member in self._store.unsettled():
            if self.is_settled(member):
                self._store.mark_settled(member)
                continue
            waiting += 1
            if waiting <= SUBMISSIONS_PER_LOOK_MAX:
                await self._propose(member)
        return waiting

    def is_settled(self, member: Member) -> bool:
        """Whether the committed registry shows this state of a device."""
        shown = self._lookup(member.device_id)
        if shown is None:
            return False
        if member.status is MemberStatus.ENROLLED:
            return (shown.serial, shown.key, shown.revoked) == (member.serial, member.key, False)
        return shown.revoked and shown.serial >= member.serial

    async def _propose(self, member: Member) -> None:
        """Submit the transaction that a device still needs."""
        transaction = self._needed(member)
        if transaction is None:
            return
        result = await self._submit(transaction)
        if result.code not in {Reason.NONE, Reason.DUPLICATE}:
            log.warning(
                "registry transaction refused",
                extra={"device": member.device_id, "reason": int(result.code), "info": result.info},
            )

    def _needed(self, member: Member) -> bytes | None:
        """The enrolment, or the revocation of whatever serial the ledger shows.

        A device that was withdrawn before its enrolment was ordered needs nothing, but stays under watch: the enrolment
        may still arrive.
        """
        if member.status is MemberStatus.ENROLLED:
            return enrol_transaction(
                member.device_id, member.key, serial=member.serial, signer=self._signer, chain_id=self._chain_id
            )
        shown = self._lookup(member.device_id)
        if shown is None or shown.revoked:
            return None
        return revoke_transaction(member.device_id, serial=shown.serial, signer=self._signer, chain_id=self._chain_id)
