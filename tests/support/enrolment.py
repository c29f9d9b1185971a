"""Requests and keys for the enrolment tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from coordinator.enrolment.authority import DeviceRequest, Issued, read_request

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

NOW_S = 1_800_000_000


def make_csr(name: str, key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """A signing request in PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    digest = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, digest).public_bytes(Encoding.PEM)


def make_request(name: str = "d1", key: Ed25519PrivateKey | None = None) -> DeviceRequest:
    """A checked request; with a key of its own when none is given."""
    return read_request(make_csr(name, key or Ed25519PrivateKey.generate()))


class Issuer:
    """Counts the certificates that a store asks for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Issued:
        self.count += 1
        return Issued(pem=b"certificate %d" % self.count, number=10**40 + self.count, expiry_s=NOW_S + 86_400)
