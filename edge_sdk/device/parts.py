"""The parts of a device process, opened from its configuration in the order in which they need each other."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from edge_sdk.adapters.board_sensors import BoardSensors
from edge_sdk.adapters.durable_files import make_private_directory, read_file
from edge_sdk.adapters.health_file import HealthFile
from edge_sdk.adapters.http_blobs import HttpBlobs
from edge_sdk.adapters.keys import load_signer
from edge_sdk.adapters.outbox import Outbox
from edge_sdk.adapters.quiet import TrainingLock
from edge_sdk.adapters.run_record import RunRecord
from edge_sdk.adapters.slots import Slots
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.device.config import DeviceConfig
from edge_sdk.device.job import Trainers
from edge_sdk.energy.meters import open_meter
from edge_sdk.errors import ConfigError
from edge_sdk.ports import Clock
from edge_sdk.protocol.cose import Signer
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.limits import ENVELOPE_BYTES_MAX
from edge_sdk.protocol.messages import Genesis
from edge_sdk.protocol.wire import from_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What loop and tasks share."""

    config: DeviceConfig
    genesis: Genesis
    clock: Clock
    signer: Signer
    outbox: Outbox
    slots: Slots
    trainers: Trainers
    http: HttpBlobs
    record: RunRecord
    sensors: BoardSensors
    training_lock: TrainingLock
    health: HealthFile
    stopping: threading.Event


def load_genesis(config: DeviceConfig) -> Genesis:
    """Read the trust anchor and hold it against the configuration.

    Raises:
        ConfigError: there is none, or it is not the expected one.
        DecodeError: it is not a genesis.
    """
    data = read_file(config.genesis_file, bytes_max=ENVELOPE_BYTES_MAX)
    if data is None:
        raise ConfigError(f"{config.path}: [trust] genesis_file = {config.genesis_file}: expected a file; enrol first")
    if config.genesis_digest is not None and sha256(data) != config.genesis_digest:
        raise ConfigError(
            f"{config.path}: [trust] genesis_digest = {config.genesis_digest.hex()}: expected {sha256(data).hex()},"
            f" the SHA-256 of {config.genesis_file}"
        )
    genesis = from_bytes(Genesis, data)
    if genesis.task != config.task:
        raise ConfigError(
            f"{config.path}: [device] task = {config.task!r}: expected {genesis.task!r}, as in the genesis"
        )
    return genesis


def open_parts(config: DeviceConfig) -> Parts:
    """Open everything; nothing is connected and nothing heavy is imported.

    Raises:
        ConfigError: the configuration and the files do not fit together.
        StoreError: a file cannot be used.
    """
    make_private_directory(config.work_dir)
    genesis = load_genesis(config)
    signer = load_signer(config.key_file)
    clock, stopping = SystemClock(), threading.Event()
    outbox = Outbox.open(config.outbox_file, device_id=config.device_id, chain_id=genesis.chain_id, task=genesis.task)
    return Parts(
        config=config,
        genesis=genesis,
        clock=clock,
        signer=signer,
        outbox=outbox,
        slots=Slots(config.slots_dir),
        trainers=Trainers(config, genesis, stopping=stopping),
        http=HttpBlobs(ca_file=config.miner_ca_file, stopping=stopping),
        record=RunRecord(config.record_file, clock=clock, meter=open_meter(config.meter, config.board_profile)),
        sensors=BoardSensors(metered_file=config.metered_file),
        training_lock=TrainingLock(config.work_dir),
        health=HealthFile(config.work_dir),
        stopping=stopping,
    )
