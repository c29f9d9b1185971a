"""device.toml: every key of a device with its unit, default and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk.adapters.mqtt import BrokerSettings
from edge_sdk.adapters.replay_form import SUFFIX as REPLAY_SUFFIX
from edge_sdk.config import Key, Kind, Schema, Section, Table, is_url, load
from edge_sdk.errors import ConfigError, DecodeError
from edge_sdk.governor import Limits
from edge_sdk.protocol.ids import DeviceId, Digest, TaskId, check_digest, check_name
from edge_sdk.protocol.limits import NAME_CHARS_MAX, OUTBOX_AGE_S_MAX, OUTBOX_BYTES_MAX
from edge_sdk.protocol.messages import Algorithm
from firmware_profiles.profile import SUFFIX, UnknownBoardError, board_ids, load_profile

BYZANTINE: Final = ("", "signflip", "nullifier", "randomizer", "labelflip", "nan", "scaled")
BACKENDS: Final = (
    *("onnxruntime", "onnxruntime:cpu", "onnxruntime:cuda", "onnxruntime:tensorrt", "numpy", "litert"),
    *("torch", "torch:cpu", "torch:cuda"),
)
"""Those of ``training.backends``, which an idle device does not load."""
ALGORITHMS: Final = {"eddsa": Algorithm.EDDSA, "es256": Algorithm.ES256}
METERS: Final = ("model", "rapl", "ina3221", "ina2xx", "pi5-pmic")
PROTOCOLS: Final = ("auto", "3.1.1")

BROKER_SECTION: Final = Section(
    "broker",
    "MQTT brokers in the order of preference.",
    (
        Key("host", Kind.TEXT, "Name or address.", minimum=1, maximum=253),
        Key("port", Kind.INTEGER, "TCP port; 8883 is usual with TLS.", 1883, minimum=1, maximum=65_535),
        Key("protocol", Kind.TEXT, "MQTT version; auto tries 5 first.", "auto", choices=PROTOCOLS),
        Key("keepalive_s", Kind.INTEGER, "Pings at least this often.", 30, unit="seconds", minimum=5, maximum=3_600),
        Key("tls", Kind.FLAG, "Encrypt, and verify the broker.", default=False),
        Key("ca_file", Kind.PATH, "CA of the broker; the system's CAs when empty.", None),
        Key("cert_file", Kind.PATH, "Our certificate (mTLS).", None),
        Key("key_file", Kind.PATH, "Private key of the certificate.", None),
        Key("username", Kind.TEXT, "User name; none with mTLS.", None, maximum=256),
        Key("password_file", Kind.PATH, "File with the password, mode 0600.", None),
    ),
    repeated=True,
)

SCHEMA: Final[Schema] = (
    Section(
        "device",
        "This board.",
        (
            Key("id", Kind.TEXT, "Name: lower-case letters, digits, hyphens.", minimum=1, maximum=NAME_CHARS_MAX),
            Key("task", Kind.TEXT, "Name of the learning task.", minimum=1, maximum=NAME_CHARS_MAX),
            Key(
                "data",
                Kind.PATH,
                "Examples: an .npz with x and y, a folder with x.npy and y.npy, or a replay buffer NAME.sqlite3.",
            ),
            Key("work_dir", Kind.PATH, "State of this device.", "."),
            Key("seed", Kind.INTEGER, "Seed of batch order.", 0, minimum=0, maximum=2**53),
            Key("slowdown", Kind.NUMBER, "Stretches training time, to play a slow board.", 1.0, minimum=1, maximum=100),
            Key("claim_file", Kind.PATH, "Single-use token of the enrolment; deleted after it.", "claim.txt"),
        ),
    ),
    Section(
        "keys",
        "The signing key; it never leaves the board.",
        (
            Key("algorithm", Kind.TEXT, "Of a new key.", "eddsa", choices=tuple(ALGORITHMS)),
            Key("key_file", Kind.PATH, "PEM file, mode 0600.", "key.pem"),
            Key("cert_file", Kind.PATH, "Certificate from the enrolment.", "cert.pem"),
        ),
    ),
    Section(
        "trust",
        "What this device believes without asking anybody.",
        (
            Key("genesis_file", Kind.PATH, "Genesis of the chain.", "genesis.cbor"),
            Key("genesis_digest", Kind.TEXT, "SHA-256 of the genesis file in hex; checked when given.", None),
            Key("artifact_file", Kind.PATH, "Training artifact; its digest is in the genesis.", "artifact.flm"),
        ),
    ),
    Section(
        "enrolment",
        "Where a new board shows its claim, once.",
        (
            Key("url", Kind.TEXT, "https URL of the registrar; empty when the keys came with the image.", None),
            Key("ca_file", Kind.PATH, "CA that the registrar's certificate is pinned to.", "ca.pem"),
            Key("retry_s", Kind.NUMBER, "First pause after a failure.", 2.0, unit="seconds", minimum=0.1, maximum=3600),
            Key("retry_max_s", Kind.NUMBER, "Longest pause.", 900.0, unit="seconds", minimum=0.1, maximum=86_400),
        ),
    ),
    BROKER_SECTION,
    Section(
        "miners",
        "Edge servers for downloads, in the order of preference. Announced URLs are tried after these.",
        (
            Key("urls", Kind.TEXTS, "Base URLs, http or https.", ()),
            Key("ca_file", Kind.PATH, "CA of https URLs; the system's CAs when empty.", None),
        ),
    ),
    Section(
        "training",
        "Overrides of what the genesis says; empty = as the genesis says.",
        (
            Key("backend", Kind.TEXT, "What runs the training step.", "onnxruntime", choices=BACKENDS),
            Key("steps", Kind.INTEGER, "Local steps per job.", None, minimum=1, maximum=1_000_000),
            Key("learning_rate", Kind.NUMBER, "Step size of SGD.", None, minimum=1e-8, maximum=100),
            Key(
                "checkpoint_s", Kind.NUMBER, "A job is saved this often.", 30.0, unit="seconds", minimum=1, maximum=3600
            ),
            Key(
                "in_flight",
                Kind.INTEGER,
                "Updates without outcome at which no new job starts.",
                2,
                minimum=1,
                maximum=4,
            ),
            Key(
                "personal_alpha",
                Kind.NUMBER,
                "Share of this board's own parameters in its personal model; empty = no personal model.",
                None,
                minimum=0,
                maximum=1,
            ),
            Key(
                "personal_search",
                Kind.FLAG,
                "Keep a personal model whose share is the best of 0.50, 0.53 ... 0.77 on held-out examples.",
                default=False,
            ),
        ),
    ),
    Section(
        "replay",
        "Bounds of a replay buffer, which flchain device feed fills; fixed once it is made.",
        (
            Key("rows_max", Kind.INTEGER, "Rows kept at most.", 4_096, minimum=1, maximum=1_000_000),
            Key(
                "bytes_max",
                Kind.INTEGER,
                "Longest file.",
                64 * 2**20,
                unit="bytes",
                minimum=256 * 1024,
                maximum=16 * 2**30,
            ),
        ),
    ),
    Section(
        "limits",
        "Bounds of the offline queue.",
        (
            Key("outbox_bytes", Kind.INTEGER, "Largest outbox.", OUTBOX_BYTES_MAX, unit="bytes", minimum=65_536),
            Key(
                "outbox_age_s",
                Kind.INTEGER,
                "An update that nobody took is given up after this.",
                OUTBOX_AGE_S_MAX,
                unit="seconds",
                minimum=60,
                maximum=365 * 24 * 3600,
            ),
        ),
    ),
    Section(
        "governor",
        "When to leave the board alone. Limits without a sensor do nothing.",
        (
            Key("temperature_max_c", Kind.NUMBER, "Pause training above.", 80.0, unit="degrees Celsius", maximum=150),
            Key("temperature_resume_c", Kind.NUMBER, "Go on below.", 70.0, unit="degrees Celsius", maximum=150),
            Key("battery_min_percent", Kind.NUMBER, "On battery: upload only below.", 40.0, minimum=0, maximum=100),
            Key("battery_resume_percent", Kind.NUMBER, "Train again above.", 50.0, minimum=0, maximum=100),
            Key("memory_min_bytes", Kind.INTEGER, "No training with less free memory.", 64 * 2**20, minimum=0),
            Key("metered_file", Kind.PATH, "While this file exists the link counts as metered.", None),
        ),
    ),
    Section(
        "board",
        "What this board is, for the energy model.",
        (
            Key("profile", Kind.TEXT, "Board profile: a name, or a file of one's own (.toml).", None, maximum=1_000),
            Key("meter", Kind.TEXT, "Where joules come from.", "model", choices=METERS),
        ),
    ),
    Section(
        "behaviour",
        "Only for demonstrations and tests of the defence.",
        (Key("byzantine", Kind.TEXT, "How this device attacks; empty = honest.", "", choices=BYZANTINE),),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """A checked device.toml. Paths are absolute or relative to the current directory."""

    path: Path
    device_id: DeviceId
    task: TaskId
    data: Path
    work_dir: Path
    seed: int
    slowdown: float
    algorithm: Algorithm
    key_file: Path
    cert_file: Path
    genesis_file: Path
    genesis_digest: Digest | None
    artifact_file: Path
    enrolment_url: str | None
    enrolment_ca_file: Path
    claim_file: Path
    enrolment_retry_s: float
    enrolment_retry_max_s: float
    brokers: tuple[BrokerSettings, ...]
    miner_urls: tuple[str, ...]
    miner_ca_file: Path | None
    backend: str
    steps: int | None
    learning_rate: float | None
    checkpoint_s: float
    in_flight: int
    personal_alpha: float | None
    personal_search: bool
    replay_rows_max: int
    replay_bytes_max: int
    outbox_bytes: int
    outbox_age_s: int
    limits: Limits
    metered_file: Path | None
    board_profile: str | None
    meter: str
    byzantine: str

    @property
    def outbox_file(self) -> Path:
        """The durable state."""
        return self.work_dir / "state.sqlite3"

    @property
    def slots_dir(self) -> Path:
        """The model slots."""
        return self.work_dir / "slots"

    @property
    def job_dir(self) -> Path:
        """Pinned base and checkpoint of a running job."""
        return self.work_dir / "base"

    @property
    def is_replay(self) -> bool:
        """Whether the examples are a replay buffer."""
        return self.data.suffix == REPLAY_SUFFIX

    @property
    def is_personal(self) -> bool:
        """Whether this board keeps a personal model."""
        return self.personal_search or self.personal_alpha is not None

    @property
    def personal_file(self) -> Path:
        """The personal model and what is known of it."""
        return self.work_dir / "personal.cbor"

    @property
    def record_file(self) -> Path:
        """The run record."""
        return self.work_dir / "run.jsonl"

    @classmethod
    def load(cls, path: Path) -> DeviceConfig:
        """Read a device.toml.

        Raises:
            ConfigError: one line that names file, key, what was found and what is expected.
        """
        values = load(path, SCHEMA)
        device, keys, trust = values.table("device"), values.table("keys"), values.table("trust")
        enrolment, miners, training = values.table("enrolment"), values.table("miners"), values.table("training")
        replay = values.table("replay")
        bounds, governor, board = values.table("limits"), values.table("governor"), values.table("board")
        return cls(
            path=path,
            device_id=DeviceId(_name(path, device, "id")),
            task=TaskId(_name(path, device, "task")),
            data=device.path("data"),
            work_dir=device.path("work_dir"),
            seed=device.integer("seed"),
            slowdown=device.number("slowdown"),
            algorithm=ALGORITHMS[keys.text("algorithm")],
            key_file=keys.path("key_file"),
            cert_file=keys.path("cert_file"),
            genesis_file=trust.path("genesis_file"),
            genesis_digest=_digest(path, trust.text_or_none("genesis_digest")),
            artifact_file=trust.path("artifact_file"),
            enrolment_url=_enrolment_url(path, enrolment.text_or_none("url")),
            enrolment_ca_file=enrolment.path("ca_file"),
            claim_file=device.path("claim_file"),
            enrolment_retry_s=enrolment.number("retry_s"),
            enrolment_retry_max_s=enrolment.number("retry_max_s"),
            brokers=tuple(broker_settings(table) for table in values.tables("broker")),
            miner_urls=_urls(path, miners.texts("urls")),
            miner_ca_file=miners.path_or_none("ca_file"),
            backend=training.text("backend"),
            steps=training.integer_or_none("steps"),
            learning_rate=training.number_or_none("learning_rate"),
            checkpoint_s=training.number("checkpoint_s"),
            in_flight=training.integer("in_flight"),
            personal_alpha=training.number_or_none("personal_alpha"),
            personal_search=training.flag("personal_search"),
            replay_rows_max=replay.integer("rows_max"),
            replay_bytes_max=replay.integer("bytes_max"),
            outbox_bytes=bounds.integer("outbox_bytes"),
            outbox_age_s=bounds.integer("outbox_age_s"),
            limits=_limits(path, governor),
            metered_file=governor.path_or_none("metered_file"),
            board_profile=_profile(path, board.text_or_none("profile")),
            meter=board.text("meter"),
            byzantine=values.table("behaviour").text("byzantine"),
        )


def broker_settings(table: Table) -> BrokerSettings:
    """One [[broker]] table as the MQTT link takes it."""
    return BrokerSettings(
        host=table.text("host"),
        port=table.integer("port"),
        keepalive_s=table.integer("keepalive_s"),
        tls=table.flag("tls"),
        ca_file=table.path_or_none("ca_file"),
        cert_file=table.path_or_none("cert_file"),
        key_file=table.path_or_none("key_file"),
        username=table.text_or_none("username"),
        password_file=table.path_or_none("password_file"),
        is_mqtt5_tried=table.text("protocol") == "auto",
    )


def _limits(path: Path, table: Table) -> Limits:
    limits = Limits(
        temperature_max_c=table.number("temperature_max_c"),
        temperature_resume_c=table.number("temperature_resume_c"),
        battery_min_percent=table.number("battery_min_percent"),
        battery_resume_percent=table.number("battery_resume_percent"),
        memory_min_bytes=table.integer("memory_min_bytes"),
    )
    for low, high in (("temperature_resume_c", "temperature_max_c"), ("battery_min_percent", "battery_resume_percent")):
        if table.number(low) > table.number(high):
            raise ConfigError(f"{path}: [governor] {low} = {table.number(low):g}: expected at most {high}")
    return limits


def _name(path: Path, table: Table, key: str) -> str:
    try:
        return check_name(table.text(key), what=key)
    except DecodeError as error:
        raise ConfigError(f"{path}: [device] {key} = {table.text(key)!r}: expected a name: {error}") from error


def _digest(path: Path, text: str | None) -> Digest | None:
    if text is None:
        return None
    try:
        return check_digest(bytes.fromhex(text))
    except ValueError as error:
        shown = text[:80]
        raise ConfigError(f"{path}: [trust] genesis_digest = {shown!r}: expected 64 hexadecimal digits") from error


def _profile(path: Path, board_id: str | None) -> str | None:
    if board_id is not None and board_id.endswith(SUFFIX):
        own = str(path.parent / board_id)
        try:
            load_profile(own)
        except UnknownBoardError as error:
            raise ConfigError(f"{path}: [board] profile = {board_id!r}: {error}") from error
        return own
    if board_id is not None and board_id not in board_ids():
        expected = f"expected one of {', '.join(board_ids())}"
        raise ConfigError(f"{path}: [board] profile = {board_id!r}: {expected}")
    return board_id


def _urls(path: Path, urls: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        if not is_url(url, schemes=("http", "https")):
            raise ConfigError(
                f"{path}: [miners] urls = {url[:80]!r}: expected URLs http://HOST:PORT or https://HOST:PORT"
            )
    return urls


def _enrolment_url(path: Path, url: str | None) -> str | None:
    if url is not None and not is_url(url, schemes=("https",)):
        raise ConfigError(f"{path}: [enrolment] url = {url[:80]!r}: expected https://HOST:PORT")
    return url
