"""Files of a deployment as text: settings of miners and sequencer, and units for systemd."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SERVICE_USER: Final = "flchain"


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerText:
    """What ``miner.toml`` of one miner says."""

    miner_id: str
    rpc: Path
    broker_host: str
    broker_port: int
    http_host: str
    http_port: int
    public_url: str
    peers: Mapping[str, str]
    enrolment: Mapping[str, str | int | Sequence[str]] | None


def miner_toml(miner: MinerText) -> str:
    """Settings of one miner; paths are relative to its file."""
    lines = [
        "# Settings of one miner; every key with its unit and default: examples/miner.toml.",
        "[miner]",
        f"id = {_value(miner.miner_id)}",
        'key_file = "key.pem"',
        'genesis_file = "genesis.cbor"',
        'artifact_file = "artifact.flm"',
        'model_file = "model.cbor"',
        "",
        "[ordering]",
        'abci = "unix:abci.sock"',
        f"rpc = {_value(f'unix:{miner.rpc}')}",
        "",
        "[[broker]]",
        f"host = {_value(miner.broker_host)}",
        f"port = {miner.broker_port}",
        "tls = true",
        'ca_file = "ca.pem"',
        'cert_file = "broker.pem"',
        'key_file = "broker-key.pem"',
        "",
        "[http]",
        f"host = {_value(miner.http_host)}",
        f"port = {miner.http_port}",
        f"public_url = {_value(miner.public_url)}",
        "",
        "[validation]",
        'fold_file = "fold.npz"',
    ]
    if miner.peers:
        lines += ["", "[peers]", *(f"{peer} = {_value(url)}" for peer, url in miner.peers.items())]
    if miner.enrolment is not None:
        lines += ["", "[enrolment]", *(f"{key} = {_value(value)}" for key, value in miner.enrolment.items())]
    return "\n".join(lines) + "\n"


def sequencer_toml(chain_id: str, miners: Sequence[tuple[str, Path, int]], *, genesis: Path) -> str:
    """Settings of the ordering engine.

    Args:
        chain_id: As in the genesis.
        miners: Id, ABCI socket and voting power of each miner.
        genesis: The genesis file.
    """
    lines = [
        "# Settings of the ordering engine of one machine; every key: examples/sequencer.toml.",
        "[sequencer]",
        f"chain_id = {_value(chain_id)}",
        f"genesis_file = {_value(str(genesis))}",
        'log = "log.sqlite3"',
        'rpc = "rpc.sock"',
    ]
    for miner_id, abci, power in miners:
        lines += ["", "[[miners]]", f"id = {_value(miner_id)}", f"abci = {_value(str(abci))}", f"power = {power}"]
    return "\n".join(lines) + "\n"


def systemd_unit(description: str, command: str, *, writable: Path, after: Sequence[str] = ()) -> str:
    """A unit that restarts its service and lets it write nothing but its own folder.

    Args:
        description: One line.
        command: With an absolute path to ``flchain``; secrets are in files that it names, never in it.
        writable: Folder of the service.
        after: Units that should be started before.
    """
    ordering = " ".join(("network-online.target", *after))
    return "\n".join(
        (
            "[Unit]",
            f"Description={description}",
            f"After={ordering}",
            "Wants=network-online.target",
            "",
            "[Service]",
            f"User={SERVICE_USER}",
            f"ExecStart={command}",
            "Restart=always",
            "RestartSec=2",
            "TimeoutStopSec=30",
            "UMask=0077",
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "ProtectHome=yes",
            "PrivateTmp=yes",
            "PrivateDevices=yes",
            "ProtectKernelTunables=yes",
            "ProtectControlGroups=yes",
            "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
            f"ReadWritePaths={writable}",
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        )
    )


def _value(value: str | int | Sequence[str]) -> str:
    """A TOML value; a JSON string or list of strings is one."""
    return json.dumps(value if isinstance(value, str | int) else list(value), ensure_ascii=False)
