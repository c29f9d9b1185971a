"""Settings of one miner, from ``miner.toml``: checked as a whole before anything is opened."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.behaviour import Behaviour
from coordinator.enrolment.config import SECTION as ENROLMENT_SECTION
from coordinator.enrolment.config import EnrolmentConfig, read_enrolment
from edge_sdk.adapters.mqtt import BrokerSettings
from edge_sdk.config import Key, Kind, Schema, Section, Table, is_url, load
from edge_sdk.errors import ConfigError, DecodeError
from edge_sdk.protocol.ids import MinerId, check_name

_ADDRESS: Final = re.compile(r"(unix:.+|http://[^/\s]+)")
_URL: Final = re.compile(r"https?://[^/\s]+")
_PORT_MAX: Final = 65_535
_UNIX_PATH_BYTES_MAX: Final = 107
"""Length of ``sun_path`` on Linux, without its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerConfig:
    """Everything a miner process is told. Paths are absolute or relative to the working directory."""

    miner_id: MinerId
    key_file: Path
    genesis_file: Path
    work_dir: Path
    artifact_file: Path
    model_file: Path
    fold_file: Path
    abci: str
    rpc: str
    brokers: tuple[BrokerSettings, ...]
    http_host: str
    http_port: int
    public_url: str
    software_dir: Path | None
    peers: dict[MinerId, str]
    blob_retention_blocks: int
    backend: str
    enrolment: EnrolmentConfig | None
    behaviour: Behaviour

    @property
    def abci_socket(self) -> Path:
        """File of the Unix socket that this miner opens."""
        return Path(self.abci.removeprefix("unix:"))

    @property
    def ledger_file(self) -> Path:
        """SQLite file with the log, blocks and state."""
        return self.work_dir / "ledger.sqlite3"

    @property
    def blob_dir(self) -> Path:
        """Parent of ``sha256``: the blob store."""
        return self.work_dir / "blobs"

    @property
    def run_record_file(self) -> Path:
        """JSON lines, one per phase."""
        return self.work_dir / "run.jsonl"


_BROKER_KEYS: Final = (
    Key("host", Kind.TEXT, "Name or address of the broker.", default="127.0.0.1", minimum=1),
    Key("port", Kind.INTEGER, "TCP port.", default=1883, minimum=1, maximum=_PORT_MAX),
    Key("protocol", Kind.TEXT, "MQTT version; auto tries 5 first.", default="auto", choices=("auto", "3.1.1")),
    Key("tls", Kind.FLAG, "TLS with the certificates below.", default=False),
    Key("ca_file", Kind.PATH, "Certificate authority of the broker, PEM.", default=None),
    Key("cert_file", Kind.PATH, "Certificate of this miner, PEM.", default=None),
    Key("key_file", Kind.PATH, "Key of that certificate, PEM.", default=None),
    Key("username", Kind.TEXT, "User name, where the broker asks for one.", default=None),
    Key("password_file", Kind.PATH, "File whose first line is the password.", default=None),
    Key("keepalive_s", Kind.INTEGER, "MQTT keep-alive.", default=30, unit="seconds", minimum=5, maximum=3600),
)

SCHEMA: Final[Schema] = (
    Section(
        "miner",
        "This member of the miner set.",
        (
            Key("id", Kind.TEXT, "Name of this miner, as genesis spells it."),
            Key("key_file", Kind.PATH, "Private key, PEM, mode 0600.", default="key.pem"),
            Key("genesis_file", Kind.PATH, "Genesis, the trust anchor.", default="genesis.cbor"),
            Key("work_dir", Kind.PATH, "Ledger, blobs and run record.", default="."),
            Key("artifact_file", Kind.PATH, "Training artifact that genesis names.", default="artifact.flm"),
            Key("model_file", Kind.PATH, "Model of version 0 that genesis names.", default="model.cbor"),
        ),
    ),
    Section(
        "ordering",
        "Where the ordering engine and this miner meet.",
        (
            Key("abci", Kind.TEXT, "Unix socket that this miner opens for the engine.", default="unix:abci.sock"),
            Key("rpc", Kind.TEXT, "Engine's interface for transactions: unix:PATH or http://HOST:PORT."),
        ),
    ),
    Section("broker", "MQTT brokers, in order of preference.", _BROKER_KEYS, repeated=True),
    Section(
        "http",
        "Downloads, blocks, metrics.",
        (
            Key("host", Kind.TEXT, "Address to listen on.", default="127.0.0.1", minimum=1),
            Key("port", Kind.INTEGER, "TCP port.", default=8080, minimum=1, maximum=_PORT_MAX),
            Key("public_url", Kind.TEXT, "Address that devices are told; empty: http://HOST:PORT.", default=None),
            Key("software_dir", Kind.PATH, "Repository of flchain upgrade, served at /v1/software.", default=None),
        ),
    ),
    ENROLMENT_SECTION,
    Section(
        "peers",
        "HTTP addresses of the other miners.",
        optional=True,
        free=Key("MINER_ID", Kind.TEXT, "Address, for instance http://10.0.0.2:8080.", minimum=8),
    ),
    Section(
        "validation",
        "Scoring of updates.",
        (
            Key("fold_file", Kind.PATH, "This miner's held-out examples, npz with x and y.", default="fold.npz"),
            Key(
                "backend",
                Kind.TEXT,
                "Engine that evaluates.",
                default="onnxruntime",
                choices=("onnxruntime", "numpy"),
            ),
        ),
    ),
    Section(
        "retention",
        "What is kept.",
        (
            Key(
                "blob_blocks",
                Kind.INTEGER,
                "Blocks whose update blobs are kept; 0 keeps all, which an audit from genesis needs.",
                default=0,
                unit="blocks",
                minimum=0,
                maximum=1_000_000,
            ),
        ),
    ),
    Section(
        "behaviour",
        "Misbehaviour, for demonstrations only.",
        (
            Key(
                "byzantine",
                Kind.TEXT,
                "Empty for an honest miner.",
                default="",
                choices=tuple(behaviour.value for behaviour in Behaviour),
            ),
        ),
    ),
)


def load_config(path: Path) -> MinerConfig:
    """Read and check ``miner.toml``.

    Raises:
        ConfigError: one line that names the file, the key, what was found and what is expected.
    """
    values = load(path, SCHEMA)
    miner, ordering, http = values.table("miner"), values.table("ordering"), values.table("http")
    host, port = http.text("host"), http.integer("port")
    return MinerConfig(
        miner_id=MinerId(_name(miner.text("id"), path, "[miner] id")),
        key_file=miner.path("key_file"),
        genesis_file=miner.path("genesis_file"),
        work_dir=miner.path("work_dir"),
        artifact_file=miner.path("artifact_file"),
        model_file=miner.path("model_file"),
        fold_file=values.table("validation").path("fold_file"),
        abci=_address(ordering.text("abci"), path, "[ordering] abci", kinds=("unix:",)),
        rpc=_address(ordering.text("rpc"), path, "[ordering] rpc", kinds=("unix:", "http://")),
        brokers=tuple(_broker(table) for table in values.tables("broker")),
        http_host=host,
        http_port=port,
        public_url=_url(http.text_or_none("public_url") or f"http://{host}:{port}", path, "[http] public_url"),
        software_dir=http.path_or_none("software_dir"),
        peers=_peers(values.table("peers"), path),
        blob_retention_blocks=values.table("retention").integer("blob_blocks"),
        backend=values.table("validation").text("backend"),
        enrolment=read_enrolment(values.table("enrolment"), path),
        behaviour=Behaviour(values.table("behaviour").text("byzantine")),
    )


def _broker(table: Table) -> BrokerSettings:
    return BrokerSettings(
        host=table.text("host"),
        port=table.integer("port"),
        tls=table.flag("tls"),
        ca_file=table.path_or_none("ca_file"),
        cert_file=table.path_or_none("cert_file"),
        key_file=table.path_or_none("key_file"),
        username=table.text_or_none("username"),
        password_file=table.path_or_none("password_file"),
        keepalive_s=table.integer("keepalive_s"),
        is_mqtt5_tried=table.text("protocol") == "auto",
    )


def _peers(table: Table, path: Path) -> dict[MinerId, str]:
    names = table.keys()
    return {MinerId(_name(peer, path, "[peers]")): _url(table.text(peer), path, f"[peers] {peer}") for peer in names}


def _name(text: str, path: Path, place: str) -> str:
    try:
        return check_name(text, what="miner id")
    except DecodeError as error:
        raise ConfigError(f"{path}: {place} = {text[:60]!r}: expected a miner's name: {error}") from error


def _address(text: str, path: Path, place: str, *, kinds: tuple[str, ...]) -> str:
    """Address of a socket; a relative Unix path is relative to the file."""
    expected = " or ".join(f"{kind}..." for kind in kinds)
    if not text.startswith(kinds) or _ADDRESS.fullmatch(text) is None:
        raise ConfigError(f"{path}: {place} = {text[:60]!r}: expected {expected}")
    if not text.startswith("unix:"):
        return _url(text, path, place)
    socket_path = path.parent / text.removeprefix("unix:")
    if len(bytes(socket_path)) > _UNIX_PATH_BYTES_MAX:
        raise ConfigError(f"{path}: {place} = {text[:60]!r}: expected a path of at most {_UNIX_PATH_BYTES_MAX} bytes")
    return f"unix:{socket_path}"


def _url(text: str, path: Path, place: str) -> str:
    if _URL.fullmatch(text.rstrip("/")) is None or not is_url(text, schemes=("http", "https")):
        raise ConfigError(f"{path}: {place} = {text[:60]!r}: expected http://HOST:PORT or https://HOST:PORT")
    return text.rstrip("/")
