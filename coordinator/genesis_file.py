"""Reads a genesis file, the trust anchor."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.adapters.durable_files import read_file
from edge_sdk.errors import ConfigError, DecodeError
from edge_sdk.protocol import wire
from edge_sdk.protocol.limits import ENVELOPE_BYTES_MAX
from edge_sdk.protocol.messages import Genesis


def load_genesis(path: Path) -> Genesis:
    """Read and check a genesis.

    Raises:
        ConfigError: no such file, or it is no genesis.
        StoreError: it cannot be read, or is too long.
    """
    data = read_file(path, bytes_max=ENVELOPE_BYTES_MAX)
    if data is None:
        raise ConfigError(f"{path}: no such file: expected a genesis")
    try:
        return wire.from_bytes(Genesis, data)
    except DecodeError as error:
        raise ConfigError(f"{path}: {error}: expected a genesis") from error
