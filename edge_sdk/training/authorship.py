"""Who made an artifact: an envelope around the file that anybody can check before the content is looked at.

A signed artifact is a COSE_Sign1 over the author's key and the file as it is without a signature. The key travels
inside, so an intact file always says by whom it is; whether that is somebody to trust is for the reader, who compares
the key or its fingerprint with one that came another way. An artifact belongs to no chain: fleets that do not know each
other use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edge_sdk.errors import DecodeError, SignatureError
from edge_sdk.protocol.ids import ChainId
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX
from edge_sdk.protocol.messages import AuthoredArtifact, Domain, PublicKey, Reason
from edge_sdk.protocol.wire import from_bytes, to_bytes

if TYPE_CHECKING:
    from edge_sdk.protocol.cose import Signer

ANY_CHAIN: Final = ChainId("any-chain")
"""In the authenticated data, where other signatures name their chain; the domain keeps them apart."""
AUTHOR: Final = "author"
"""Sender in the header: an author is known by the key, not by a name."""
_SIGN1_TAG: Final = 0xD2
"""First byte of an envelope; a file without a signature begins with that of a CBOR map."""


def sign_artifact(unsigned: bytes, signer: Signer) -> bytes:
    """The file with its author's signature.

    Raises:
        LocalProtocolError: it would be longer than ``ARTIFACT_BYTES_MAX``.
    """
    from edge_sdk.protocol import cose  # with cryptography, which a file without a signature need not load: 7 MiB

    payload = to_bytes(AuthoredArtifact(author=signer.public_key, artifact=unsigned))
    return cose.sign(payload, signer=signer, domain=Domain.ARTIFACT, chain_id=ANY_CHAIN, sender=AUTHOR)


def open_artifact(data: bytes) -> tuple[bytes, PublicKey | None]:
    """Take the signature off, once it holds.

    Returns:
        The file without it, and the key of its author; None where nobody signed.

    Raises:
        DecodeError: not an envelope of an artifact.
        SignatureError: the key inside did not sign this.
    """
    if not data or data[0] != _SIGN1_TAG:
        return data, None
    from edge_sdk.protocol import cose

    envelope = cose.peek(data, bytes_max=ARTIFACT_BYTES_MAX)
    authored = from_bytes(AuthoredArtifact, envelope.payload)
    if envelope.sender != AUTHOR:
        raise SignatureError(f"signed by {envelope.sender}, expected an {AUTHOR}", reason=Reason.BAD_SIGNATURE)
    cose.verify(envelope, key=authored.author, domain=Domain.ARTIFACT, chain_id=ANY_CHAIN)
    if authored.artifact[0] == _SIGN1_TAG:
        raise DecodeError("a signed artifact inside a signed artifact", reason=Reason.MALFORMED)
    return authored.artifact, authored.author
