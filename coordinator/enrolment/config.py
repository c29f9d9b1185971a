"""Settings of the registrar: the ``[enrolment]`` section of one miner's ``miner.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk.config import Key, Kind, Section, Table
from edge_sdk.errors import ConfigError

_PORT_MAX: Final = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """A broker as devices are told of it."""

    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentConfig:
    """The registrar's TLS endpoint and files; only one miner has them."""

    host: str
    port: int
    cert_file: Path
    key_file: Path
    ca_cert: Path
    ca_key: Path
    registrar_key: Path
    claims_db: Path
    crl_file: Path
    acl_file: Path | None
    """Access list of the broker, rewritten at a revocation; None where another tool keeps it."""
    broker_pid_file: Path | None
    """Process that reloads certificate revocations and access list at SIGHUP; None: the operator reloads it."""
    certificate_days: int
    device_miners: tuple[str, ...]
    """HTTP addresses that devices are told, in order of preference."""
    device_brokers: tuple[BrokerAddress, ...]
    """Brokers that devices are told, in order of preference."""


SECTION: Final = Section(
    "enrolment",
    "Only on the registrar's miner: TLS endpoint for new devices. Without a port it is off.",
    (
        Key("host", Kind.TEXT, "Address to listen on.", default="127.0.0.1", minimum=1),
        Key("port", Kind.INTEGER, "TCP port.", default=None, minimum=1, maximum=_PORT_MAX),
        Key("cert_file", Kind.PATH, "Certificate of this endpoint, PEM.", default=None),
        Key("key_file", Kind.PATH, "Its key, PEM, mode 0600.", default=None),
        Key("ca_cert", Kind.PATH, "Certificate authority of the fleet, PEM.", default=None),
        Key("ca_key", Kind.PATH, "Its key, PEM, mode 0600.", default=None),
        Key("registrar_key", Kind.PATH, "Key that genesis names as the registrar's, PEM, mode 0600.", default=None),
        Key("claims_db", Kind.PATH, "Single-use claims and issued certificates, SQLite.", default=None),
        Key("crl_file", Kind.PATH, "Revoked certificates, PEM, read by the broker.", default=None),
        Key("acl_file", Kind.PATH, "Access list of the broker; empty: kept by another tool.", default=None),
        Key("broker_pid_file", Kind.PATH, "Broker that is told to reload; empty: reload it yourself.", default=None),
        Key(
            "certificate_days",
            Kind.INTEGER,
            "Life of a device certificate.",
            default=60,
            unit="days",
            minimum=1,
            maximum=90,
        ),
        Key("device_miners", Kind.TEXTS, "Miners' HTTP addresses that devices are told, in order.", default=()),
        Key("device_brokers", Kind.TEXTS, "Brokers that devices are told: mqtts://HOST:PORT, in order.", default=()),
    ),
)


def read_enrolment(table: Table, path: Path) -> EnrolmentConfig | None:
    """Check the section of ``path``; None where it is switched off.

    Raises:
        ConfigError: a port is set and another key is missing or wrong.
    """
    port = table.integer_or_none("port")
    if port is None:
        return None

    def required(key: str) -> Path:
        value = table.path_or_none(key)
        if value is None:
            raise ConfigError(f"{path}: [enrolment] {key} = nothing: expected a path, since a port is set")
        return value

    return EnrolmentConfig(
        host=table.text("host"),
        port=port,
        cert_file=required("cert_file"),
        key_file=required("key_file"),
        ca_cert=required("ca_cert"),
        ca_key=required("ca_key"),
        registrar_key=required("registrar_key"),
        claims_db=required("claims_db"),
        crl_file=required("crl_file"),
        acl_file=table.path_or_none("acl_file"),
        broker_pid_file=table.path_or_none("broker_pid_file"),
        certificate_days=table.integer("certificate_days"),
        device_miners=table.texts("device_miners"),
        device_brokers=tuple(_broker(text, path) for text in table.texts("device_brokers")),
    )


def _broker(text: str, path: Path) -> BrokerAddress:
    scheme, _, address = text.partition("://")
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= _PORT_MAX
    if scheme not in {"mqtt", "mqtts"} or not host or not is_port:
        raise ConfigError(f"{path}: [enrolment] device_brokers = {text[:60]!r}: expected mqtts://HOST:PORT")
    return BrokerAddress(host=host.strip("[]"), port=int(port), tls=scheme == "mqtts")
