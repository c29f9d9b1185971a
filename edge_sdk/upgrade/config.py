"""upgrade.toml: where software comes from, where it goes, and how long a trial lasts. Owned by root on a board."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk.config import Key, Kind, Schema, Section, Table, is_url, load
from edge_sdk.errors import ConfigError

ENVIRONMENTS_CHARS_MAX: Final = 90
"""A script names its interpreter in its first line, of which Linux reads 127 bytes."""
_PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9_./-]*", re.ASCII)

SCHEMA: Final[Schema] = (
    Section(
        "upgrade",
        "Where releases of the client come from and where they are installed.",
        (
            Key("urls", Kind.TEXTS, "Base URLs of the repository, in the order of preference.", minimum=1),
            Key("ca_file", Kind.PATH, "CA of https URLs; the system's CAs when empty.", None),
            Key("root_file", Kind.PATH, "First root of the repository, the trust anchor.", "root.json"),
            Key("device_config", Kind.PATH, "device.toml of the device.", "/var/lib/flchain/device.toml"),
            Key("environments", Kind.PATH, "Folder of both environments and their links.", "/opt/flchain"),
            Key("state_dir", Kind.PATH, "Journal, metadata and downloads.", "/var/lib/flchain-upgrade"),
            Key("user", Kind.TEXT, "Who runs the device, and new code at its self-test.", "flchain", maximum=32),
        ),
    ),
    Section(
        "service",
        "How the device is stopped and started.",
        (
            Key("unit", Kind.TEXT, "Unit of systemd.", "flchain-device.service", maximum=128),
            Key("stop", Kind.TEXTS, "Instead of systemd: command that stops the device and waits.", ()),
            Key("start", Kind.TEXTS, "Instead of systemd: command that starts it, as its user.", ()),
            Key("state", Kind.TEXTS, "Instead: prints active, activating, restarting, inactive or failed.", ()),
        ),
    ),
    Section(
        "trial",
        "When a new release is kept.",
        (
            Key(
                "healthy_s",
                Kind.INTEGER,
                "The new process lives for so long after it has connected.",
                300,
                unit="seconds",
                minimum=1,
                maximum=86_400,
            ),
            Key(
                "limit_s",
                Kind.INTEGER,
                "Otherwise the old release returns after this.",
                1_800,
                unit="seconds",
                minimum=5,
                maximum=2 * 86_400,
            ),
            Key(
                "quiet_wait_s",
                Kind.INTEGER,
                "A running job may take so long to end; then the upgrade waits for the next call.",
                4 * 3_600,
                unit="seconds",
                minimum=0,
                maximum=2 * 86_400,
            ),
            Key(
                "test_s",
                Kind.INTEGER,
                "The self-test may take so long.",
                600,
                unit="seconds",
                minimum=5,
                maximum=7_200,
            ),
            Key(
                "download_s",
                Kind.INTEGER,
                "One call downloads for so long; the next one goes on where it stopped.",
                3_600,
                unit="seconds",
                minimum=5,
                maximum=86_400,
            ),
        ),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeConfig:
    """A checked upgrade.toml."""

    path: Path
    urls: tuple[str, ...]
    ca_file: Path | None
    root_file: Path
    device_config: Path
    environments: Path
    state_dir: Path
    user: str
    unit: str
    stop: tuple[str, ...]
    start: tuple[str, ...]
    state: tuple[str, ...]
    healthy_s: int
    limit_s: int
    quiet_wait_s: int
    test_s: int
    download_s: int

    @classmethod
    def load(cls, path: Path) -> UpgradeConfig:
        """Read an upgrade.toml.

        Raises:
            ConfigError: one line that names file, key, what was found and what is expected.
        """
        values = load(path, SCHEMA)
        upgrade, service, trial = values.table("upgrade"), values.table("service"), values.table("trial")
        for url in upgrade.texts("urls"):
            if not is_url(url, schemes=("http", "https")):
                raise ConfigError(f"{path}: [upgrade] urls = {url[:80]!r}: expected URLs http:// or https://")
        _check_commands(path, service)
        if trial.integer("limit_s") <= trial.integer("healthy_s"):
            raise ConfigError(f"{path}: [trial] limit_s = {trial.integer('limit_s')}: expected more than healthy_s")
        return cls(
            path=path,
            urls=upgrade.texts("urls"),
            ca_file=upgrade.path_or_none("ca_file"),
            root_file=upgrade.path("root_file"),
            device_config=upgrade.path("device_config"),
            environments=_environments(path, upgrade.path("environments")),
            state_dir=upgrade.path("state_dir"),
            user=upgrade.text("user"),
            unit=service.text("unit"),
            stop=service.texts("stop"),
            start=service.texts("start"),
            state=service.texts("state"),
            healthy_s=trial.integer("healthy_s"),
            limit_s=trial.integer("limit_s"),
            quiet_wait_s=trial.integer("quiet_wait_s"),
            test_s=trial.integer("test_s"),
            download_s=trial.integer("download_s"),
        )


def _environments(path: Path, folder: Path) -> Path:
    absolute = folder.absolute()
    if _PLAIN_PATH.fullmatch(str(absolute)) is None or len(str(absolute)) > ENVIRONMENTS_CHARS_MAX:
        expected = f"expected a path of at most {ENVIRONMENTS_CHARS_MAX} letters, digits, ._-/"
        raise ConfigError(f"{path}: [upgrade] environments = {str(absolute)[:120]!r}: {expected}")
    return absolute


def _check_commands(path: Path, service: Table) -> None:
    given = [name for name in ("stop", "start", "state") if service.texts(name)]
    if given and len(given) != 3:
        raise ConfigError(f"{path}: [service] {given[0]} = a command: expected stop, start and state, or none of them")
