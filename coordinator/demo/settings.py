"""Settings files of the processes: the same TOML that an operator would write by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.demo.layout import DevicePlace, MinerPlace, Role
from coordinator.demo.options import SEARCH, Options
from coordinator.enrolment.authority import miner_user
from edge_sdk.protocol.ids import ChainId, Digest, TaskId

PASSWORD_FILE: Final = "broker.password"  # noqa: S105 - a file name
CLAIM_FILE: Final = "claim"
CA_FILE: Final = "ca.pem"
IN_FLIGHT: Final = 1
"""A device waits for the outcome of its last update. With two on their way the updates of a fleet that shares one
machine are 3 to 4 versions old when they are merged, and the model swings: MNIST fell from 0.96 to 0.77 and back."""
SLOWDOWN: Final = 8.0
"""The slow device takes this many times as long for each training step."""

Setting = str | int | float | bool | list[str]


@dataclass(frozen=True, slots=True)
class Office:
    """Files of the registrar."""

    folder: Path

    @property
    def ca_cert(self) -> Path:
        """Certificate that devices pin."""
        return self.folder / CA_FILE

    @property
    def ca_key(self) -> Path:
        """Its key."""
        return self.folder / "ca.key"

    @property
    def server_cert(self) -> Path:
        """Certificate of the enrolment endpoint."""
        return self.folder / "server.pem"

    @property
    def server_key(self) -> Path:
        """Its key."""
        return self.folder / "server.key"

    @property
    def claims(self) -> Path:
        """Claims and members."""
        return self.folder / "claims.sqlite3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the files have in common."""

    options: Options
    chain_id: ChainId
    task: TaskId
    genesis_digest: Digest
    miners: tuple[MinerPlace, ...]
    broker_port: int
    enrolment_port: int
    office: Office
    rpc: Path
    is_mqtt5: bool
    """Whether the broker speaks MQTT 5; asking one that does not costs seconds per connection."""


def sequencer_toml(context: Context) -> str:
    """``sequencer.toml``."""
    first = context.miners[0]
    tables = [
        _table(
            "[sequencer]",
            chain_id=context.chain_id,
            genesis_file=str(first.folder / "genesis.cbor"),
            log="log.sqlite3",
            rpc=str(context.rpc),
        )
    ]
    tables += [_table("[[miners]]", id=miner.miner_id, abci=str(miner.abci), power=1) for miner in context.miners]
    return "\n".join(tables)


def miner_toml(context: Context, miner: MinerPlace) -> str:
    """``miner.toml``; the first miner is also the registrar's."""
    host, _, port = miner.url.removeprefix("http://").partition(":")
    tables = [
        _table("[miner]", id=miner.miner_id),
        _table("[ordering]", abci=f"unix:{miner.abci}", rpc=f"unix:{context.rpc}"),
        _broker(context, miner_user(miner.miner_id)),
        _table("[http]", host=host, port=int(port)),
        _table("[peers]", **{peer.miner_id: peer.url for peer in context.miners if peer is not miner}),
        _table("[validation]", fold_file="fold.npz"),
    ]
    if miner is context.miners[0]:
        tables.append(_enrolment(context))
    return "\n".join(tables)


def device_toml(context: Context, device: DevicePlace) -> str:
    """``device.toml``."""
    options = context.options
    is_slow = device.role is Role.SLOW
    is_hostile = device.role is Role.HOSTILE
    return "\n".join(
        (
            _table(
                "[device]",
                id=device.device_id,
                task=context.task,
                data=device.data.name,
                work_dir=".",
                slowdown=SLOWDOWN if is_slow else 1.0,
                seed=options.seed,
                claim_file=CLAIM_FILE,
            ),
            _table("[trust]", genesis_digest=context.genesis_digest.hex()),
            _table(
                "[enrolment]",
                url=f"https://127.0.0.1:{context.enrolment_port}",
                ca_file=CA_FILE,
            ),
            _broker(context, device.device_id),
            _table("[miners]", urls=[miner.url for miner in context.miners]),
            _table("[training]", in_flight=IN_FLIGHT, **_personal(options)),
            _table("[board]", profile=options.board),
            _table("[behaviour]", byzantine=options.byzantine.kind if is_hostile else ""),
        )
    )


def _personal(options: Options) -> dict[str, Setting]:
    if options.personal is None:
        return {}
    if options.personal == SEARCH:
        return {"personal_search": True}
    return {"personal_alpha": options.personal}


def _broker(context: Context, user: str) -> str:
    return _table(
        "[[broker]]",
        host="127.0.0.1",
        port=context.broker_port,
        protocol="auto" if context.is_mqtt5 else "3.1.1",
        username=user,
        password_file=PASSWORD_FILE,
    )


def _enrolment(context: Context) -> str:
    office = context.office
    return _table(
        "[enrolment]",
        host="127.0.0.1",
        port=context.enrolment_port,
        cert_file=str(office.server_cert),
        key_file=str(office.server_key),
        ca_cert=str(office.ca_cert),
        ca_key=str(office.ca_key),
        registrar_key=str(office.folder / "registrar.pem"),
        claims_db=str(office.claims),
        crl_file=str(office.folder / "crl.pem"),
        device_miners=[miner.url for miner in context.miners],
        device_brokers=[f"mqtt://127.0.0.1:{context.broker_port}"],
    )


def _table(header: str, **values: Setting) -> str:
    return "\n".join((header, *_lines(values))) + "\n"


def _lines(values: Mapping[str, Setting]) -> list[str]:
    # JSON's texts, numbers, booleans and lists are written alike in TOML.
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
