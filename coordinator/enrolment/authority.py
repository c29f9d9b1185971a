"""The fleet's certificate authority: names devices, miners and servers, and says which names no longer hold.

Ed25519 throughout; a device may bring a P-256 key, because secure elements and TPMs often sign nothing else. A request
contributes its key and nothing more: subject, life and extensions are ours, whatever the request asks for.

Certificates open the broker and nothing else. What an update is worth is decided by the key in the ledger's registry.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from edge_sdk.adapters.durable_files import PRIVATE_MODE, write_file
from edge_sdk.errors import CorruptStoreError, DecodeError, StoreError
from edge_sdk.protocol.ids import DeviceId, MinerId, check_name
from edge_sdk.protocol.messages import Algorithm, PublicKey

CSR_BYTES_MAX: Final = 4_096
CA_DAYS: Final = 3_650
SERVER_DAYS: Final = 825
CRL_DAYS: Final = CA_DAYS
"""OpenSSL refuses *every* client once a list is out of date. The list is a local file, fresh because it is rewritten at
each revocation, so its end date has nothing to protect."""
CLOCK_SKEW_S: Final = 300
"""Certificates begin this much earlier: boards without a battery clock wake up in the past."""
MINER_USER_PREFIX: Final = "miner."
"""The dot cannot stand in a device id, so no device can be enrolled under a miner's name."""

_DAY_S: Final = 86_400


def miner_user(miner_id: MinerId) -> str:
    """Name of a miner at the broker: common name of its certificate, or user name."""
    return MINER_USER_PREFIX + miner_id


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequest:
    """A checked certificate signing request: who it names and the key whose possession it proves."""

    device_id: DeviceId
    key: PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate that was issued. ``number`` is its serial number, by which it is revoked."""

    pem: bytes
    number: int
    expiry_s: int


def read_request(data: bytes) -> DeviceRequest:
    """Check size, form, signature, key type and name of a PEM certificate signing request.

    Raises:
        DecodeError: anything does not hold.
    """
    if len(data) > CSR_BYTES_MAX:
        raise DecodeError(f"request has {len(data)} bytes, at most {CSR_BYTES_MAX}")
    try:
        request = x509.load_pem_x509_csr(data)
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        is_signed = request.is_signature_valid
        key = request.public_key()
    except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise DecodeError("not a certificate signing request in PEM with a key that we accept") from error
    if not is_signed:
        raise DecodeError("the request is not signed by its own key")
    if len(names) != 1 or not isinstance(names[0].value, str):
        raise DecodeError("the request must name one common name, the device id")
    device_id = DeviceId(check_name(names[0].value, what="device id"))
    return DeviceRequest(device_id=device_id, key=_protocol_key(key))


class Authority:
    """Signs certificates and the list of revoked ones."""

    def __init__(self, certificate: x509.Certificate, key: ed25519.Ed25519PrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, *, name: str, now_s: int) -> Authority:
        """Make a new authority, in memory."""
        key = ed25519.Ed25519PrivateKey.generate()
        subject = _name(name)
        certificate = (
            _builder(subject, subject, key.public_key(), now_s=now_s, days=CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, None)
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate_file: Path, key_file: Path) -> Authority:
        """Read an authority that ``save`` has written.

        Raises:
            StoreError: a file cannot be read.
            CorruptStoreError: a file is not what it should be, or the two do not belong together.
        """
        try:
            certificate_pem, key_pem = certificate_file.read_bytes(), key_file.read_bytes()
        except OSError as error:
            raise StoreError(f"{error.filename}: cannot be read: {error.strerror}") from error
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise CorruptStoreError(f"{certificate_file} or {key_file}: not a certificate and key in PEM") from error
        if not isinstance(key, ed25519.Ed25519PrivateKey) or key.public_key() != certificate.public_key():
            raise CorruptStoreError(f"{key_file}: not the Ed25519 key of {certificate_file}")
        return cls(certificate, key)

    def save(self, certificate_file: Path, key_file: Path) -> None:
        """Write both files, the key first and for this user only.

        Raises:
            StoreError: a file cannot be written.
        """
        write_file(key_file, private_pem(self._key), mode=PRIVATE_MODE)
        write_file(certificate_file, self.certificate_pem)

    @property
    def certificate_pem(self) -> bytes:
        """Certificate that devices pin."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue_device(self, request: DeviceRequest, *, now_s: int, days: int) -> Issued:
        """Certify a device's key under its id, for the broker."""
        key = _certificate_key(request.key)
        return self._issue(request.device_id, key, usage=ExtendedKeyUsageOID.CLIENT_AUTH, now_s=now_s, days=days)

    def issue_miner(self, miner_id: MinerId, key: ed25519.Ed25519PublicKey, *, now_s: int) -> Issued:
        """Certify a miner's broker key under its user name."""
        user = miner_user(miner_id)
        return self._issue(user, key, usage=ExtendedKeyUsageOID.CLIENT_AUTH, now_s=now_s, days=SERVER_DAYS)

    def issue_server(self, hosts: Sequence[str], key: ed25519.Ed25519PublicKey, *, now_s: int) -> Issued:
        """Certify a broker or an enrolment endpoint for names and addresses, at least one."""
        alternatives = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        return self._issue(hosts[0], key, usage=usage, now_s=now_s, days=SERVER_DAYS, alternatives=alternatives)

    def revocation_list(self, numbers: Iterable[int], *, now_s: int) -> bytes:
        """List certificates that no longer hold, by serial number, in PEM."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(_moment(now_s - CLOCK_SKEW_S))
            .next_update(_moment(now_s + CRL_DAYS * _DAY_S))
            .add_extension(x509.CRLNumber(now_s), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        for number in sorted(set(numbers)):
            entry = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(_moment(now_s))
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, None).public_bytes(serialization.Encoding.PEM)

    def _issue(  # the arguments are the certificate
        self,
        common_name: str,
        key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey,
        *,
        usage: ObjectIdentifier,
        now_s: int,
        days: int,
        alternatives: x509.SubjectAlternativeName | None = None,
    ) -> Issued:
        builder = (
            _builder(_name(common_name), self._certificate.subject, key, now_s=now_s, days=days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, None)
        return Issued(
            pem=certificate.public_bytes(serialization.Encoding.PEM),
            number=certificate.serial_number,
            expiry_s=now_s + days * _DAY_S,
        )

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())


def private_pem(key: ed25519.Ed25519PrivateKey) -> bytes:
    """Unencrypted PKCS#8: what protects it is the mode of its file."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _protocol_key(key: object) -> PublicKey:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return PublicKey(algorithm=Algorithm.EDDSA, data=key.public_bytes_raw())
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        return PublicKey(algorithm=Algorithm.ES256, data=point)
    raise DecodeError("the request's key is neither Ed25519 nor P-256")


def _certificate_key(key: PublicKey) -> ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey:
    if key.algorithm is Algorithm.EDDSA:
        return ed25519.Ed25519PublicKey.from_public_bytes(key.data)
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key.data)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey,
    *,
    now_s: int,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(now_s - CLOCK_SKEW_S))
        .not_valid_after(_moment(now_s + days * _DAY_S))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _moment(time_s: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(time_s, tz=dt.UTC)
