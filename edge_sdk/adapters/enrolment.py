"""Enrolment of a board: its key is made here and stays here; a claim token is exchanged once for a certificate.

EST-shaped (RFC 7030): ``simpleenroll`` with a bearer token at first, ``simplereenroll`` under the current key later.
TLS is pinned to the CA that came with the image. The order of writing makes a power cut harmless: key first,
certificate and genesis next, and only then is the claim deleted; the same claim with the same key gets the same
answer again.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import ssl
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from edge_sdk.adapters import failpoints
from edge_sdk.adapters.durable_files import PRIVATE_MODE, read_file, write_file
from edge_sdk.adapters.keys import create_key, load_private_key, load_signer
from edge_sdk.errors import ConfigError, ConnectError, DecodeError, RemoteProtocolError, StoreError
from edge_sdk.protocol import cose
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import ChainId, DeviceId, Digest
from edge_sdk.protocol.messages import Algorithm, Domain, Genesis
from edge_sdk.protocol.wire import from_bytes

ANSWER_BYTES_MAX: Final = 512 * 1024
TOKEN_BYTES_MAX: Final = 256
PEM_BYTES_MAX: Final = 64 * 1024
TIMEOUT_S: Final = 20.0
WAITED_HEADER: Final = "Flchain-Waited"
_ROOT: Final = "/.well-known/est"
_NOT_YET_VALID: Final = 9
"""X509_V_ERR_CERT_NOT_YET_VALID of OpenSSL: our clock is slow, or the certificate is from the future."""


class Wait(StrEnum):
    """What a board that is not enrolled waits for."""

    CLOCK = "clock"  # it stands before anything that this board knows to have happened
    UNREACHABLE = "unreachable"
    REFUSED = "refused"


class RegistrarRefusalError(RemoteProtocolError):
    """The registrar refuses; ``code`` is its countable reason, such as ``expired-claim``."""

    def __init__(self, message: str, *, code: str) -> None:
        """Keep the code."""
        super().__init__(message)
        self.code = code


class ClockBehindError(ConnectError):
    """The registrar's certificate is not valid yet by this board's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Files of a device's identity."""

    key_file: Path
    cert_file: Path
    genesis_file: Path
    claim_file: Path
    ca_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What the registrar answered, beyond the files that were written."""

    serial: int
    expiry_s: int
    miners: tuple[str, ...]
    is_settled: bool
    """Whether the ledger shows the key already."""


def enrol(
    url: str,
    places: Places,
    *,
    device_id: DeviceId,
    algorithm: Algorithm,
    genesis_digest: Digest | None,
    waited: Mapping[Wait, int] | None = None,
) -> Membership:
    """Enrol this board; safe to repeat after any failure.

    Args:
        url: Of the registrar.
        places: Files of the identity.
        device_id: Name of this board.
        algorithm: Of a new key.
        genesis_digest: What the genesis must be, where that is known.
        waited: What this board had to wait for, in seconds; told to the registrar, whose operator could not see it.

    Raises:
        ConfigError: no claim, or the URL is not https.
        ConnectError: the registrar cannot be reached, or is not the pinned one; ``ClockBehindError`` where only the
            clock speaks against it.
        RegistrarRefusalError: it refuses.
        RemoteProtocolError: it answers with something else than a membership of this device.
        StoreError: the disk refuses.
    """
    token = (read_file(places.claim_file, bytes_max=TOKEN_BYTES_MAX) or b"").decode("ascii", "replace").strip()
    if not token:
        raise ConfigError(f"{places.claim_file}: no claim: expected the token that the registry made for this board")
    if not places.key_file.exists():
        create_key(places.key_file, algorithm)
    failpoints.hit("enrol.key_made")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/pkcs10"}
    if waited:
        headers[WAITED_HEADER] = ",".join(f"{wait.value}={seconds}" for wait, seconds in waited.items())
    answer = _post(url, "simpleenroll", _request(places.key_file, device_id), places.ca_file, headers=headers)
    failpoints.hit("enrol.answered")
    membership = _accept(answer, places, device_id=device_id, genesis_digest=genesis_digest)
    failpoints.hit("enrol.certificate_written")
    places.claim_file.unlink(missing_ok=True)
    return membership


def renew(
    url: str,
    places: Places,
    *,
    device_id: DeviceId,
    chain_id: ChainId,
    genesis_digest: Digest | None,
    signer_file: Path | None = None,
) -> Membership:
    """Get the next certificate.

    Args:
        url: Of the registrar.
        places: Files of the identity; the certificate will be for its key.
        device_id: Name of this board.
        chain_id: Of the genesis.
        genesis_digest: What the genesis must be, where that is known.
        signer_file: The key that the registrar knows, where the certificate is to be for a new one.

    Raises:
        ConnectError, RemoteProtocolError, StoreError: as ``enrol``.
    """
    envelope = cose.sign(
        _request(places.key_file, device_id),
        signer=load_signer(signer_file or places.key_file),
        domain=Domain.RENEW,
        chain_id=chain_id,
        sender=device_id,
    )
    headers = {"Content-Type": "application/cose"}
    answer = _post(url, "simplereenroll", envelope, places.ca_file, headers=headers)
    return _accept(answer, places, device_id=device_id, genesis_digest=genesis_digest)


def certificate_life(path: Path) -> tuple[int, int] | None:
    """First and last second of a certificate's life; None where there is no certificate.

    Raises:
        StoreError: the file is not a certificate.
    """
    data = read_file(path, bytes_max=PEM_BYTES_MAX)
    if data is None:
        return None
    try:
        certificate = x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise StoreError(f"{path}: not a PEM certificate") from error
    return int(certificate.not_valid_before_utc.timestamp()), int(certificate.not_valid_after_utc.timestamp())


def is_renewal_due(life: tuple[int, int], *, now_s: int) -> bool:
    """Whether two thirds of the life are over."""
    start_s, end_s = life
    return now_s >= start_s + 2 * (end_s - start_s) // 3


def _request(key_file: Path, device_id: DeviceId) -> bytes:
    """Certificate request in PEM, signed by the key that it is for."""
    key = load_private_key(key_file)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    algorithm = None if isinstance(key, Ed25519PrivateKey) else SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def _post(url: str, leaf: str, body: bytes, ca_file: Path, *, headers: dict[str, str]) -> dict[str, object]:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ConfigError(f"enrolment url {url!r}: expected an https URL")
    try:
        context = ssl.create_default_context(cafile=ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=TIMEOUT_S, context=context)
        with closing(connection):
            connection.request("POST", f"{parts.path.rstrip('/')}{_ROOT}/{leaf}", body=body, headers=headers)
            response = connection.getresponse()
            data = response.read(ANSWER_BYTES_MAX + 1)
    except (OSError, http.client.HTTPException) as error:
        is_clock = isinstance(error, ssl.SSLCertVerificationError) and error.verify_code == _NOT_YET_VALID
        raise (ClockBehindError if is_clock else ConnectError)(f"registrar {url}: {error}") from error
    if len(data) > ANSWER_BYTES_MAX:
        raise DecodeError(f"registrar {url}: answers with more than {ANSWER_BYTES_MAX} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"registrar {url}: status {response.status}, not a JSON answer") from error
    if response.status != http.HTTPStatus.OK or not isinstance(document, dict):
        problem = document.get("error") if isinstance(document, dict) else None
        code = str(problem.get("code", "unknown"))[:40] if isinstance(problem, dict) else "unknown"
        text = f"registrar {url} refuses: status {response.status}: {str(document)[:200]}"
        raise RegistrarRefusalError(text, code=code)
    return document


def _accept(
    answer: dict[str, object], places: Places, *, device_id: DeviceId, genesis_digest: Digest | None
) -> Membership:
    """Check the answer as a whole, then write it."""
    try:
        pem = str(answer["certificate_pem"]).encode("ascii")
        genesis = base64.b64decode(str(answer["genesis_b64"]), validate=True)
        certificate = x509.load_pem_x509_certificate(pem)
        membership = Membership(
            serial=int(str(answer["serial"])),
            expiry_s=int(str(answer["certificate_expiry_s"])),
            miners=tuple(str(url) for url in _items(answer["miners"])),
            is_settled=answer.get("settled") is True,
        )
    except (KeyError, ValueError, binascii.Error) as error:
        raise DecodeError(f"registrar: not a membership: {error}") from error
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if [name.value for name in names] != [device_id]:
        raise RemoteProtocolError("registrar: the certificate is for another device")
    if certificate.public_key() != load_private_key(places.key_file).public_key():
        raise RemoteProtocolError("registrar: the certificate is for another key")
    if len(pem) > PEM_BYTES_MAX:
        raise RemoteProtocolError("registrar: the certificate is too long")
    from_bytes(Genesis, genesis)
    trusted = read_file(places.genesis_file, bytes_max=ANSWER_BYTES_MAX)
    found = sha256(genesis)
    if (trusted is not None and trusted != genesis) or (genesis_digest is not None and found != genesis_digest):
        raise RemoteProtocolError("registrar: another genesis than the one that this device trusts")
    write_file(places.cert_file, pem, mode=PRIVATE_MODE)
    if trusted is None:
        write_file(places.genesis_file, genesis)
    return membership


def _items(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError("miners: expected a list")  # noqa: TRY004 - one kind of error for a bad answer
    return value
