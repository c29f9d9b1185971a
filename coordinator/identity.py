"""What a miner is told to be, read and checked before anything runs: genesis, key, artifact, model of version 0."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.config import MinerConfig
from coordinator.genesis_file import load_genesis
from coordinator.ledger.miner_set import check_genesis
from coordinator.task_form import check_task
from edge_sdk.adapters.durable_files import read_file
from edge_sdk.adapters.keys import load_signer
from edge_sdk.errors import ConfigError, DecodeError, StoreError
from edge_sdk.protocol.cose import SoftwareSigner
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX, BLOB_BYTES_MAX
from edge_sdk.protocol.messages import Genesis
from edge_sdk.training.artifact import Artifact

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A member of a miner set, able to sign, to evaluate and to serve version 0."""

    genesis: Genesis
    signer: SoftwareSigner
    artifact: Artifact
    genesis_model: bytes


def load_identity(config: MinerConfig) -> Identity:
    """Read the files that ``miner.toml`` names.

    Raises:
        ConfigError: a file is missing or is not what it should be; one line that names it.
    """
    genesis = load_genesis(config.genesis_file)
    try:
        check_genesis(genesis)
    except ConfigError as error:
        raise ConfigError(f"{config.genesis_file}: {error}") from error
    record = next((miner for miner in genesis.miners if miner.miner_id == config.miner_id), None)
    if record is None:
        raise ConfigError(f"[miner] id = {config.miner_id!r}: expected a member of {config.genesis_file}")
    try:
        signer = load_signer(config.key_file)
    except StoreError as error:
        raise ConfigError(str(error)) from error
    if signer.public_key != record.key:
        raise ConfigError(f"{config.key_file}: not the key that {config.genesis_file} names for {config.miner_id}")
    others = {miner.miner_id for miner in genesis.miners} - {config.miner_id}
    strangers = sorted(set(config.peers) - others)
    if strangers:
        raise ConfigError(f"[peers] {strangers[0]} = ...: expected another member of {config.genesis_file}")
    artifact_bytes = _read(config.artifact_file, bytes_max=ARTIFACT_BYTES_MAX, what="artifact")
    try:
        artifact = Artifact.load(artifact_bytes, digest=genesis.artifact_digest, author=genesis.artifact_author)
        check_task(genesis.params, artifact)
    except (DecodeError, ConfigError) as error:
        raise ConfigError(f"{config.artifact_file}: {error}") from error
    log.info("artifact %s, signed by %s", artifact.name, artifact.authored_by)
    model = _read(config.model_file, bytes_max=BLOB_BYTES_MAX, what="model")
    return Identity(genesis=genesis, signer=signer, artifact=artifact, genesis_model=model)


def _read(path: Path, *, bytes_max: int, what: str) -> bytes:
    try:
        data = read_file(path, bytes_max=bytes_max)
    except StoreError as error:
        raise ConfigError(str(error)) from error
    if data is None:
        raise ConfigError(f"{path}: no such file: expected the {what}")
    return data
