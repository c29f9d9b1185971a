"""Messages <-> bytes, by the table in ``schema.py``.

Types and bounds are checked in both directions: a peer's mistake is a ``DecodeError``, ours a ``LocalProtocolError``.
"""

from __future__ import annotations

from typing import TypeVar

from edge_sdk.errors import DecodeError, LocalProtocolError
from edge_sdk.protocol.codec import decode, encode
from edge_sdk.protocol.fields import Record
from edge_sdk.protocol.schema import TABLE

Message = TypeVar("Message")


def to_bytes(message: object) -> bytes:
    """Encode a message of ``messages.py``.

    Raises:
        LocalProtocolError: it is not one, or a field breaks its bounds.
    """
    record = _record_of(type(message))
    try:
        data = encode(record.lower(message))
    except DecodeError as error:
        raise LocalProtocolError(str(error)) from error
    if len(data) > record.bytes_max:
        raise LocalProtocolError(f"{record.cls.__name__} takes {len(data)} bytes, at most {record.bytes_max} are read")
    return data


def from_bytes(cls: type[Message], data: bytes, *, bytes_max: int | None = None) -> Message:
    """Decode untrusted bytes as one message.

    Args:
        cls: Dataclass of ``messages.py``.
        data: Exactly one encoded message.
        bytes_max: Longest input accepted; that of the message when None.

    Raises:
        DecodeError: the bytes are not such a message; ``reason`` says of what kind the mistake is.
    """
    record = _record_of(cls)
    plain = decode(data, bytes_max=record.bytes_max if bytes_max is None else bytes_max)
    message: Message = record.lift(plain)
    return message


def _record_of(cls: type) -> Record:
    record = TABLE.get(cls)
    if record is None:
        raise LocalProtocolError(f"{cls.__name__} is not a message")
    return record
