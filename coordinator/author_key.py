"""The key that a person signs artifacts with, and the public half that others compare and pin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from edge_sdk.adapters.durable_files import make_private_directory, read_file, write_file
from edge_sdk.adapters.keys import KEY_FILE_BYTES_MAX, create_key, load_private_key
from edge_sdk.errors import ConfigError, StoreError
from edge_sdk.protocol.cose import SoftwareSigner
from edge_sdk.protocol.messages import Algorithm, PublicKey

ALGORITHMS: Final = {"eddsa": Algorithm.EDDSA, "es256": Algorithm.ES256}
PUBLIC_SUFFIX: Final = ".pub"


def default_key_file() -> Path:
    """One author, one key for all models: below ``$XDG_CONFIG_HOME``, else ``~/.config``."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    folder = Path(configured) if configured.startswith("/") else Path.home() / ".config"
    return folder / "flchain" / "author.pem"


def open_author_key(path: Path, algorithm: Algorithm) -> tuple[SoftwareSigner, bool]:
    """Read the key, or make it on first use: mode 0600, its public half beside it as ``NAME.pub``.

    Returns:
        The signer, and whether its key is new.

    Raises:
        ConfigError: it cannot be read or made, or others may read it; the text names the file.
    """
    try:
        is_new = not path.exists()
        if is_new:
            make_private_directory(path.parent)
            create_key(path, algorithm)
        key = load_private_key(path)
        public_file = path.with_suffix(PUBLIC_SUFFIX)
        if not public_file.exists():
            pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            write_file(public_file, pem)
    except StoreError as error:
        raise ConfigError(f"--key: {error}") from error
    return SoftwareSigner(key), is_new


def read_author(path: Path) -> PublicKey:
    """The public key of an author, from the PEM file that ``open_author_key`` wrote.

    Raises:
        ConfigError: no such file, or no Ed25519 or P-256 public key in it.
    """
    expected = "expected an author's public key in PEM, Ed25519 or P-256"
    try:
        data = read_file(path, bytes_max=KEY_FILE_BYTES_MAX)
    except StoreError as error:
        raise ConfigError(str(error)) from error
    if data is None:
        raise ConfigError(f"{path}: no such file: {expected}")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: {expected}") from error
    if isinstance(key, Ed25519PublicKey):
        return PublicKey(algorithm=Algorithm.EDDSA, data=key.public_bytes(Encoding.Raw, PublicFormat.Raw))
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return PublicKey(algorithm=Algorithm.ES256, data=point)
    raise ConfigError(f"{path}: {expected}")
