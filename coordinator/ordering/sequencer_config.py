"""The sequencer's TOML file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from coordinator.ordering.limits import GENESIS_BYTES_MAX
from coordinator.ordering.member import MemberConfig
from coordinator.ordering.unix_socket import PATH_BYTES_MAX
from edge_sdk.config import Key, Kind, Schema, Section, load
from edge_sdk.errors import ConfigError, DecodeError
from edge_sdk.protocol.ids import check_name
from edge_sdk.protocol.limits import MINERS_MAX, NAME_CHARS_MAX

SCHEMA: Final[Schema] = (
    Section(
        "sequencer",
        "The ordering engine for one machine. It is not Byzantine fault tolerant: without it nothing is ordered.",
        (
            Key("chain_id", Kind.TEXT, "As in the genesis", maximum=NAME_CHARS_MAX),
            Key("genesis_file", Kind.PATH, "Genesis that all miners start from"),
            Key("log", Kind.PATH, "Ordered log, an SQLite file", default="log.sqlite3"),
            Key("rpc", Kind.PATH, "Unix socket on which miners submit transactions", default="rpc.sock"),
            Key(
                "call_timeout_s",
                Kind.NUMBER,
                "A miner that answers a question later is reconnected",
                default=2.0,
                unit="s",
                minimum=0.05,
                maximum=60,
            ),
            Key(
                "execute_timeout_s",
                Kind.NUMBER,
                "A miner that executes a height for longer is reconnected",
                default=30.0,
                unit="s",
                minimum=0.05,
                maximum=600,
            ),
        ),
    ),
    Section(
        "miners",
        "A member of the miner set",
        (
            Key("id", Kind.TEXT, "As in the genesis", maximum=NAME_CHARS_MAX),
            Key("abci", Kind.PATH, "Unix socket of its application"),
            Key("power", Kind.INTEGER, "Voting power, as in the genesis", default=1, minimum=1, maximum=2**31),
        ),
        repeated=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencerConfig:
    """Checked settings of the sequencer."""

    chain_id: str
    genesis_file: Path
    log: Path
    rpc: Path
    members: tuple[MemberConfig, ...]
    call_timeout_s: float = 2.0
    execute_timeout_s: float = 30.0

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            ConfigError: one line with file, key, what was found and what is expected.
        """
        values = load(path, SCHEMA)
        table = values.table("sequencer")
        members = tuple(
            MemberConfig(miner_id=row.text("id"), abci=row.path("abci"), power=row.integer("power"))
            for row in values.tables("miners")
        )
        _check_name(path, "[sequencer] chain_id", table.text("chain_id"))
        _check_socket(path, "[sequencer] rpc", table.path("rpc"))
        for number, member in enumerate(members, start=1):
            _check_name(path, f"[[miners]] #{number} id", member.miner_id)
            _check_socket(path, f"[[miners]] #{number} abci", member.abci)
        for what, found in (
            ("id", [member.miner_id for member in members]),
            ("abci", [str(member.abci) for member in members]),
        ):
            if len(set(found)) < len(found):
                raise ConfigError(
                    f"{path}: [[miners]] {what} = {sorted(found)}: expected a different one for each miner"
                )
        if len(members) > MINERS_MAX:
            raise ConfigError(f"{path}: [[miners]] = {len(members)} tables: expected at most {MINERS_MAX}")
        return cls(
            chain_id=table.text("chain_id"),
            genesis_file=table.path("genesis_file"),
            log=table.path("log"),
            rpc=table.path("rpc"),
            members=members,
            call_timeout_s=table.number("call_timeout_s"),
            execute_timeout_s=table.number("execute_timeout_s"),
        )

    def read_genesis(self) -> bytes:
        """Bytes of the genesis.

        Raises:
            ConfigError: missing, empty or too large.
        """
        try:
            with self.genesis_file.open("rb") as file:
                genesis_bytes = file.read(GENESIS_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError(f"{self.genesis_file}: {error.strerror}: expected the genesis") from error
        if not 0 < len(genesis_bytes) <= GENESIS_BYTES_MAX:
            raise ConfigError(f"{self.genesis_file}: expected a genesis of 1..{GENESIS_BYTES_MAX} bytes")
        return genesis_bytes


def _check_name(path: Path, place: str, text: str) -> None:
    try:
        check_name(text)
    except DecodeError as error:
        raise ConfigError(f"{path}: {place} = {text!r}: expected a name: {error}") from error


def _check_socket(path: Path, place: str, socket_path: Path) -> None:
    size = len(os.fsencode(socket_path))
    if size > PATH_BYTES_MAX:
        raise ConfigError(f"{path}: {place} = {str(socket_path)[:60]!r}...: expected at most {PATH_BYTES_MAX} bytes")
