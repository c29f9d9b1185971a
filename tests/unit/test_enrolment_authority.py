import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.enrolment.authority import CSR_BYTES_MAX, Authority, miner_user, read_request
from edge_sdk.errors import CorruptStoreError, DecodeError, StoreError
from edge_sdk.protocol.ids import MinerId, check_name
from edge_sdk.protocol.messages import Algorithm
from tests.support.enrolment import NOW_S, make_csr, make_request


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create(name="test fleet", now_s=NOW_S)


def load(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def test_device_certificate_holds_what_we_say(authority: Authority) -> None:
    issued = authority.issue_device(make_request("d1"), now_s=NOW_S, days=60)
    certificate = load(issued.pem)
    certificate.verify_directly_issued_by(load(authority.certificate_pem))
    assert certificate.subject.rfc4514_string() == "CN=d1"
    assert certificate.serial_number == issued.number
    assert int(certificate.not_valid_after_utc.timestamp()) == issued.expiry_s == NOW_S + 60 * 86_400
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_extensions_that_a_request_asks_for_are_ignored(authority: Authority) -> None:
    key = Ed25519PrivateKey.generate()
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, "d1"),
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "miner.m0"),
                ]
            )
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("miner.m0")]), critical=False)
        .sign(key, None)
    )
    request = read_request(greedy.public_bytes(Encoding.PEM))
    certificate = load(authority.issue_device(request, now_s=NOW_S, days=1).pem)
    assert certificate.subject.rfc4514_string() == "CN=d1"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_p256_key_is_taken_over() -> None:
    request = read_request(make_csr("d1", ec.generate_private_key(ec.SECP256R1())))
    assert (request.key.algorithm, len(request.key.data)) == (Algorithm.ES256, 65)


@pytest.mark.parametrize("name", ["miner.m0", "D1", "d1/update", "+", "#", "d" * 49, "d1\n", "..", "d 1"])
def test_names_that_are_no_device_id(name: str) -> None:
    with pytest.raises(DecodeError):
        read_request(make_csr(name, Ed25519PrivateKey.generate()))


def test_no_device_id_is_a_miners_name() -> None:
    with pytest.raises(DecodeError):
        check_name(miner_user(MinerId("m0")))


def test_request_must_be_signed_by_its_own_key() -> None:
    one, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "d1")])
    der = bytearray(
        x509.CertificateSigningRequestBuilder().subject_name(subject).sign(one, None).public_bytes(Encoding.DER)
    )
    own, foreign = one.public_key().public_bytes_raw(), other.public_key().public_bytes_raw()
    place = der.index(own)
    der[place : place + len(own)] = foreign
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    with pytest.raises(DecodeError, match="not signed"):
        read_request(forged)


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(public_exponent=65_537, key_size=2048), ec.generate_private_key(ec.SECP384R1())],
    ids=["rsa", "p384"],
)
def test_other_keys_are_refused(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "d1")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    with pytest.raises(DecodeError, match="neither Ed25519 nor P-256"):
        read_request(csr.public_bytes(Encoding.PEM))


@pytest.mark.parametrize("names", [[], ["d1", "d2"]])
def test_exactly_one_name(names: list[str]) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(Ed25519PrivateKey.generate(), None)
    with pytest.raises(DecodeError, match="one common name"):
        read_request(csr.public_bytes(Encoding.PEM))


@pytest.mark.parametrize("data", [b"", b"x", b"-----BEGIN CERTIFICATE REQUEST-----\n", bytes(CSR_BYTES_MAX + 1)])
def test_what_is_no_request(data: bytes) -> None:
    with pytest.raises(DecodeError):
        read_request(data)


def test_saved_authority_signs_on(authority: Authority, tmp_path: Path) -> None:
    certificate, key = tmp_path / "ca.pem", tmp_path / "ca-key.pem"
    authority.save(certificate, key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    issued = Authority.load(certificate, key).issue_device(make_request(), now_s=NOW_S, days=1)
    load(issued.pem).verify_directly_issued_by(load(authority.certificate_pem))


def test_key_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    authority.save(tmp_path / "ca.pem", tmp_path / "ca-key.pem")
    Authority.create(name="other", now_s=NOW_S).save(tmp_path / "other.pem", tmp_path / "other-key.pem")
    with pytest.raises(CorruptStoreError):
        Authority.load(tmp_path / "ca.pem", tmp_path / "other-key.pem")
    (tmp_path / "ca-key.pem").write_text("rubbish")
    with pytest.raises(CorruptStoreError):
        Authority.load(tmp_path / "ca.pem", tmp_path / "ca-key.pem")
    with pytest.raises(StoreError):
        Authority.load(tmp_path / "none.pem", tmp_path / "ca-key.pem")


def test_revocation_list_outlives_its_next_rewrite(authority: Authority) -> None:
    revoked = x509.load_pem_x509_crl(authority.revocation_list([7, 5, 7], now_s=NOW_S))
    assert sorted(entry.serial_number for entry in revoked) == [5, 7]
    ca = load(authority.certificate_pem)
    assert revoked.next_update_utc is not None
    assert revoked.next_update_utc >= ca.not_valid_after_utc, "OpenSSL refuses everybody once a list is out of date"
    assert len(x509.load_pem_x509_crl(authority.revocation_list([], now_s=NOW_S))) == 0
