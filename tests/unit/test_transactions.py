"""What a reader remembers of signatures: only what was verified, for the same bytes, key and chain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.application import Application
from coordinator.transactions import TransactionReader
from edge_sdk.errors import DecodeError, LocalProtocolError
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.codec import encode
from edge_sdk.protocol.ids import ChainId, MinerId
from edge_sdk.protocol.messages import Domain, Phase, Reason, Revoke, Tick
from tests.support.chain import CHAIN, CREATED_S, Names, signer

OTHER_CHAIN = ChainId("other-chain")


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture
def reader() -> TransactionReader:
    return TransactionReader(CHAIN)


def holds(reader: TransactionReader, tx: bytes, name: str) -> bool:
    return reader.is_signed_by(tx, reader.read(tx), signer(name).public_key)


def test_a_remembered_signature_is_of_its_key_alone(names: Names, reader: TransactionReader) -> None:
    tx = names.tick("miner-0", 1, Phase.COLLECT)
    assert holds(reader, tx, "miner-0")
    assert not holds(reader, tx, "miner-1")
    assert holds(reader, tx, "miner-0")


def test_a_refused_signature_is_not_remembered_as_good(names: Names, reader: TransactionReader) -> None:
    tick = Tick(miner_id=MinerId("miner-0"), block_index=1, phase=Phase.COLLECT, attempt=0)
    tx = names.sign(tick, Domain.TICK, "miner-0", key="thief")
    assert not holds(reader, tx, "miner-0")
    assert not holds(reader, tx, "miner-0")
    assert holds(reader, tx, "thief")
    assert not holds(reader, tx, "miner-0")


def test_another_signature_under_the_same_words_is_verified_anew(names: Names, reader: TransactionReader) -> None:
    tx = names.tick("miner-0", 1, Phase.COLLECT)
    assert holds(reader, tx, "miner-0")
    assert not holds(reader, tx[:-1] + bytes([tx[-1] ^ 1]), "miner-0")


def test_a_signature_for_one_domain_holds_for_no_other(names: Names, reader: TransactionReader) -> None:
    """The revocation's words under the header of another signed message, and the other way round."""
    revoke = names.revoke("dev-0")
    assert holds(reader, revoke, "registrar")
    parts, other = cose.peek(revoke), cose.peek(names.sign(names.genesis.params, Domain.RENEW, "registrar"))
    forged = revoke[:1] + encode([other.protected, {}, parts.payload, parts.signature])
    assert cose.peek(forged).domain is Domain.RENEW
    with pytest.raises(DecodeError, match="not a transaction"):
        reader.read(forged)
    signed_for_other = names.sign(wire.from_bytes(Revoke, parts.payload), Domain.RENEW, "registrar")
    forged = revoke[:1] + encode([parts.protected, {}, parts.payload, cose.peek(signed_for_other).signature])
    assert reader.read(forged).envelope.domain is Domain.REVOKE
    assert not holds(reader, forged, "registrar")


def test_a_chain_never_profits_from_anothers_reader(names: Names, reader: TransactionReader) -> None:
    tx = names.enrol("dev-0")
    assert holds(reader, tx, "registrar")
    assert not holds(TransactionReader(OTHER_CHAIN), tx, "registrar")
    with pytest.raises(LocalProtocolError, match="a reader of test-chain for other-chain"):
        Application(replace(names.genesis, chain_id=OTHER_CHAIN), reader=reader)


def test_a_shared_reader_does_not_let_one_replay_vouch_for_another(names: Names, reader: TransactionReader) -> None:
    """The second genesis has the same chain id and another registrar: what the first one signed is refused there."""
    tx = names.enrol("dev-0")
    first = Application(names.genesis, reader=reader)
    assert first.finalize(1, CREATED_S, [tx]).results[0].code is Reason.NONE
    tampered = replace(names.genesis, registrar=signer("thief").public_key)
    second = Application(tampered, reader=reader)
    assert second.finalize(1, CREATED_S, [tx]).results[0].code is Reason.BAD_SIGNATURE
    assert first.finalize(1, CREATED_S, [tx]).results[0].code is Reason.NONE
