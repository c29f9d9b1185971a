"""What makes a card the card of one board: its device.toml, the trust anchor, its claim, the wireless network.

Secrets come from files or standard input, never from the command line, where every process of the machine could read
them. The board makes its private key itself at first boot; a key beside device.toml is refused, not copied.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware_profiles.errors import UsageError
from firmware_profiles.profile import SUFFIX, UnknownBoardError, load_profile

CONFIG_BYTES_MAX: Final = 64 * 1024
ANCHOR_BYTES_MAX: Final = 64 * 2**20
SECRET_BYTES_MAX: Final = 4096
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{16,256}")
_PSK: Final = re.compile(r"[0-9a-fA-F]{64}")
_COUNTRY: Final = re.compile(r"[A-Z]{2}")


@dataclass(frozen=True, slots=True)
class Identity:
    """A checked device.toml with the files that it names."""

    device_id: str
    board: str | None
    claim_name: str
    files: Mapping[str, bytes]
    """Name beside device.toml to content: device.toml itself, CA certificates, genesis, artifact."""


@dataclass(frozen=True, slots=True)
class Wifi:
    """A wireless network; the passphrase is kept only as the key derived from it."""

    ssid: str
    psk: str
    country: str | None


def load_identity(path: Path) -> Identity:
    """Read a device.toml and the trust anchor beside it.

    Raises:
        UsageError: no TOML, a board that could not enrol by itself, or a private key beside it.
    """
    data = _read(path, CONFIG_BYTES_MAX)
    try:
        content = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    device, trust, enrolment = (_table(content, name) for name in ("device", "trust", "enrolment"))
    device_id = str(device.get("id", ""))
    if not _NAME.fullmatch(device_id):
        raise UsageError(f"{path}: [device] id = {device_id!r}: expected lower-case letters, digits, hyphens")
    if not str(enrolment.get("url", "")).startswith("https://"):
        raise UsageError(f"{path}: [enrolment] url: expected the https URL of the registrar")
    files = {"device.toml": data}
    names = [str(enrolment.get("ca_file", "ca.pem")), str(trust.get("artifact_file", "artifact.flm"))]
    genesis = str(trust.get("genesis_file", "genesis.cbor"))
    if (path.parent / genesis).exists() or "genesis_digest" not in trust:
        names.append(genesis)
    for table in (_table(content, "miners"), *_tables(content, "broker")):
        names += [str(table[key]) for key in ("ca_file", "password_file") if table.get(key)]
    board = _table(content, "board").get("profile")
    if str(board).endswith(SUFFIX):  # a profile of one's own goes with it; the board is the one that it names
        names.append(str(board))
    for name in names:
        files[name] = _read(path.parent / _plain(path, name), ANCHOR_BYTES_MAX)
    keys = [str(_table(content, "keys").get("key_file", "key.pem"))]
    keys += [str(table["key_file"]) for table in _tables(content, "broker") if table.get("key_file")]
    for name in keys:
        if (path.parent / name).exists() or name in files:
            raise UsageError(f"{path.parent / name}: a private key never goes onto a card; the board makes its own")
    claim = str(device.get("claim_file", "claim.txt"))
    return Identity(device_id, None if board is None else _board_id(path, str(board)), _plain(path, claim), files)


def _board_id(path: Path, board: str) -> str:
    if not board.endswith(SUFFIX):
        return board
    try:
        return load_profile(str(path.parent / board)).board_id
    except UnknownBoardError as error:
        raise UsageError(f"{path}: [board] profile = {board!r}: {error}") from error


def load_claim(path: Path) -> str:
    """Read the token that the registry made for this board; ``-`` is standard input.

    Raises:
        UsageError: it is not a token.
    """
    token = _secret(path).strip()
    if not _TOKEN.fullmatch(token):
        raise UsageError(f"{path}: not a claim token: expected the file that flchain registry claim writes")
    return token


def load_upgrade(path: Path) -> dict[str, bytes]:
    """Read an upgrade.toml and the trust anchor that it names; both go to /etc/flchain.

    Raises:
        UsageError: no TOML, no URL, or no root of a software repository beside it.
    """
    data = _read(path, CONFIG_BYTES_MAX)
    try:
        upgrade = _table(tomllib.loads(data.decode("utf-8")), "upgrade")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    if not upgrade.get("urls"):
        raise UsageError(f"{path}: [upgrade] urls: expected where the software repository is served")
    files = {"upgrade.toml": data}
    for key, default in (("root_file", "root.json"), ("ca_file", "")):
        name = str(upgrade.get(key, default))
        if name:
            files[_plain(path, name)] = _read(path.parent / name, CONFIG_BYTES_MAX)
    root = files[str(upgrade.get("root_file", "root.json"))]
    try:
        kind = json.loads(root)["signed"]["_type"]
    except (ValueError, KeyError, TypeError, RecursionError):
        kind = None
    if kind != "root":
        raise UsageError(f"{path}: [upgrade] root_file: expected metadata/1.root.json of the software repository")
    return files


def load_wifi(path: Path) -> Wifi:
    """Read ``ssid``, ``password`` and, where the regulations ask for it, ``country`` from a TOML file; ``-`` is stdin.

    Raises:
        UsageError: other keys, or values that no access point takes.
    """
    try:
        content = tomllib.loads(_secret(path))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    if not {"ssid", "password"} <= set(content) <= {"ssid", "password", "country"}:
        raise UsageError(f"{path}: expected the keys ssid, password and perhaps country")
    ssid, password, country = str(content["ssid"]), str(content["password"]), content.get("country")
    if not 1 <= len(ssid.encode()) <= 32 or any(ord(sign) < 32 for sign in ssid):
        raise UsageError(f"{path}: ssid: expected 1 to 32 bytes")
    if country is not None and not _COUNTRY.fullmatch(str(country)):
        raise UsageError(f"{path}: country: expected two capital letters")
    if not _PSK.fullmatch(password):
        if not (8 <= len(password) <= 63 and all(32 <= ord(sign) < 127 for sign in password)):
            raise UsageError(f"{path}: password: expected 8 to 63 printable ASCII characters")
        # IEEE 802.11i, annex H.4: the key that the passphrase stands for.
        password = hashlib.pbkdf2_hmac("sha1", password.encode(), ssid.encode(), 4096, 32).hex()
    return Wifi(ssid, password, None if country is None else str(country))


def _plain(config: Path, name: str) -> str:
    if not _FILE.fullmatch(name):
        raise UsageError(f"{config}: file {name!r}: expected a plain name beside device.toml")
    return name


def _table(content: Mapping[str, object], name: str) -> dict[str, object]:
    found = content.get(name, {})
    if not isinstance(found, dict):
        raise UsageError(f"[{name}]: expected a table")
    return found


def _tables(content: Mapping[str, object], name: str) -> list[dict[str, object]]:
    found = content.get(name, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise UsageError(f"[[{name}]]: expected a list of tables")
    return found


def _secret(path: Path) -> str:
    if str(path) == "-":
        return sys.stdin.read(SECRET_BYTES_MAX)
    try:
        return _read(path, SECRET_BYTES_MAX).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text") from error


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if len(data) > bytes_max:
        raise UsageError(f"{path}: longer than {bytes_max} bytes")
    return data
