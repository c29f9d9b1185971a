"""Founds a deployment: keys, authority, genesis, settings, broker files and units, in one folder with safe modes.

Everything is made by one person on one machine and then carried to where it runs; the folder of a miner is complete in
itself. Private keys are made where they are written, mode 0600, and named only by file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.broker.access import access_list
from coordinator.broker.mosquitto import TlsFiles, production_config
from coordinator.codec_choice import INT8, CodecChoice, with_codec
from coordinator.enrolment.authority import Authority, Issued, private_pem
from coordinator.enrolment.claims import ClaimStore
from coordinator.setup_texts import MinerText, miner_toml, sequencer_toml, systemd_unit
from edge_sdk.adapters.durable_files import PRIVATE_MODE, make_private_directory, write_file
from edge_sdk.adapters.keys import create_key
from edge_sdk.errors import ConfigError
from edge_sdk.protocol import wire
from edge_sdk.protocol.digest import genesis_digest, sha256
from edge_sdk.protocol.ids import ChainId, MinerId, TaskId
from edge_sdk.protocol.limits import MINERS_MAX
from edge_sdk.protocol.messages import Algorithm, Codec, Genesis, MinerRecord, ModelParams, PublicKey, TaskParams
from edge_sdk.protocol.model import model_root

SPSA_LEARNING_RATE: Final = 0.003
"""A step along a random direction changes every parameter; the stable rate falls with their number."""
SOCKET_PATH_BYTES_MAX: Final = 107
"""Length of ``sun_path`` on Linux, without its end."""
ENROLMENT_PORT: Final = 8443
BROKER_PORT: Final = 8883
HTTP_PORT: Final = 8080


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a deployment is to be. The first miner hosts the registrar."""

    root: Path
    chain_id: ChainId
    task: TaskId
    miners: tuple[MinerId, ...]
    run_as: str
    """User that owns these files; a broker that root starts becomes this user."""
    host: str = "127.0.0.1"
    """Name or address under which devices reach broker, miners and registrar."""
    bind: str = "127.0.0.1"
    """Address that services listen on."""
    broker_port: int = BROKER_PORT
    http_port: int = HTTP_PORT
    """Of the first miner; the others follow."""
    enrolment_port: int = ENROLMENT_PORT

    def miner_dir(self, miner_id: MinerId) -> Path:
        """Folder of one miner."""
        return self.root / "miners" / miner_id

    def url(self, miner_id: MinerId) -> str:
        """Address of a miner's HTTP interface."""
        return f"http://{self.host}:{self.http_port + self.miners.index(miner_id)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Founded:
    """What came of a plan."""

    genesis: Genesis
    anchor: str
    """SHA-256 of the genesis in hex: what every device and auditor is told by a way that can be trusted."""
    miner_configs: tuple[Path, ...]
    sequencer_config: Path
    broker_config: Path
    authority_file: Path


def default_params(*, batch: int, block_size: int = 4, tau_ms: int = 30_000, codec: CodecChoice = INT8) -> TaskParams:
    """Rules of a task of production size; the README of the coordinator explains each."""
    rules = TaskParams(
        block_size=block_size,
        tau_ms=tau_ms,
        phase_ms=5_000,
        reveal_extensions_max=3,
        staleness_max=20,
        margin_permille=5,
        method="fedbuff",
        server_rate_q16=1 << 16,
        clip_norm_q16=10 << 16,
        codec=Codec.INT8_DENSE,
        expiry_heights=10_000,
        certificate_ttl_s=30 * 86_400,
        local_steps=50,
        batch=batch,
        learning_rate_q24=round(0.05 * 2**24),
        example_count_max=100_000,
    )
    return with_codec(rules, codec, spsa_learning_rate=SPSA_LEARNING_RATE)


def build_genesis(  # noqa: PLR0913 - what a genesis is made of
    *,
    chain_id: ChainId,
    task: TaskId,
    created_s: int,
    miners: Sequence[MinerRecord],
    registrar: PublicKey,
    params: TaskParams,
    artifact: bytes,
    model: ModelParams,
    author: PublicKey | None = None,
) -> Genesis:
    """Height 0 and version 0 of a chain, from its members, rules and model.

    With ``author`` every device and miner also demands that key's signature on the artifact.

    Raises:
        ConfigError: no miner, too many, or two with one name.
    """
    _check_names([miner.miner_id for miner in miners])
    model_bytes = wire.to_bytes(model)
    return Genesis(
        chain_id=chain_id,
        task=task,
        created_s=created_s,
        miners=tuple(miners),
        registrar=registrar,
        params=params,
        artifact_digest=sha256(artifact),
        model_root=model_root(model),
        model_digest=sha256(model_bytes),
        model_bytes=len(model_bytes),
        artifact_bytes=len(artifact),
        artifact_author=author,
    )


def found(
    plan: Plan,
    *,
    params: TaskParams,
    artifact: bytes,
    model: ModelParams,
    folds: Mapping[MinerId, Path],
    now_s: int,
    author: PublicKey | None = None,
) -> Founded:
    """Write a whole deployment below ``plan.root``.

    Args:
        plan: Names and addresses.
        params: Rules of the task.
        artifact: Bytes of the training artifact.
        model: Version 0.
        folds: Each miner's held-out examples; copied.
        now_s: Calendar time, from which certificates begin.
        author: Key that must have signed the artifact; None pins nobody.

    Raises:
        ConfigError: the folder is not empty, or a fold is missing.
        StoreError: a file cannot be written.
    """
    _check_plan(plan, folds)
    for folder in (plan.root, plan.root / "miners", *map(plan.miner_dir, plan.miners)):
        make_private_directory(folder)
    plan.root.chmod(0o700)  # an empty folder that was there may have been open to others
    authority = Authority.create(name=f"{plan.chain_id} fleet authority", now_s=now_s)
    members = [_member(plan, miner) for miner in plan.miners]
    registrar_dir = plan.root / "registrar"
    make_private_directory(registrar_dir)
    registrar = create_key(registrar_dir / "registrar.pem", Algorithm.EDDSA).public_key
    genesis = build_genesis(
        chain_id=plan.chain_id,
        task=plan.task,
        created_s=now_s,
        miners=members,
        registrar=registrar,
        params=params,
        artifact=artifact,
        model=model,
        author=author,
    )
    _write_registrar(plan, registrar_dir, authority, now_s)
    broker_config = _write_broker(plan, authority, now_s)
    contents = {
        "genesis.cbor": wire.to_bytes(genesis),
        "artifact.flm": artifact,
        "model.cbor": wire.to_bytes(model),
        "ca.pem": authority.certificate_pem,
    }
    configs = [_write_miner(plan, miner, authority, contents, folds[miner], now_s) for miner in plan.miners]
    write_file(plan.root / "genesis.cbor", contents["genesis.cbor"])
    sequencer_config = _write_sequencer(plan, members)
    _write_units(plan)
    return Founded(
        genesis=genesis,
        anchor=genesis_digest(genesis).hex(),
        miner_configs=tuple(configs),
        sequencer_config=sequencer_config,
        broker_config=broker_config,
        authority_file=registrar_dir / "ca.pem",
    )


def _check_names(names: Sequence[MinerId]) -> None:
    if not 1 <= len(names) <= MINERS_MAX or len(set(names)) < len(names):
        raise ConfigError(f"miners {', '.join(names) or 'none'}: expected 1..{MINERS_MAX} different names")


def _check_plan(plan: Plan, folds: Mapping[MinerId, Path]) -> None:
    """Before anything is written."""
    _check_names(plan.miners)
    root = plan.root
    if not root.is_absolute() or any(character.isspace() or character in "%\"'" for character in str(root)):
        raise ConfigError(f"{root}: expected an absolute path without blanks, quotes and percent signs")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"{root}: not empty: expected a new folder, nothing is overwritten")
    missing = [miner for miner in plan.miners if miner not in folds]
    if missing:
        raise ConfigError(f"miner {missing[0]} has no fold: expected one file of held-out examples for each miner")
    longest = max(len(bytes(plan.miner_dir(miner) / "abci.sock")) for miner in plan.miners)
    if longest > SOCKET_PATH_BYTES_MAX:
        surplus = longest - SOCKET_PATH_BYTES_MAX
        raise ConfigError(f"{root}: too long for the sockets below it: expected a path {surplus} characters shorter")


def _member(plan: Plan, miner_id: MinerId) -> MinerRecord:
    """Voting power counts per organisation; here every miner is one of its own."""
    signer = create_key(plan.miner_dir(miner_id) / "key.pem", Algorithm.EDDSA)
    return MinerRecord(miner_id=miner_id, key=signer.public_key, power=1, organisation=miner_id)


def _write_registrar(plan: Plan, folder: Path, authority: Authority, now_s: int) -> None:
    authority.save(folder / "ca.pem", folder / "ca-key.pem")
    key = Ed25519PrivateKey.generate()
    _write_identity(folder, "enrolment", key, authority.issue_server(_names(plan), key.public_key(), now_s=now_s))
    ClaimStore.open(folder / "claims.sqlite3").close()


def _write_broker(plan: Plan, authority: Authority, now_s: int) -> Path:
    folder = plan.root / "mosquitto"
    for private in (folder, folder / "data"):
        make_private_directory(private)
    key = Ed25519PrivateKey.generate()
    _write_identity(folder, "broker", key, authority.issue_server(_names(plan), key.public_key(), now_s=now_s))
    write_file(folder / "ca.pem", authority.certificate_pem)
    write_file(folder / "crl.pem", authority.revocation_list((), now_s=now_s))
    write_file(folder / "acl", access_list(plan.task, plan.miners).encode(), mode=PRIVATE_MODE)
    text = production_config(
        host=plan.bind,
        port=plan.broker_port,
        tls=TlsFiles(
            ca_file=folder / "ca.pem",
            cert_file=folder / "broker.pem",
            key_file=folder / "broker-key.pem",
            crl_file=folder / "crl.pem",
        ),
        acl_file=folder / "acl",
        data_dir=folder / "data",
        pid_file=folder / "mosquitto.pid",
        run_as=plan.run_as,
    )
    write_file(folder / "mosquitto.conf", text.encode())
    return folder / "mosquitto.conf"


def _write_miner(
    plan: Plan, miner_id: MinerId, authority: Authority, contents: Mapping[str, bytes], fold: Path, now_s: int
) -> Path:
    folder = plan.miner_dir(miner_id)
    for name, data in contents.items():
        write_file(folder / name, data)
    write_file(folder / "fold.npz", fold.read_bytes(), mode=PRIVATE_MODE)
    key = Ed25519PrivateKey.generate()
    _write_identity(folder, "broker", key, authority.issue_miner(miner_id, key.public_key(), now_s=now_s))
    text = miner_toml(
        MinerText(
            miner_id=miner_id,
            rpc=plan.root / "sequencer" / "rpc.sock",
            broker_host=plan.host,
            broker_port=plan.broker_port,
            http_host=plan.bind,
            http_port=plan.http_port + plan.miners.index(miner_id),
            public_url=plan.url(miner_id),
            peers={other: plan.url(other) for other in plan.miners if other != miner_id},
            enrolment=_enrolment(plan) if miner_id == plan.miners[0] else None,
        )
    )
    write_file(folder / "miner.toml", text.encode())
    return folder / "miner.toml"


def _enrolment(plan: Plan) -> dict[str, str | int | Sequence[str]]:
    """Section of the registrar's miner; the broker runs on the same machine, so its lists are written in place."""
    registrar, broker = plan.root / "registrar", plan.root / "mosquitto"
    return {
        "host": plan.bind,
        "port": plan.enrolment_port,
        "cert_file": str(registrar / "enrolment.pem"),
        "key_file": str(registrar / "enrolment-key.pem"),
        "ca_cert": str(registrar / "ca.pem"),
        "ca_key": str(registrar / "ca-key.pem"),
        "registrar_key": str(registrar / "registrar.pem"),
        "claims_db": str(registrar / "claims.sqlite3"),
        "crl_file": str(broker / "crl.pem"),
        "acl_file": str(broker / "acl"),
        "broker_pid_file": str(broker / "mosquitto.pid"),
        "device_miners": [plan.url(miner) for miner in plan.miners],
        "device_brokers": [f"mqtts://{plan.host}:{plan.broker_port}"],
    }


def _write_sequencer(plan: Plan, members: Sequence[MinerRecord]) -> Path:
    folder = plan.root / "sequencer"
    make_private_directory(folder)
    rows = [(member.miner_id, plan.miner_dir(member.miner_id) / "abci.sock", member.power) for member in members]
    text = sequencer_toml(plan.chain_id, rows, genesis=plan.root / "genesis.cbor")
    write_file(folder / "sequencer.toml", text.encode())
    return folder / "sequencer.toml"


def _write_units(plan: Plan) -> None:
    folder = plan.root / "systemd"
    make_private_directory(folder)
    program = Path(sys.executable).with_name("flchain")
    sequencer = systemd_unit(
        f"{plan.chain_id}: ordering engine",
        f"{program} sequencer run --config {plan.root / 'sequencer' / 'sequencer.toml'}",
        writable=plan.root,
    )
    miner = systemd_unit(
        f"{plan.chain_id}: miner %i",
        f"{program} miner run --config {plan.root / 'miners'}/%i/miner.toml",
        writable=plan.root,
        after=("flchain-sequencer.service", "mosquitto.service"),
    )
    write_file(folder / "flchain-sequencer.service", sequencer.encode())
    write_file(folder / "flchain-miner@.service", miner.encode())


def _write_identity(folder: Path, name: str, key: Ed25519PrivateKey, issued: Issued) -> None:
    write_file(folder / f"{name}-key.pem", private_pem(key), mode=PRIVATE_MODE)
    write_file(folder / f"{name}.pem", issued.pem)


def _names(plan: Plan) -> tuple[str, ...]:
    """Names under which a service is reached, the public one first."""
    return tuple(dict.fromkeys((plan.host, "localhost", "127.0.0.1")))
