"""The broker for machines without mosquitto: amqtt in a child process, on loopback, users from a password file.

For demonstrations and tests only. It takes MQTT 3.1.1 alone, has no bound on packets or queues, keeps nothing over a
restart, and grants ``$share`` without ever delivering. Its durable sessions exist only for users with a name,
so nobody is; the access rules are those of mosquitto's list.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pwdlib.hashers.argon2 import Argon2Hasher

from coordinator.broker.child import BrokerProcess
from edge_sdk.adapters.durable_files import PRIVATE_MODE, make_private_directory, write_file
from edge_sdk.protocol.ids import TaskId

CONNECTIONS_MAX: Final = 512

# The passwords are 256 random bits: nothing can search for them, so the hash need not be slow. With argon2's defaults
# each connection would cost 64 MiB and 50 ms of the broker's only thread.
_HASHER: Final = Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1)


def prepare(work_dir: Path, *, port: int, users: Mapping[str, str], task: TaskId) -> BrokerProcess:
    """Write configuration and password file for a broker that ``start`` of the result runs.

    Args:
        work_dir: For configuration and log; made for this user only.
        port: Free TCP port.
        users: Passwords by user name, 256 random bits each.
        task: The task whose topics the broker carries.
    """
    make_private_directory(work_dir)
    password_file, config_file = work_dir / "passwords", work_dir / "amqtt.json"
    lines = "".join(f"{user}:{_HASHER.hash(password)}\n" for user, password in users.items())
    write_file(password_file, lines.encode(), mode=PRIVATE_MODE)
    write_file(config_file, json.dumps(_config(port, password_file, task)).encode(), mode=PRIVATE_MODE)
    command = [sys.executable, "-m", "coordinator.broker.amqtt_child", str(config_file)]
    return BrokerProcess("amqtt", command, host="127.0.0.1", port=port, log_file=work_dir / "amqtt.log")


def _config(port: int, password_file: Path, task: TaskId) -> dict[str, Any]:
    listener = {"type": "tcp", "bind": f"127.0.0.1:{port}", "max_connections": CONNECTIONS_MAX}
    plugins = {
        "amqtt.plugins.authentication.FileAuthPlugin": {"password_file": str(password_file)},
        "coordinator.broker.amqtt_child.OwnBranch": {"task": task},
    }
    return {"listeners": {"default": listener}, "plugins": plugins}
