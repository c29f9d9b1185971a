"""Errors of both packages, one tree, drawn once.

EdgeFLError                       raised on purpose, safe to show
  ConfigError (ValueError)        wrong setting; at load, before any I/O
  LocalProtocolError              we tried to break the contract: our bug
  RemoteProtocolError             a peer did (.reason, .sender)
    DecodeError (ValueError)      bytes that are not a message
    SignatureError                a signature or proof that does not hold
    UnknownSenderError            nobody we know
  TransportError                  retry may help
    ConnectError
    PublishTimeoutError
  StoreError                      local state unreadable or unwritable
    CorruptStoreError             stops, never repairs silently
    NewerStateError               a newer version of this program wrote it
  UpgradeError                    an upgrade of the software did not take place; the old one keeps running
    UpgradeRefusedError           what the repository offers does not hold (.reason)
  TrainingError
    NonFiniteError
    QuantizationError
    MemoryExceededError           (.need, .have)
  AggregationError
    TooFewUpdatesError            (.need, .have)
  LedgerError
    InvalidBlockError             (.reason)
    InvalidCertificateError       (.reason)
    CorruptLedgerError            (.place, .height)

Who can act decides the type. A stale, duplicate or over-quota update is not an exception: it is the effect
``Refuse(reason)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_sdk.protocol.messages import Reason


class EdgeFLError(Exception):
    """Root of every error raised on purpose; its text is safe to show."""


class ConfigError(EdgeFLError, ValueError):
    """A setting is wrong. The text names file, key, what was found and what is expected."""


class LocalProtocolError(EdgeFLError):
    """We tried to break the contract: a bug of this program."""


class RemoteProtocolError(EdgeFLError):
    """A peer broke the contract."""

    def __init__(self, message: str, *, reason: Reason | None = None, sender: str | None = None) -> None:
        """Keep the countable reason and the sender, where it is known."""
        super().__init__(message)
        self.reason = reason
        self.sender = sender


class DecodeError(RemoteProtocolError, ValueError):
    """Bytes that are not a well-formed message."""


class SignatureError(RemoteProtocolError):
    """A signature or proof that does not hold."""


class UnknownSenderError(RemoteProtocolError):
    """The sender is not in the registry."""


class TransportError(EdgeFLError):
    """The network failed; a retry may help."""


class ConnectError(TransportError):
    """No connection could be made."""


class PublishTimeoutError(TransportError):
    """The broker did not acknowledge in time."""


class StoreError(EdgeFLError):
    """Local state cannot be read or written."""


class CorruptStoreError(StoreError):
    """Local state contradicts itself; the program stops rather than repair it silently."""


class NewerStateError(StoreError):
    """A newer version of this program wrote the state; nothing was changed, and that version can go on with it."""


class UpgradeError(EdgeFLError):
    """An upgrade of the software did not take place; the old one keeps running."""


class UpgradeRefusedError(UpgradeError):
    """What a software repository offers does not hold."""

    def __init__(self, message: str, *, reason: str) -> None:
        """Keep a short countable reason, for instance ``expired``."""
        super().__init__(message)
        self.reason = reason


class TrainingError(EdgeFLError):
    """Local training failed."""


class NonFiniteError(TrainingError):
    """A loss or parameter is not finite."""


class QuantizationError(TrainingError):
    """A quantization scheme that cannot work, or a value outside of its grid."""


class MemoryExceededError(TrainingError):
    """Training would need more memory than there is."""

    def __init__(self, message: str, *, need: int, have: int) -> None:
        """Keep both amounts, in bytes."""
        super().__init__(message)
        self.need = need
        self.have = have


class AggregationError(EdgeFLError):
    """Updates cannot be merged."""


class TooFewUpdatesError(AggregationError):
    """A robust rule needs more updates than there are."""

    def __init__(self, message: str, *, need: int, have: int) -> None:
        """Keep both counts."""
        super().__init__(message)
        self.need = need
        self.have = have


class LedgerError(EdgeFLError):
    """The ledger, or something that it certifies, does not hold."""


class InvalidBlockError(LedgerError):
    """A block breaks a validity rule."""

    def __init__(self, message: str, *, reason: Reason | None = None) -> None:
        """Keep the countable reason."""
        super().__init__(message)
        self.reason = reason


class InvalidCertificateError(LedgerError):
    """A certificate does not hold: quorum, chain, version or signature."""

    def __init__(self, message: str, *, reason: str) -> None:
        """Keep a short countable reason, for instance ``quorum``."""
        super().__init__(message)
        self.reason = reason


class CorruptLedgerError(LedgerError):
    """Stored content contradicts the ledger."""

    def __init__(self, message: str, *, place: str, height: int | None = None) -> None:
        """Keep the file (and table) and the log height where the contradiction is."""
        super().__init__(message)
        self.place = place
        self.height = height
