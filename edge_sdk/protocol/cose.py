"""Signed envelopes: COSE_Sign1 (RFC 9052 section 4.2) with EdDSA or ES256 (RFC 9053 section 2).

The protected header holds algorithm, domain (as content type) and sender (as key id); the external data repeats the
domain and adds the chain id. An envelope therefore cannot be replayed as one of another kind, or on another chain.
Signatures are checked over the bytes as received, never over a re-encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge_sdk.errors import DecodeError, LocalProtocolError, SignatureError
from edge_sdk.protocol.codec import decode, encode
from edge_sdk.protocol.ids import ChainId, MinerId, check_name
from edge_sdk.protocol.limits import ENVELOPE_BYTES_MAX, NAME_CHARS_MAX, SIGNATURE_BYTES
from edge_sdk.protocol.messages import Algorithm, Domain, PublicKey, Reason

_TAG_SIGN1: Final = b"\xd2"
"""CBOR tag 18."""
_CONTEXT: Final = "Signature1"
# Header parameters, RFC 9052 table 3.
_ALG: Final = 1
_CONTENT_TYPE: Final = 3
_KID: Final = 4
_PROTECTED_BYTES_MAX: Final = 128
_P256_COORDINATE_BYTES: Final = 32

SENDER_REGISTRAR: Final = "registrar"


class Signer(Protocol):
    """Holder of a private key: a file, a secure element, a TPM, or memory."""

    @property
    def algorithm(self) -> Algorithm:
        """How it signs."""
        ...

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Sign ``data`` and return 64 bytes: Ed25519, or r || s for ES256."""
        ...


class SoftwareSigner:
    """A private key in the memory of this process."""

    def __init__(self, private_key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> None:
        self._private_key = private_key
        if isinstance(private_key, Ed25519PrivateKey):
            self._algorithm = Algorithm.EDDSA
            data = private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        else:
            assert isinstance(private_key.curve, ec.SECP256R1), "ES256 signs with P-256"
            self._algorithm = Algorithm.ES256
            data = private_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self._public_key = PublicKey(algorithm=self._algorithm, data=data)

    @property
    def algorithm(self) -> Algorithm:
        """How it signs."""
        return self._algorithm

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies."""
        return self._public_key

    def sign(self, data: bytes) -> bytes:
        """Sign ``data``; 64 bytes."""
        if isinstance(self._private_key, Ed25519PrivateKey):
            return self._private_key.sign(data)
        r, s = decode_dss_signature(self._private_key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(_P256_COORDINATE_BYTES) + s.to_bytes(_P256_COORDINATE_BYTES)


@dataclass(frozen=True, slots=True)
class Envelope:
    """The parts of a COSE_Sign1; nothing in it is verified."""

    protected: bytes
    alg: Algorithm
    domain: Domain
    sender: str
    payload: bytes
    signature: bytes


def sign(payload: bytes, *, signer: Signer, domain: Domain, chain_id: ChainId, sender: str) -> bytes:
    """Return the envelope of a payload.

    Raises:
        LocalProtocolError: ``sender`` is not a name, so nobody would read the envelope.
    """
    try:
        check_name(sender, what="sender")
    except DecodeError as error:
        raise LocalProtocolError(str(error)) from error
    protected = _protected(signer.algorithm, domain, sender)
    signature = signer.sign(signature_input(protected, payload, domain=domain, chain_id=chain_id))
    return _TAG_SIGN1 + encode([protected, {}, payload, signature])


def peek(envelope: bytes, *, bytes_max: int = ENVELOPE_BYTES_MAX) -> Envelope:
    """Take an envelope apart, to see who claims to have signed what; verifies nothing.

    Raises:
        DecodeError: not an envelope in its only form.
    """
    if len(envelope) > bytes_max:
        raise DecodeError(
            f"an envelope of {len(envelope)} bytes, at most {bytes_max} are accepted", reason=Reason.OVERSIZE
        )
    if not envelope.startswith(_TAG_SIGN1):
        raise _malformed("no COSE_Sign1 tag")
    match decode(envelope[1:], bytes_max=bytes_max):
        case [bytes(protected), dict(unprotected), bytes(payload), bytes(signature)] if not unprotected:
            pass
        case _:
            raise _malformed("expected [protected, {}, payload, signature]")
    if len(signature) != SIGNATURE_BYTES:
        raise _malformed(f"a signature of {len(signature)} bytes, expected {SIGNATURE_BYTES}")
    alg, domain, sender = _open_protected(protected)
    return Envelope(protected, alg, domain, sender, payload, signature)


def verify(envelope: Envelope | bytes, *, key: PublicKey, domain: Domain, chain_id: ChainId) -> bytes:
    """Return the payload if ``key`` signed it for this domain and chain.

    Raises:
        DecodeError: not an envelope.
        SignatureError: it did not. A signature for another chain cannot be told from a false one.
    """
    parts = peek(envelope) if isinstance(envelope, bytes) else envelope
    if parts.domain is not domain:
        raise SignatureError(
            f"signed as {parts.domain}, expected {domain}", reason=Reason.BAD_SIGNATURE, sender=parts.sender
        )
    if parts.alg is not key.algorithm:
        raise SignatureError(
            f"algorithm {parts.alg.name}, the key is for {key.algorithm.name}",
            reason=Reason.BAD_SIGNATURE,
            sender=parts.sender,
        )
    signed = signature_input(parts.protected, parts.payload, domain=domain, chain_id=chain_id)
    _verify(key, parts.signature, signed, parts.sender)
    return parts.payload


def verify_vote(
    statement_bytes: bytes, signature: bytes, *, key: PublicKey, miner_id: MinerId, chain_id: ChainId
) -> None:
    """Check one signature of a certificate: that of the miner's CERTIFICATE envelope, kept apart from its payload.

    Raises:
        SignatureError: it does not hold.
    """
    protected = _protected(key.algorithm, Domain.CERTIFICATE, miner_id)
    signed = signature_input(protected, statement_bytes, domain=Domain.CERTIFICATE, chain_id=chain_id)
    _verify(key, signature, signed, miner_id)


def signature_input(protected: bytes, payload: bytes, *, domain: Domain, chain_id: ChainId) -> bytes:
    """Bytes that are signed; domain and chain id are authenticated without being sent."""
    return _sig_structure(protected, encode([domain, chain_id]), payload)


def _sig_structure(protected: bytes, external: bytes, payload: bytes) -> bytes:
    """RFC 9052 section 4.4."""
    return encode([_CONTEXT, protected, external, payload])


def _protected(alg: Algorithm, domain: Domain, sender: str) -> bytes:
    return encode({_ALG: alg, _CONTENT_TYPE: domain, _KID: sender.encode()})


def _open_protected(protected: bytes) -> tuple[Algorithm, Domain, str]:
    match decode(protected, bytes_max=_PROTECTED_BYTES_MAX):
        case {1: int(alg), 3: str(domain), 4: bytes(kid), **others} if not others and len(kid) <= NAME_CHARS_MAX:
            pass
        case _:
            raise _malformed("expected a protected header of algorithm, content type and key id")
    try:
        return Algorithm(alg), Domain(domain), check_name(kid.decode("ascii"), what="sender")
    except ValueError as error:  # of the enumerations, of a key id that is not ASCII, or DecodeError of a bad name
        raise _malformed(str(error)) from error


def _verify(key: PublicKey, signature: bytes, signed: bytes, sender: str) -> None:
    refused = SignatureError(f"the signature of {sender} does not hold", reason=Reason.BAD_SIGNATURE, sender=sender)
    if len(signature) != SIGNATURE_BYTES:
        raise refused
    try:
        public_key = _load_key(key)
        if isinstance(public_key, Ed25519PublicKey):
            public_key.verify(signature, signed)
        else:
            r = int.from_bytes(signature[:_P256_COORDINATE_BYTES])
            s = int.from_bytes(signature[_P256_COORDINATE_BYTES:])
            public_key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError) as error:  # ValueError: bytes that are no point of the curve
        raise refused from error


def _load_key(key: PublicKey) -> Ed25519PublicKey | ec.EllipticCurvePublicKey:
    if key.algorithm is Algorithm.EDDSA:
        return Ed25519PublicKey.from_public_bytes(key.data)
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key.data)


def _malformed(text: str) -> DecodeError:
    return DecodeError(f"not a signed envelope: {text}", reason=Reason.MALFORMED)
