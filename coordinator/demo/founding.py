"""Founds the fleet: keys, certificate authority, genesis, claims and broker users; ``settings`` writes them down."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.broker import mosquitto
from coordinator.broker.child import BrokerProcess
from coordinator.broker.local import BrokerKind, installed_kind, make_passwords, prepare_local
from coordinator.broker.ports import free_port
from coordinator.codec_choice import with_codec
from coordinator.demo import settings
from coordinator.demo.layout import DevicePlace, MinerPlace, place_devices, place_miners
from coordinator.demo.material import Material, write_examples
from coordinator.demo.options import Options
from coordinator.demo.workspace import Workspace
from coordinator.enrolment.authority import Authority, miner_user, private_pem
from coordinator.enrolment.claims import ClaimStore
from coordinator.setup import build_genesis
from coordinator.task_form import fit_task
from edge_sdk.adapters.durable_files import PRIVATE_MODE, make_private_directory, write_file
from edge_sdk.adapters.keys import create_key
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.errors import ConfigError
from edge_sdk.protocol import wire
from edge_sdk.protocol.digest import genesis_digest
from edge_sdk.protocol.ids import ChainId, TaskId
from edge_sdk.protocol.messages import Algorithm, Codec, Genesis, MinerRecord, TaskParams

PHASE_S: Final = 3.0
"""Patience of a miner with a commit or reveal phase; scoring takes a fraction of it."""
REVEAL_EXTENSIONS: Final = 3
EXPIRY_HEIGHTS: Final = 20_000
CERTIFICATE_TTL_S: Final = 86_400
CLAIM_TTL_S: Final = 3_600
Q16: Final = 1 << 16
Q24: Final = 1 << 24
MILLI: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Everything that stands before the first process starts."""

    options: Options
    workspace: Workspace
    material: Material
    genesis: Genesis
    miners: tuple[MinerPlace, ...]
    devices: tuple[DevicePlace, ...]
    sequencer_config: Path
    broker: BrokerProcess
    broker_kind: BrokerKind


def choose_broker(option: str) -> BrokerKind:
    """The broker that the option asks for.

    Raises:
        ConfigError: it is not installed.
    """
    if option == "auto":
        return installed_kind()
    if option == "mosquitto" and mosquitto.find_executable() is None:
        raise ConfigError("--broker mosquitto: it is not installed: expected mosquitto in PATH, or --broker embedded")
    return BrokerKind.MOSQUITTO if option == "mosquitto" else BrokerKind.AMQTT


def found(options: Options, workspace: Workspace, material: Material, broker_kind: BrokerKind) -> Fleet:
    """Write every file that the processes need.

    Raises:
        StoreError: the disk refuses.
    """
    miners = place_miners(workspace, [free_port() for _ in range(options.miners)])
    devices = place_devices(options, workspace)
    for folder in (*(miner.folder for miner in miners), *(device.folder for device in devices)):
        make_private_directory(folder)
    write_examples(material, miners, devices)
    genesis = _genesis(options, workspace, material, miners)
    for miner in miners:
        write_file(miner.folder / "genesis.cbor", wire.to_bytes(genesis))
        write_file(miner.folder / "artifact.flm", material.artifact.data)
        write_file(miner.folder / "model.cbor", wire.to_bytes(material.params))
    write_file(workspace.root / "genesis.cbor", wire.to_bytes(genesis))

    users = make_passwords([*(miner_user(miner.miner_id) for miner in miners), *(one.device_id for one in devices)])
    broker = prepare_local(
        broker_kind,
        workspace.root / "broker",
        port=free_port(),
        users=users,
        task=genesis.task,
        miners=[miner.miner_id for miner in miners],
    )
    for miner in miners:
        _write_password(miner.folder, users[miner_user(miner.miner_id)])
    for device in devices:
        _write_password(device.folder, users[device.device_id])

    office = _open_office(workspace, devices)
    context = settings.Context(
        options=options,
        chain_id=genesis.chain_id,
        task=genesis.task,
        genesis_digest=genesis_digest(genesis),
        miners=miners,
        broker_port=broker.port,
        enrolment_port=free_port(),
        office=office,
        rpc=workspace.socket("rpc.sock"),
        is_mqtt5=broker_kind is BrokerKind.MOSQUITTO,
    )
    for miner in miners:
        write_file(miner.config, settings.miner_toml(context, miner).encode())
    for device in devices:
        write_file(device.config, settings.device_toml(context, device).encode())
    sequencer_config = workspace.root / "sequencer" / "sequencer.toml"
    write_file(sequencer_config, settings.sequencer_toml(context).encode())
    return Fleet(
        options=options,
        workspace=workspace,
        material=material,
        genesis=genesis,
        miners=miners,
        devices=devices,
        sequencer_config=sequencer_config,
        broker=broker,
        broker_kind=broker_kind,
    )


def _genesis(options: Options, workspace: Workspace, material: Material, miners: Sequence[MinerPlace]) -> Genesis:
    registrar = create_key(workspace.root / "ca" / "registrar.pem", Algorithm.EDDSA)
    records = tuple(
        MinerRecord(
            miner_id=miner.miner_id,
            key=create_key(miner.folder / "key.pem", Algorithm.EDDSA).public_key,
            power=1,
            organisation=f"organisation-{number}",
        )
        for number, miner in enumerate(miners, start=1)
    )
    return build_genesis(
        chain_id=ChainId(f"demo-{options.dataset}-{secrets.token_hex(4)}"),
        task=TaskId(options.dataset),
        created_s=SystemClock().time_s(),
        miners=records,
        registrar=registrar.public_key,
        params=fit_task(_rules(options, material), material.artifact),
        artifact=material.artifact.data,
        model=material.params,
        author=material.artifact.author,
    )


def _rules(options: Options, material: Material) -> TaskParams:
    preset = options.preset
    rules = TaskParams(
        block_size=options.block_size,
        tau_ms=round(options.tau_s * MILLI),
        phase_ms=round(PHASE_S * MILLI),
        reveal_extensions_max=REVEAL_EXTENSIONS,
        staleness_max=preset.staleness_max,
        margin_permille=preset.margin_permille,
        method="fedbuff",
        server_rate_q16=Q16,
        clip_norm_q16=round(preset.clip_norm * Q16),
        codec=Codec.INT8_DENSE,
        expiry_heights=EXPIRY_HEIGHTS,
        certificate_ttl_s=CERTIFICATE_TTL_S,
        local_steps=preset.local_steps,
        batch=material.artifact.batch,
        learning_rate_q24=round(preset.learning_rate * Q24),
        example_count_max=len(material.data.y_train),
    )
    return with_codec(rules, options.codec, spsa_learning_rate=preset.spsa_learning_rate)


def _open_office(workspace: Workspace, devices: Sequence[DevicePlace]) -> settings.Office:
    """Certificate authority, endpoint certificate and one claim per device."""
    folder, now_s = workspace.root / "ca", SystemClock().time_s()
    office = settings.Office(folder)
    authority = Authority.create(name="flchain demo", now_s=now_s)
    authority.save(office.ca_cert, office.ca_key)
    key = Ed25519PrivateKey.generate()
    write_file(office.server_key, private_pem(key), mode=PRIVATE_MODE)
    write_file(office.server_cert, authority.issue_server(["127.0.0.1"], key.public_key(), now_s=now_s).pem)
    claims = ClaimStore.open(office.claims)
    try:
        for device in devices:
            token = claims.issue_claim(device.device_id, now_s=now_s, ttl_s=CLAIM_TTL_S)
            write_file(device.folder / settings.CLAIM_FILE, token.encode(), mode=PRIVATE_MODE)
            # Each board is given the authority that it pins before it has anything else.
            write_file(device.folder / settings.CA_FILE, authority.certificate_pem)
    finally:
        claims.close()
    return office


def _write_password(folder: Path, password: str) -> None:
    write_file(folder / settings.PASSWORD_FILE, password.encode(), mode=PRIVATE_MODE)
