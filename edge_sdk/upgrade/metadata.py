"""The four roles of a TUF repository as checked values: bytes in, values out; no clock, no file, no network.

``read`` checks structure and bounds; ``Role.check_signed`` verifies signatures against a threshold of distinct keys.
What a version, an expiry or a hash means for an upgrade is decided in ``trusted``.

Source: TUF specification 1.0.33, section 4. Only what our own repositories use: Ed25519, SHA-256, consistent snapshots,
no delegations. Anything else is refused or, where the specification says so (unknown keys), ignored.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_sdk.errors import DecodeError, SignatureError
from edge_sdk.upgrade.canonical import Json, encode, parse

SPEC_MAJOR: Final = "1."
KEYS_MAX: Final = 64
SIGNATURES_MAX: Final = 64
TARGETS_MAX: Final = 2_000
TARGET_BYTES_MAX: Final = 512 * 1024 * 1024
VERSION_MAX: Final = 2**31
_ED25519_BYTES: Final = 32
_TIME: Final = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z", re.ASCII)
_TARGET: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+!-]{0,199}", re.ASCII)
_HEX_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class RoleName(StrEnum):
    """The top-level roles."""

    ROOT = "root"
    TIMESTAMP = "timestamp"
    SNAPSHOT = "snapshot"
    TARGETS = "targets"


BYTES_MAX: Final = {
    RoleName.ROOT: 64 * 1024,
    RoleName.TIMESTAMP: 16 * 1024,
    RoleName.SNAPSHOT: 64 * 1024,
    RoleName.TARGETS: 1024 * 1024,
}
"""Read before anything is verified, so bounded here and not by what the repository says."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Length and digest of a file that another role names; None where that role does not say."""

    version: int
    length: int | None
    sha256: bytes | None


@dataclass(frozen=True, slots=True)
class Target:
    """One file to download."""

    name: str
    length: int
    sha256: bytes

    @property
    def path(self) -> str:
        """Where a repository with consistent snapshots keeps it."""
        return f"targets/{self.sha256.hex()}.{self.name}"


@dataclass(frozen=True, slots=True)
class Role:
    """Who may sign a role: Ed25519 keys by id, and how many of them must."""

    keys: Mapping[str, bytes]
    threshold: int

    def check_signed(self, document: Document) -> None:
        """Hold a document's signatures against this role; one key counts once, under whatever ids it is listed.

        Raises:
            SignatureError: fewer valid signatures of distinct keys than the threshold.
        """
        valid: set[bytes] = set()
        for key_id, signature in document.signatures.items():
            key = self.keys.get(key_id)
            if key is not None and _is_valid(key, signature, document.signed_bytes):
                valid.add(key)
        if len(valid) < self.threshold:
            raise SignatureError(f"{document.role}: {len(valid)} valid signatures, expected {self.threshold}")


@dataclass(frozen=True, slots=True)
class Document:
    """What all roles have in common; nothing is verified yet."""

    role: RoleName
    version: int
    expires_s: int
    created_s: int
    """When it was made, as its signer says (our own field ``x-created-s``); 0 when it does not say."""
    signatures: Mapping[str, bytes]
    signed_bytes: bytes


@dataclass(frozen=True, slots=True)
class Root(Document):
    """Keys and thresholds of all roles."""

    roles: Mapping[RoleName, Role]


@dataclass(frozen=True, slots=True)
class Timestamp(Document):
    """Which snapshot is the newest."""

    snapshot: FileInfo


@dataclass(frozen=True, slots=True)
class Snapshot(Document):
    """Which targets document is the newest."""

    targets: FileInfo


@dataclass(frozen=True, slots=True)
class Targets(Document):
    """The files."""

    targets: Mapping[str, Target]


AnyDocument: TypeAlias = Root | Timestamp | Snapshot | Targets


def read(data: bytes, role: RoleName) -> AnyDocument:
    """Read the document of a role; signatures are not verified here.

    Raises:
        DecodeError: it is not one, or breaks a bound.
    """
    whole = parse(data, bytes_max=BYTES_MAX[role])
    signed = _mapping(whole, "signed")
    if signed.get("_type") != role:
        raise DecodeError(f"{role}: _type is {_shown(signed.get('_type'))}")
    if not _string(signed, "spec_version").startswith(SPEC_MAJOR):
        raise DecodeError(f"{role}: spec_version {_shown(signed['spec_version'])}, expected {SPEC_MAJOR}x")
    created = signed.get("x-created-s", 0)
    common = (
        role,
        _integer(signed, "version", 1, VERSION_MAX),
        _time_s(_string(signed, "expires")),
        created if isinstance(created, int) and created >= 0 else 0,
        _signatures(whole),
        encode(signed),
    )
    match role:
        case RoleName.ROOT:
            return Root(*common, roles=_roles(signed))
        case RoleName.TIMESTAMP:
            return Timestamp(*common, snapshot=_file_info(signed, "snapshot.json"))
        case RoleName.SNAPSHOT:
            return Snapshot(*common, targets=_file_info(signed, "targets.json"))
        case RoleName.TARGETS:
            return Targets(*common, targets=_targets(signed))


def _roles(signed: Mapping[str, Json]) -> dict[RoleName, Role]:
    if signed.get("consistent_snapshot") is not True:
        raise DecodeError("root: consistent_snapshot must be true")
    keys = {key_id: key for key_id, item in _bounded(signed, "keys", KEYS_MAX) if (key := _key(item)) is not None}
    listed = _mapping(signed, "roles")
    roles = {}
    for name in RoleName:
        role = _mapping(listed, name)
        key_ids = role.get("keyids")
        if not isinstance(key_ids, list) or len(key_ids) > KEYS_MAX or len(set(map(str, key_ids))) != len(key_ids):
            raise DecodeError(f"root: keyids of {name} are no list of distinct ids")
        threshold = _integer(role, "threshold", 1, KEYS_MAX)
        roles[name] = Role({str(key_id): keys[str(key_id)] for key_id in key_ids if str(key_id) in keys}, threshold)
    return roles


def _key(item: Json) -> bytes | None:
    """Ed25519 public key; None for another kind, which cannot help towards a threshold here."""
    match item:
        case {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": str(public)}}:
            try:
                key = bytes.fromhex(public)
            except ValueError as error:
                raise DecodeError("root: a public key that is not hexadecimal") from error
            if len(key) != _ED25519_BYTES:
                raise DecodeError(f"root: an Ed25519 key of {len(key)} bytes")
            return key
        case {"keytype": str(), "scheme": str(), "keyval": dict()}:
            return None
        case _:
            raise DecodeError("root: not a key")


def _signatures(whole: Mapping[str, Json]) -> dict[str, bytes]:
    listed = whole.get("signatures")
    if not isinstance(listed, list) or len(listed) > SIGNATURES_MAX:
        raise DecodeError(f"signatures: expected a list of at most {SIGNATURES_MAX}")
    found: dict[str, bytes] = {}
    for item in listed:
        match item:
            case {"keyid": str(key_id), "sig": str(text)} if key_id not in found:
                try:
                    found[key_id] = bytes.fromhex(text)
                except ValueError as error:
                    raise DecodeError("signatures: not hexadecimal") from error
            case _:
                raise DecodeError("signatures: not a signature, or two of one key id")
    return found


def _file_info(signed: Mapping[str, Json], name: str) -> FileInfo:
    item = _mapping(_mapping(signed, "meta"), name)
    length = _integer(item, "length", 1, 2**31) if "length" in item else None
    return FileInfo(_integer(item, "version", 1, VERSION_MAX), length, _sha256(item) if "hashes" in item else None)


def _targets(signed: Mapping[str, Json]) -> dict[str, Target]:
    if signed.get("delegations"):
        raise DecodeError("targets: delegations are not supported")
    found = {}
    for name, item in _bounded(signed, "targets", TARGETS_MAX):
        if _TARGET.fullmatch(name) is None:
            raise DecodeError(f"targets: {_shown(name)} is not a plain file name")
        if not isinstance(item, dict):
            raise DecodeError(f"targets: {name} is no object")
        found[name] = Target(name, _integer(item, "length", 1, TARGET_BYTES_MAX), _sha256(item))
    return found


def _sha256(item: Mapping[str, Json]) -> bytes:
    text = _string(_mapping(item, "hashes"), "sha256")
    if _HEX_DIGEST.fullmatch(text) is None:
        raise DecodeError("hashes: sha256 is not 64 hexadecimal digits")
    return bytes.fromhex(text)


def _is_valid(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _time_s(text: str) -> int:
    """Seconds since 1970 of ``2030-01-31T12:00:00Z``."""
    parts = _TIME.fullmatch(text)
    if parts is None:
        raise DecodeError(f"expires: {_shown(text)} is not YYYY-MM-DDTHH:MM:SSZ")
    year, month, day, hour, minute, second = map(int, parts.groups())
    is_date = year >= 1 and 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]
    if not (is_date and hour < 24 and minute < 60 and second < 60):
        raise DecodeError(f"expires: {_shown(text)} is no time")
    return calendar.timegm((year, month, day, hour, minute, second))


def _bounded(parent: Mapping[str, Json], name: str, count_max: int) -> list[tuple[str, Json]]:
    found = _mapping(parent, name)
    if len(found) > count_max:
        raise DecodeError(f"{name}: {len(found)} entries, expected at most {count_max}")
    return list(found.items())


def _mapping(parent: Mapping[str, Json], name: str) -> dict[str, Json]:
    found = parent.get(name)
    if not isinstance(found, dict):
        raise DecodeError(f"{name}: expected an object")
    return found


def _string(parent: Mapping[str, Json], name: str) -> str:
    found = parent.get(name)
    if not isinstance(found, str):
        raise DecodeError(f"{name}: expected a text")
    return found


def _integer(parent: Mapping[str, Json], name: str, low: int, high: int) -> int:
    found = parent.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
        raise DecodeError(f"{name}: expected an integer in {low}..{high}")
    return found


def _shown(value: object) -> str:
    return repr(value)[:60]
