"""What the registrar remembers, as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edge_sdk.errors import EdgeFLError
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.protocol.messages import PublicKey


class MemberStatus(StrEnum):
    """What the registrar wants a device to be."""

    ENROLLED = "enrolled"
    HELD = "held"  # by an alarm: revoked until an operator decides
    REVOKED = "revoked"


class Refusal(StrEnum):
    """Why the registrar refuses. A fixed list: shown, counted and tested."""

    UNKNOWN_CLAIM = "unknown-claim"
    EXPIRED_CLAIM = "expired-claim"
    OTHER_DEVICE = "other-device"
    REUSED_CLAIM = "reused-claim"
    CLONED_KEY = "cloned-key"
    NOT_ENROLLED = "not-enrolled"
    BAD_REQUEST = "bad-request"
    BAD_SIGNATURE = "bad-signature"


class EnrolmentRefusedError(EdgeFLError):
    """A request that the registrar refuses."""

    def __init__(self, message: str, *, refusal: Refusal) -> None:
        """Keep the countable reason."""
        super().__init__(message)
        self.refusal = refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One device as the registrar knows it."""

    device_id: DeviceId
    status: MemberStatus
    serial: int
    """Of the enrolment: rises with each key of the device."""
    key: PublicKey
    certificate_pem: bytes
    certificate_number: int
    expiry_s: int
    settled: bool
    """Whether the ledger shows this state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something that an operator should look at; open until the device is released, claimed anew or revoked."""

    time_s: int
    """First time."""
    last_s: int
    count: int
    cleared_s: int | None
    device_id: DeviceId
    kind: Refusal
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Requests of one device that were refused since it last got in."""

    device_id: DeviceId
    refusal: Refusal
    count: int
    last_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """When a device enrolled last, and what it says it waited for: ``clock=312,unreachable=40`` in seconds."""

    device_id: DeviceId
    time_s: int
    waited: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim without its token."""

    device_id: DeviceId
    expiry_s: int
    used_s: int | None
