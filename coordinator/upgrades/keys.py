"""Keys of a software repository: one Ed25519 key per file, mode 0600, found by the public key that root names.

Folders of keys can be kept apart: root's offline, the others where releases are published. A file's name is for people.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from securesystemslib.signer import CryptoSigner, SSlibKey

from edge_sdk.adapters.durable_files import make_private_directory
from edge_sdk.adapters.keys import create_key, load_private_key
from edge_sdk.errors import ConfigError, StoreError
from edge_sdk.protocol.messages import Algorithm

KEY_FILES_MAX: Final = 256


class KeyRing:
    """The private keys that this call of a command may use."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Load every ``*.pem`` of some folders.

        Raises:
            ConfigError: a folder is not there, or holds too much.
            StoreError: a file is no key, or others may read it.
        """
        self._folders = tuple(folders)
        self._signers: dict[str, CryptoSigner] = {}
        for folder in folders:
            if not folder.is_dir():
                raise ConfigError(f"--keys {folder}: expected a folder of keys")
            paths = sorted(folder.glob("*.pem"))
            if len(paths) > KEY_FILES_MAX:
                raise ConfigError(f"--keys {folder}: {len(paths)} keys: expected at most {KEY_FILES_MAX}")
            for path in paths:
                signer = _signer(path)
                self._signers[signer.public_key.keyid] = signer

    def signers(self, role: str, key_ids: Collection[str], threshold: int) -> list[CryptoSigner]:
        """Those of a role's keys that are at hand.

        Raises:
            ConfigError: fewer than its threshold.
        """
        found = [self._signers[key_id] for key_id in key_ids if key_id in self._signers]
        if len(found) < threshold:
            folders = ", ".join(map(str, self._folders))
            missing = ", ".join(sorted(key_id[:12] for key_id in key_ids if key_id not in self._signers))
            raise ConfigError(
                f"--keys {folders}: {len(found)} of the keys of role {role}: expected {threshold}; missing: {missing}"
            )
        return found

    def has(self, key_ids: Collection[str], threshold: int) -> bool:
        """Whether enough of a role's keys are at hand to sign for it."""
        return sum(key_id in self._signers for key_id in key_ids) >= threshold

    def create(self, role: str) -> CryptoSigner:
        """Make a new key of a role in the first folder, beside those that it may have had before."""
        folder = self._folders[0]
        number = 1
        while (path := folder / f"{role}-{number}.pem").exists():
            number += 1
        create_key(path, Algorithm.EDDSA)
        signer = _signer(path)
        self._signers[signer.public_key.keyid] = signer
        return signer


def new_key_folder(folder: Path) -> KeyRing:
    """A folder for the first keys.

    Raises:
        ConfigError: it holds keys already.
    """
    if folder.is_dir() and any(folder.glob("*.pem")):
        raise ConfigError(f"--keys {folder}: expected a folder without keys; a key is never overwritten")
    make_private_directory(folder)
    return KeyRing([folder])


def _signer(path: Path) -> CryptoSigner:
    key = load_private_key(path)
    signer = CryptoSigner(key, SSlibKey.from_crypto(key.public_key()))
    if signer.public_key.keytype != "ed25519":
        raise StoreError(f"{path}: {signer.public_key.keytype}: boards verify Ed25519 only")
    return signer
