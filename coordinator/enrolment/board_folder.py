"""The folder that a board starts with: its settings, claim and trust anchors, ready to be copied to it.

Nothing in it was made for more than one board, and its only secret is the single-use claim.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from coordinator.config import MinerConfig
from coordinator.enrolment.config import EnrolmentConfig
from edge_sdk.adapters.durable_files import PRIVATE_MODE, read_file, write_file
from edge_sdk.errors import ConfigError
from edge_sdk.protocol import wire
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX
from edge_sdk.protocol.messages import Genesis

FOLDER_MODE: Final = 0o700
SETTINGS: Final = "device.toml"
CLAIM: Final = "claim.txt"
AUTHORITY_BYTES_MAX: Final = 64 * 1024


def write_board_folder(
    folder: Path, device_id: DeviceId, token: str, *, config: MinerConfig, enrolment: EnrolmentConfig, genesis: Genesis
) -> None:
    """Write ``device.toml``, ``claim.txt``, ``ca.pem``, ``genesis.cbor`` and ``artifact.flm``.

    Raises:
        ConfigError: the folder exists, the registrar's miner tells devices of no broker, or one of its files is gone.
        StoreError: the disk refuses.
    """
    if folder.exists():
        raise ConfigError(f"--folder {folder}: exists already: expected a new folder")
    if not enrolment.device_brokers:
        raise ConfigError("[enrolment] device_brokers = nothing: expected the brokers that boards are told")
    files = {
        SETTINGS: device_toml(device_id, config=config, enrolment=enrolment, genesis=genesis).encode(),
        "ca.pem": _required(enrolment.ca_cert, AUTHORITY_BYTES_MAX),
        "genesis.cbor": wire.to_bytes(genesis),
        "artifact.flm": _required(config.artifact_file, ARTIFACT_BYTES_MAX),
        CLAIM: f"{token}\n".encode(),
    }
    folder.mkdir(mode=FOLDER_MODE, parents=True)
    for name, content in files.items():
        write_file(folder / name, content, mode=PRIVATE_MODE)


def device_toml(device_id: DeviceId, *, config: MinerConfig, enrolment: EnrolmentConfig, genesis: Genesis) -> str:
    """Settings of one board; paths are relative to the file."""
    lines = [
        "# Settings of one board; every key with its unit and default: examples/device.toml.",
        "[device]",
        f"id = {_text(device_id)}",
        f"task = {_text(genesis.task)}",
        "# Put the board's examples here: an .npz with arrays x and y.",
        'data = "data.npz"',
        f"claim_file = {_text(CLAIM)}",
        "",
        "[trust]",
        f"genesis_digest = {_text(sha256(wire.to_bytes(genesis)).hex())}",
        "",
        "[enrolment]",
        f"url = {_text(_enrolment_url(config, enrolment))}",
    ]
    for broker in enrolment.device_brokers:
        lines += ["", "[[broker]]", f"host = {_text(broker.host)}", f"port = {broker.port}"]
        if broker.tls:
            lines += ["tls = true", 'ca_file = "ca.pem"', 'cert_file = "cert.pem"', 'key_file = "key.pem"']
    lines += ["", "[miners]", f"urls = [{', '.join(_text(url) for url in enrolment.device_miners)}]"]
    return "\n".join(lines) + "\n"


def _enrolment_url(config: MinerConfig, enrolment: EnrolmentConfig) -> str:
    """The registrar answers where its miner does; the address that it listens on may be one that nobody can reach."""
    host = urlsplit(config.public_url).hostname or enrolment.host
    return f"https://{f'[{host}]' if ':' in host else host}:{enrolment.port}"


def _required(path: Path, bytes_max: int) -> bytes:
    content = read_file(path, bytes_max=bytes_max)
    if content is None:
        raise ConfigError(f"{path}: no such file: expected what miner.toml names")
    return content


def _text(value: str) -> str:
    """A TOML basic string; JSON's escapes are a part of TOML's."""
    return json.dumps(value)
