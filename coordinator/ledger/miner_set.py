"""The members that order, score and certify, with their voting power: fixed at genesis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from coordinator.aggregation.suitability import FAMILIES, objection
from edge_sdk.errors import ConfigError
from edge_sdk.protocol.certificate import quorum_power
from edge_sdk.protocol.digest import miner_set_hash
from edge_sdk.protocol.ids import MinerId
from edge_sdk.protocol.messages import Genesis, PublicKey

METHODS: Final = tuple(FAMILIES)
"""Aggregation rules that exist."""


class MinerSet:
    """Keys, powers and the quorum rule: more than 2/3 of the whole power."""

    def __init__(self, genesis: Genesis) -> None:
        self.ids = tuple(miner.miner_id for miner in genesis.miners)
        self.hash = miner_set_hash(genesis.miners)
        self.quorum_power = quorum_power(genesis.miners)
        self._power = {miner.miner_id: miner.power for miner in genesis.miners}
        self._key = {miner.miner_id: miner.key for miner in genesis.miners}

    def __contains__(self, miner_id: object) -> bool:
        return miner_id in self._power

    def key(self, miner_id: MinerId) -> PublicKey:
        """Verification key of a member."""
        return self._key[miner_id]

    def power(self, miner_id: MinerId) -> int:
        """Voting power of a member."""
        return self._power[miner_id]

    def is_quorum(self, miner_ids: Iterable[MinerId]) -> bool:
        """Whether distinct members hold more than 2/3 of the power."""
        return sum(self._power[miner_id] for miner_id in set(miner_ids)) >= self.quorum_power


def check_genesis(genesis: Genesis) -> None:
    """Check what the codec cannot: that this program has the rules that the chain asks for.

    Raises:
        ConfigError: it has not.
    """
    if genesis.params.method not in METHODS:
        raise ConfigError(f"genesis: method = {genesis.params.method!r}: expected one of {', '.join(METHODS)}")
    reason = objection(FAMILIES[genesis.params.method], genesis.params.codec)
    if reason is not None:
        raise ConfigError(f"genesis: method {genesis.params.method} with codec {genesis.params.codec.name}: {reason}")
