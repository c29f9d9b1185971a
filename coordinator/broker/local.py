"""The broker of a fleet on one machine: mosquitto where it is installed, else the embedded one; same rules for both."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from coordinator.broker import mosquitto
from coordinator.broker.access import access_list
from coordinator.broker.child import BrokerProcess
from edge_sdk.protocol.ids import MinerId, TaskId

PASSWORD_BYTES: Final = 32


class BrokerKind(StrEnum):
    """Which broker runs on this machine."""

    MOSQUITTO = "mosquitto"
    AMQTT = "amqtt"


def installed_kind() -> BrokerKind:
    """The better one of those that are there."""
    return BrokerKind.AMQTT if mosquitto.find_executable() is None else BrokerKind.MOSQUITTO


def make_passwords(users: Iterable[str]) -> dict[str, str]:
    """A random password for each user name; those of miners are ``miner_user(id)``, those of devices their id."""
    return {user: secrets.token_urlsafe(PASSWORD_BYTES) for user in users}


def prepare_local(  # the arguments are the broker
    kind: BrokerKind,
    work_dir: Path,
    *,
    port: int,
    users: Mapping[str, str],
    task: TaskId,
    miners: Sequence[MinerId],
    durable: bool = True,
) -> BrokerProcess:
    """Prepare a broker on 127.0.0.1 for one task; ``start`` of the result runs it.

    Args:
        kind: mosquitto or amqtt.
        work_dir: For its files, made for this user only.
        port: Free TCP port.
        users: Passwords by user name.
        task: The task whose topics it carries.
        miners: The miner set.
        durable: Whether mosquitto keeps sessions and retained messages over a restart; amqtt never does.
    """
    if kind is BrokerKind.MOSQUITTO:
        acl = access_list(task, miners)
        return mosquitto.prepare_loopback(work_dir, port=port, users=users, acl=acl, durable=durable)
    from coordinator.broker import embedded  # needs amqtt, which only machines without mosquitto need

    return embedded.prepare(work_dir, port=port, users=users, task=task)
