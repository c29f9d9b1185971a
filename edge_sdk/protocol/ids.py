"""Names and digests, as distinct types, with the one rule that makes a name valid."""

from __future__ import annotations

import re
from typing import NewType

from edge_sdk.errors import DecodeError
from edge_sdk.protocol.limits import DIGEST_BYTES, NAME_CHARS_MAX

ChainId = NewType("ChainId", str)
TaskId = NewType("TaskId", str)
DeviceId = NewType("DeviceId", str)
MinerId = NewType("MinerId", str)
Digest = NewType("Digest", bytes)
"""SHA-256, 32 bytes."""

# One rule for every name that becomes a topic segment, a file name or a certificate CN: no wildcard, separator or
# case can hide in it.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


def check_name(text: str, *, what: str = "name") -> str:
    """Return ``text`` if it is a valid name: lower-case letters, digits and inner hyphens, at most ``NAME_CHARS_MAX``.

    Raises:
        DecodeError: it is not.
    """
    if len(text) > NAME_CHARS_MAX or _NAME.fullmatch(text) is None:
        raise DecodeError(
            f"{what} {text[:NAME_CHARS_MAX]!r} is not a name: expected {_NAME.pattern}, "
            f"at most {NAME_CHARS_MAX} characters"
        )
    return text


def check_digest(data: bytes, *, what: str = "digest") -> Digest:
    """Return ``data`` if it has the length of a SHA-256 digest.

    Raises:
        DecodeError: it has not.
    """
    if len(data) != DIGEST_BYTES:
        raise DecodeError(f"{what} has {len(data)} bytes, expected {DIGEST_BYTES}")
    return Digest(data)
