"""Signing keys in PEM files that only their owner can read."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from edge_sdk.adapters.durable_files import PRIVATE_MODE, read_file, write_file
from edge_sdk.errors import StoreError
from edge_sdk.protocol.cose import SoftwareSigner
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.messages import Algorithm, PublicKey

KEY_FILE_BYTES_MAX: Final = 8_192
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def create_key(path: Path, algorithm: Algorithm) -> SoftwareSigner:
    """Make a key and its file, mode 0600; on the disk before the return.

    Raises:
        StoreError: there is a file already, or it cannot be written.
    """
    if path.exists():
        raise StoreError(f"{path}: exists already; a key is never overwritten")
    key = Ed25519PrivateKey.generate() if algorithm is Algorithm.EDDSA else generate_private_key(SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_file(path, pem, mode=PRIVATE_MODE)
    return SoftwareSigner(key)


def load_private_key(path: Path) -> Ed25519PrivateKey | EllipticCurvePrivateKey:
    """Read a private key, for a certificate request.

    Raises:
        StoreError: no file, others may read it, or it holds no Ed25519 or P-256 key.
    """
    data = read_file(path, bytes_max=KEY_FILE_BYTES_MAX)
    if data is None:
        raise StoreError(f"{path}: there is no key")
    check_private(path)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: the file is encrypted
        raise StoreError(f"{path}: holds no unencrypted PEM private key") from error
    is_p256 = isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)
    if not isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey) or not (
        isinstance(key, Ed25519PrivateKey) or is_p256
    ):
        raise StoreError(f"{path}: expected an Ed25519 or P-256 key")
    return key


def fingerprint(key: PublicKey) -> str:
    """SHA-256 of the public key in hex: what two people compare."""
    return sha256(key.data).hex()


def load_signer(path: Path) -> SoftwareSigner:
    """Read a key to sign with.

    Raises:
        StoreError: as ``load_private_key``.
    """
    return SoftwareSigner(load_private_key(path))


def check_private(path: Path) -> None:
    """Refuse a file of secrets that others may read.

    Raises:
        StoreError: the mode allows it; the text says how to mend it.
    """
    mode = path.stat().st_mode
    if mode & _OTHERS:
        raise StoreError(f"{path}: mode {stat.S_IMODE(mode):04o} lets others read it; run: chmod 600 {path}")
