"""Envelopes: what the vectors cannot show, because it is random or of this process."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.errors import DecodeError, LocalProtocolError, SignatureError
from edge_sdk.protocol import cose
from edge_sdk.protocol.cose import SoftwareSigner
from edge_sdk.protocol.digest import update_digest
from edge_sdk.protocol.ids import ChainId
from edge_sdk.protocol.limits import ENVELOPE_BYTES_MAX
from edge_sdk.protocol.messages import Algorithm, Domain, PublicKey, Reason

CHAIN = ChainId("harbour-1")
SIGNERS = [
    pytest.param(SoftwareSigner(Ed25519PrivateKey.generate()), id="eddsa"),
    pytest.param(SoftwareSigner(ec.generate_private_key(ec.SECP256R1())), id="es256"),
]


def sign(payload: bytes, signer: SoftwareSigner, domain: Domain = Domain.UPDATE) -> bytes:
    return cose.sign(payload, signer=signer, domain=domain, chain_id=CHAIN, sender="rpi-17")


@pytest.mark.parametrize("signer", SIGNERS)
def test_what_is_signed_is_what_is_read(signer: SoftwareSigner) -> None:
    for domain in Domain:
        envelope = sign(b"payload", signer, domain)
        parts = cose.peek(envelope)
        assert (parts.alg, parts.domain, parts.sender) == (signer.algorithm, domain, "rpi-17")
        assert (parts.payload, len(parts.signature)) == (b"payload", 64)
        assert cose.verify(envelope, key=signer.public_key, domain=domain, chain_id=CHAIN) == b"payload"
        assert cose.verify(parts, key=signer.public_key, domain=domain, chain_id=CHAIN) == b"payload"


@pytest.mark.parametrize("signer", SIGNERS)
def test_no_domain_passes_for_another(signer: SoftwareSigner) -> None:
    for domain in Domain:
        envelope = sign(b"payload", signer, domain)
        for other in set(Domain) - {domain}:
            with pytest.raises(SignatureError) as caught:
                cose.verify(envelope, key=signer.public_key, domain=other, chain_id=CHAIN)
            assert (caught.value.reason, caught.value.sender) == (Reason.BAD_SIGNATURE, "rpi-17")


@pytest.mark.parametrize("signer", SIGNERS)
def test_every_changed_bit_is_noticed(signer: SoftwareSigner) -> None:
    envelope = sign(b"payload", signer)
    for index in range(8 * len(envelope)):
        changed = bytearray(envelope)
        changed[index // 8] ^= 1 << index % 8
        with pytest.raises((DecodeError, SignatureError)):
            cose.verify(bytes(changed), key=signer.public_key, domain=Domain.UPDATE, chain_id=CHAIN)


def test_one_content_signed_twice_is_one_update() -> None:
    signer = SoftwareSigner(ec.generate_private_key(ec.SECP256R1()))
    first, second = sign(b"payload", signer), sign(b"payload", signer)
    assert first != second
    assert update_digest(first) == update_digest(second) != update_digest(sign(b"other", signer))


@pytest.mark.parametrize(
    "key",
    [
        PublicKey(algorithm=Algorithm.EDDSA, data=bytes(31)),
        PublicKey(algorithm=Algorithm.ES256, data=b"\x04" + bytes(64)),
        PublicKey(algorithm=Algorithm.ES256, data=bytes(65)),
    ],
    ids=["short", "off the curve", "infinity"],
)
def test_a_key_that_is_none_verifies_nothing(key: PublicKey) -> None:
    signer = SIGNERS[key.algorithm is Algorithm.ES256].values[0]
    assert isinstance(signer, SoftwareSigner)
    with pytest.raises(SignatureError):
        cose.verify(sign(b"payload", signer), key=key, domain=Domain.UPDATE, chain_id=CHAIN)


def test_an_envelope_beyond_its_bound_is_refused_unread() -> None:
    envelope = sign(bytes(ENVELOPE_BYTES_MAX), SIGNERS[0].values[0])  # type: ignore[arg-type]
    with pytest.raises(DecodeError) as caught:
        cose.peek(envelope)
    assert caught.value.reason is Reason.OVERSIZE
    assert cose.peek(envelope, bytes_max=len(envelope)).payload == bytes(ENVELOPE_BYTES_MAX)


def test_no_envelope_is_made_that_nobody_would_read() -> None:
    signer = SIGNERS[0].values[0]
    assert isinstance(signer, SoftwareSigner)
    with pytest.raises(LocalProtocolError, match="sender"):
        cose.sign(b"payload", signer=signer, domain=Domain.UPDATE, chain_id=CHAIN, sender="Rpi 17")


def test_only_p256_signs_es256() -> None:
    with pytest.raises(AssertionError, match="P-256"):
        SoftwareSigner(ec.generate_private_key(ec.SECP384R1()))
