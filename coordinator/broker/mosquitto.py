"""mosquitto: its configuration as text, and a broker as a child process.

Two shapes. Production: mutual TLS, the common name of the client's certificate is its user name, a revocation list, and
an access list. Loopback (demonstration, tests): password file instead of TLS, the same access list.

Limits are ours, not the defaults: mosquitto 2.0 takes packets of 256 MB, and it drops queued messages silently, with a
successful acknowledgement. Receipts make that safe; the bounds make it rare.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.broker.child import BrokerProcess
from edge_sdk.adapters.durable_files import PRIVATE_MODE, make_private_directory, write_file
from edge_sdk.errors import ConfigError, ConnectError
from edge_sdk.protocol.limits import CHUNK_MESSAGE_BYTES_MAX, ENVELOPE_BYTES_MAX

PACKET_BYTES_MAX: Final = max(CHUNK_MESSAGE_BYTES_MAX, ENVELOPE_BYTES_MAX) + 1_024
"""Largest MQTT packet: the largest message of the contract with its topic and header."""
QUEUED_MESSAGES_MAX: Final = 20_000
"""Per client that is away or slow. A miner that restarts finds this much waiting."""
QUEUED_BYTES_MAX: Final = 256 * 1024 * 1024
INFLIGHT_MAX: Final = 64
CONNECTIONS_MAX: Final = 4_096
SESSION_DAYS: Final = 7
"""Durable sessions of clients that never return are forgotten."""
AUTOSAVE_S: Final = 30

# Password file of mosquitto 2.0: user:$7$iterations$salt$hash, PBKDF2 with SHA-512.
_HASH_ITERATIONS: Final = 101  # mosquitto's own number; the passwords here are 256 random bits
_SALT_BYTES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """What mutual TLS needs, all in PEM."""

    ca_file: Path
    cert_file: Path
    key_file: Path
    crl_file: Path


def find_executable() -> Path | None:
    """The installed mosquitto; Debian puts it where users do not look."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    return None if found is None else Path(found)


def production_config(
    *, host: str, port: int, tls: TlsFiles, acl_file: Path, data_dir: Path, pid_file: Path, run_as: str
) -> str:
    """Text of ``mosquitto.conf`` for mutual TLS.

    Args:
        host: Address to listen on.
        port: TCP port, usually 8883.
        tls: Certificates; the revocation list must exist, it may be empty.
        acl_file: Written by ``access_list``.
        data_dir: Snapshots of retained messages and durable sessions.
        pid_file: Lets a revocation ask the broker to reload.
        run_as: User that mosquitto becomes when it is started as root; it must be able to read the files above.
    """
    return _lines(
        "# Written by flchain: mutual TLS, one name per certificate, bounded queues.",
        f"listener {port} {host}",
        f"cafile {tls.ca_file}",
        f"certfile {tls.cert_file}",
        f"keyfile {tls.key_file}",
        f"crlfile {tls.crl_file}",
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
        "allow_anonymous false",
        f"acl_file {acl_file}",
        f"user {run_as}",
        *_limits(),
        *_persistence(data_dir),
        f"pid_file {pid_file}",
    )


def loopback_config(*, port: int, password_file: Path, acl_file: Path, data_dir: Path | None, run_as: str) -> str:
    """Text of ``mosquitto.conf`` for one machine: password file, 127.0.0.1 only; without ``data_dir`` all in memory."""
    return _lines(
        "# Written by flchain: this machine only, users from a password file.",
        f"listener {port} 127.0.0.1",
        "allow_anonymous false",
        f"password_file {password_file}",
        f"acl_file {acl_file}",
        f"user {run_as}",
        *_limits(),
        *(("persistence false",) if data_dir is None else _persistence(data_dir)),
    )


def password_line(user: str, password: str) -> str:
    """One line of mosquitto's password file."""
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _HASH_ITERATIONS)
    return f"{user}:$7${_HASH_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"


def prepare(config: str, *, work_dir: Path, port: int, host: str = "127.0.0.1") -> BrokerProcess:
    """Write a configuration for a mosquitto that ``start`` of the result runs.

    Raises:
        ConnectError: mosquitto is not installed.
    """
    executable = find_executable()
    if executable is None:
        raise ConnectError("mosquitto is not installed")
    config_file = work_dir / "mosquitto.conf"
    write_file(config_file, config.encode(), mode=PRIVATE_MODE)
    command = [str(executable), "-c", str(config_file)]
    return BrokerProcess("mosquitto", command, host=host, port=port, log_file=work_dir / "mosquitto.log")


def prepare_loopback(work_dir: Path, *, port: int, users: Mapping[str, str], acl: str, durable: bool) -> BrokerProcess:
    """Prepare a loopback broker; ``start`` of the result runs it.

    Args:
        work_dir: For configuration, log and, if ``durable``, snapshots; made for this user only.
        port: Free TCP port.
        users: Passwords by user name.
        acl: Text of the access list.
        durable: Whether retained messages and sessions survive a restart of the broker.
    """
    make_private_directory(work_dir)
    password_file, acl_file = work_dir / "passwords", work_dir / "acl"
    lines = "".join(password_line(user, password) for user, password in users.items())
    write_file(password_file, lines.encode(), mode=PRIVATE_MODE)
    write_file(acl_file, acl.encode(), mode=PRIVATE_MODE)
    config = loopback_config(
        port=port,
        password_file=password_file,
        acl_file=acl_file,
        data_dir=work_dir if durable else None,
        run_as=getpass.getuser(),
    )
    return prepare(config, work_dir=work_dir, port=port)


def _limits() -> tuple[str, ...]:
    return (
        f"max_packet_size {PACKET_BYTES_MAX}",
        f"max_queued_messages {QUEUED_MESSAGES_MAX}",
        f"max_queued_bytes {QUEUED_BYTES_MAX}",
        f"max_inflight_messages {INFLIGHT_MAX}",
        f"max_connections {CONNECTIONS_MAX}",
        f"persistent_client_expiration {SESSION_DAYS}d",
        "max_keepalive 3600",
        "set_tcp_nodelay true",
        "connection_messages false",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
    )


def _persistence(data_dir: Path) -> tuple[str, ...]:
    return (
        "persistence true",
        f"persistence_location {_directory(data_dir)}",
        f"autosave_interval {AUTOSAVE_S}",
    )


def _directory(path: Path) -> str:
    """Mosquitto joins directory and file name without a slash of its own."""
    return f"{path}/"


def _lines(*lines: str) -> str:
    """Join; a line break inside a value would be a setting that nobody wrote."""
    for line in lines:
        if "\n" in line or "\r" in line:
            raise ConfigError(f"a value of mosquitto.conf has a line break: {line!r}")
    return "\n".join(lines) + "\n"
