"""The enrolment desk: what is decided between a request and its answer. No HTTP here, no sockets.

A device proves three things: that it holds the claim (once), that it holds the key of its request, and - at a renewal -
that it holds the key the ledger knows. It gets a certificate for the broker; the registrar takes its key to the ledger.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.enrolment.access import BrokerAccess
from coordinator.enrolment.authority import Authority, DeviceRequest, Issued, read_request
from coordinator.enrolment.claims import TOKEN_CHARS_MAX, ClaimStore
from coordinator.enrolment.config import BrokerAddress
from coordinator.enrolment.records import EnrolmentRefusedError, Member, Refusal
from edge_sdk.adapters.enrolment import Wait
from edge_sdk.errors import DecodeError, SignatureError
from edge_sdk.protocol import cose
from edge_sdk.protocol.ids import ChainId, DeviceId
from edge_sdk.protocol.messages import Domain, PublicKey

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What every device is told together with its certificate."""

    chain_id: ChainId
    genesis: bytes
    miners: tuple[str, ...]
    brokers: tuple[BrokerAddress, ...]


class EnrolmentDesk:
    """Answers requests out of the claim store and the authority."""

    def __init__(
        self,
        authority: Authority,
        store: ClaimStore,
        access: BrokerAccess,
        fleet: Fleet,
        *,
        certificate_days: int,
        time_s: Callable[[], int],
    ) -> None:
        self.authority = authority
        self._store = store
        self._access = access
        self._fleet = fleet
        self._certificate_days = certificate_days
        self._time_s = time_s

    def enrol(self, token: str, body: bytes, *, waited: Mapping[Wait, int] | None = None) -> Member:
        """Exchange a claim and a request for a membership; ``waited`` is what the board says it waited for.

        Raises:
            EnrolmentRefusedError: with the reason. A claim that was used with another key also shuts the device out.
        """
        if not 0 < len(token) <= TOKEN_CHARS_MAX:
            raise EnrolmentRefusedError("no such claim", refusal=Refusal.UNKNOWN_CLAIM)
        request = _read(body)
        now_s = self._time_s()
        try:
            member = self._store.redeem(token, request, issue=lambda: self._issue(request), now_s=now_s, waited=waited)
        except EnrolmentRefusedError as refused:
            if refused.refusal is Refusal.REUSED_CLAIM:
                log.warning("claim used twice: device held", extra={"request_for": request.device_id})
                self._access.refresh(now_s=now_s)
            raise
        told = {wait.value: seconds for wait, seconds in (waited or {}).items()}
        log.info("device enrolled", extra={"device": member.device_id, "serial": member.serial, "waited_s": told})
        if member.serial > 1:  # an earlier key is shut out, or a held device let in again
            self._access.refresh(now_s=now_s)
        return member

    def renew(self, envelope: bytes) -> Member:
        """Exchange a request that the current key has signed for the next certificate.

        Raises:
            EnrolmentRefusedError: with the reason.
        """
        try:
            parts = cose.peek(envelope)
        except DecodeError as error:
            raise EnrolmentRefusedError(str(error), refusal=Refusal.BAD_REQUEST) from error
        request = _read(parts.payload)
        member = self._store.member(request.device_id)
        if member is None or parts.sender != request.device_id:
            raise EnrolmentRefusedError("not enrolled with this key", refusal=Refusal.NOT_ENROLLED)
        try:
            cose.verify(parts, key=member.key, domain=Domain.RENEW, chain_id=self._fleet.chain_id)
        except SignatureError as error:
            raise EnrolmentRefusedError(str(error), refusal=Refusal.BAD_SIGNATURE) from error
        renewed = self._store.renew(request, current=member.key, issue=lambda: self._issue(request))
        log.info("certificate renewed", extra={"device": renewed.device_id, "serial": renewed.serial})
        if renewed.serial != member.serial:
            self._access.refresh(now_s=self._time_s())
        return renewed

    def hold_clone(self, device_id: DeviceId, key: PublicKey, note: str) -> bool:
        """Shut out a device whose key two boards use; whether that changed anything.

        Raises:
            StoreError: the store or a list cannot be written.
        """
        now_s = self._time_s()
        if not self._store.hold_clone(device_id, key, note, now_s=now_s):
            return False
        log.warning("two boards with one key: device held", extra={"device": device_id, "evidence": note})
        self._access.refresh(now_s=now_s)
        return True

    def answer(self, member: Member, *, settled: bool) -> dict[str, Any]:
        """The document that a device gets; ``settled`` says whether the ledger shows its key already."""
        return {
            "device_id": member.device_id,
            "serial": member.serial,
            "certificate_pem": member.certificate_pem.decode("ascii"),
            "certificate_expiry_s": member.expiry_s,
            "ca_pem": self.authority.certificate_pem.decode("ascii"),
            "genesis_b64": base64.b64encode(self._fleet.genesis).decode("ascii"),
            "miners": list(self._fleet.miners),
            "broker": next((_broker_document(broker) for broker in self._fleet.brokers), None),
            "brokers": [_broker_document(broker) for broker in self._fleet.brokers],
            "settled": settled,
        }

    def _issue(self, request: DeviceRequest) -> Issued:
        return self.authority.issue_device(request, now_s=self._time_s(), days=self._certificate_days)


def _broker_document(broker: BrokerAddress) -> dict[str, Any]:
    return {"host": broker.host, "port": broker.port, "tls": broker.tls}


def _read(body: bytes) -> DeviceRequest:
    try:
        return read_request(body)
    except DecodeError as error:
        raise EnrolmentRefusedError(str(error), refusal=Refusal.BAD_REQUEST) from error
