"""What each digest covers, and what it leaves out."""

import hashlib
from dataclasses import replace

import pytest

from edge_sdk.protocol import cose
from edge_sdk.protocol.digest import block_hash, commitment, genesis_digest, miner_set_hash, sha256, update_digest
from edge_sdk.protocol.ids import ChainId, MinerId
from edge_sdk.protocol.messages import Domain, Scores
from edge_sdk.protocol.wire import to_bytes
from tools import vector_examples as examples

SCORES = Scores(base=104, updates=(116, -1), classes=())
CANDIDATES = sha256(b"candidates")


def test_parts_are_hashed_one_after_the_other() -> None:
    assert sha256(b"a", b"", b"bc") == sha256(b"abc") == hashlib.sha256(b"abc").digest()


def test_trust_anchor_is_the_digest_of_the_file() -> None:
    assert genesis_digest(examples.genesis()) == hashlib.sha256(to_bytes(examples.genesis())).digest()


def test_miner_set_has_no_order() -> None:
    miners = examples.genesis().miners
    assert miner_set_hash(miners) == miner_set_hash(miners[::-1])
    assert miner_set_hash(miners) != miner_set_hash(miners[1:])
    assert miner_set_hash(miners) != miner_set_hash((replace(miners[0], power=2), *miners[1:]))


def test_block_hash_is_kept_apart_from_other_digests() -> None:
    header = examples.header()
    assert block_hash(header) != sha256(to_bytes(header))
    assert block_hash(header) != block_hash(replace(header, version=0))


def test_update_digest_covers_header_and_payload_and_not_the_signature() -> None:
    parts = cose.peek(examples.update_envelope())
    signer = examples.signer(examples.DEVICE)

    def digest(payload: bytes, sender: str, chain_id: ChainId) -> bytes:
        return update_digest(cose.sign(payload, signer=signer, domain=Domain.UPDATE, chain_id=chain_id, sender=sender))

    same = digest(parts.payload, parts.sender, ChainId("harbour-2"))  # the chain is in the signature and the manifest
    assert same == update_digest(examples.update_envelope())
    assert digest(parts.payload, "rpi-18", examples.CHAIN) != same
    assert digest(parts.payload + b"\0", parts.sender, examples.CHAIN) != same


@pytest.mark.parametrize(
    "other",
    [
        commitment(ChainId("harbour-2"), 1, CANDIDATES, examples.MINERS[0], SCORES, examples.SALT),
        commitment(examples.CHAIN, 2, CANDIDATES, examples.MINERS[0], SCORES, examples.SALT),
        commitment(examples.CHAIN, 1, sha256(b"others"), examples.MINERS[0], SCORES, examples.SALT),
        commitment(examples.CHAIN, 1, CANDIDATES, MinerId("miner-1"), SCORES, examples.SALT),
        commitment(examples.CHAIN, 1, CANDIDATES, examples.MINERS[0], replace(SCORES, base=105), examples.SALT),
        commitment(examples.CHAIN, 1, CANDIDATES, examples.MINERS[0], SCORES, examples.SALT[::-1]),
    ],
    ids=["chain", "block", "candidates", "miner", "scores", "salt"],
)
def test_a_commitment_binds_everything(other: bytes) -> None:
    assert commitment(examples.CHAIN, 1, CANDIDATES, examples.MINERS[0], SCORES, examples.SALT) != other
