"""Signed artifacts: who made it is known from the file, and nothing of a changed file is used."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.authoring.zoo import build
from edge_sdk.errors import DecodeError, LocalProtocolError, SignatureError
from edge_sdk.protocol import cose
from edge_sdk.protocol.digest import key_fingerprint, sha256
from edge_sdk.protocol.ids import ChainId
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX
from edge_sdk.protocol.messages import AuthoredArtifact, Domain
from edge_sdk.protocol.wire import to_bytes
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.authorship import ANY_CHAIN, AUTHOR, open_artifact, sign_artifact

UNSIGNED, _ = build("mlp", (8,), 3, batch=4, seed=0)
ED25519 = cose.SoftwareSigner(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
P256 = cose.SoftwareSigner(ec.derive_private_key(7, ec.SECP256R1()))


@pytest.mark.parametrize("signer", [ED25519, P256], ids=["eddsa", "es256"])
def test_a_signed_artifact_is_the_same_artifact_and_says_by_whom(signer: cose.SoftwareSigner) -> None:
    signed = UNSIGNED.signed(signer)
    loaded = Artifact.load(signed.data, digest=signed.digest, author=signer.public_key)
    assert loaded.author == signer.public_key
    assert loaded.authored_by == key_fingerprint(signer.public_key)
    assert (loaded.network, loaded.train_onnx) == (UNSIGNED.network, UNSIGNED.train_onnx)
    assert loaded.digest == sha256(signed.data) != UNSIGNED.digest
    assert open_artifact(signed.data) == (UNSIGNED.data, signer.public_key)


def test_an_unsigned_artifact_loads_and_says_so() -> None:
    loaded = Artifact.load(UNSIGNED.data, digest=UNSIGNED.digest)
    assert loaded.author is None
    assert "not signed" in loaded.authored_by


def test_a_new_signature_replaces_the_old_one() -> None:
    again = UNSIGNED.signed(ED25519).signed(P256)
    assert open_artifact(again.data) == (UNSIGNED.data, P256.public_key)


def test_every_changed_byte_is_refused() -> None:
    data = UNSIGNED.signed(ED25519).data
    for index in (*range(0, len(data), max(1, len(data) // 300)), *range(len(data) - 66, len(data))):
        changed = bytearray(data)
        changed[index] ^= 1
        with pytest.raises(DecodeError):
            Artifact.load(bytes(changed))


@pytest.mark.parametrize("data", [UNSIGNED.data, UNSIGNED.signed(P256).data], ids=["unsigned", "by another"])
def test_an_artifact_of_another_author_is_refused_with_both_names(data: bytes) -> None:
    with pytest.raises(DecodeError, match=key_fingerprint(ED25519.public_key)):
        Artifact.load(data, author=ED25519.public_key)


def test_the_key_inside_must_be_the_one_that_signed() -> None:
    payload = to_bytes(AuthoredArtifact(author=ED25519.public_key, artifact=UNSIGNED.data))
    other = cose.SoftwareSigner(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    forged = cose.sign(payload, signer=other, domain=Domain.ARTIFACT, chain_id=ANY_CHAIN, sender=AUTHOR)
    with pytest.raises(SignatureError, match="does not hold"):
        open_artifact(forged)
    with pytest.raises(DecodeError, match="signature"):
        Artifact.load(forged)


@pytest.mark.parametrize(
    ("domain", "chain", "sender"),
    [
        (Domain.UPDATE, ANY_CHAIN, AUTHOR),
        (Domain.ARTIFACT, ChainId("some-chain"), AUTHOR),
        (Domain.ARTIFACT, ANY_CHAIN, "board-01"),
    ],
    ids=["domain", "chain", "sender"],
)
def test_what_was_signed_as_something_else_is_refused(domain: Domain, chain: ChainId, sender: str) -> None:
    payload = to_bytes(AuthoredArtifact(author=ED25519.public_key, artifact=UNSIGNED.data))
    envelope = cose.sign(payload, signer=ED25519, domain=domain, chain_id=chain, sender=sender)
    with pytest.raises(SignatureError):
        open_artifact(envelope)


def test_an_envelope_in_an_envelope_is_refused() -> None:
    with pytest.raises(DecodeError, match="inside"):
        open_artifact(sign_artifact(UNSIGNED.signed(ED25519).data, ED25519))


def test_nothing_too_long_is_signed_or_opened() -> None:
    with pytest.raises(LocalProtocolError, match=str(ARTIFACT_BYTES_MAX)):
        sign_artifact(bytes(ARTIFACT_BYTES_MAX + 1), ED25519)
    with pytest.raises(DecodeError):
        open_artifact(b"\xd2" + bytes(ARTIFACT_BYTES_MAX))
