"""A new key for an enrolled board, without a claim: the old key signs for the new one, and ends.

Three names beside the key file make every power cut harmless: ``.next`` is made before anything is asked; once the
registrar has taken it, the certificate comes as ``.next`` too; then key and certificate move into place, in this order.
A repetition completes what was begun, and asks with the new key first, since the answer may have been lost.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Final

from edge_sdk.adapters import failpoints
from edge_sdk.adapters.durable_files import sync_directory
from edge_sdk.adapters.enrolment import Membership, Places, RegistrarRefusalError, renew
from edge_sdk.adapters.keys import create_key
from edge_sdk.protocol.ids import ChainId, DeviceId, Digest
from edge_sdk.protocol.messages import Algorithm

log: Final = logging.getLogger(__name__)


def rotate(
    url: str,
    places: Places,
    *,
    device_id: DeviceId,
    chain_id: ChainId,
    genesis_digest: Digest | None,
    algorithm: Algorithm,
) -> Membership:
    """Replace this board's key; safe to repeat after any failure.

    Raises:
        ConnectError, RemoteProtocolError, StoreError: as ``renew``; the old key is in place, or the new one is.
    """
    new = _next(places)
    if new.cert_file.exists():  # the registrar has answered, and the moves were cut off
        _settle(new, places)
        return renew(url, places, device_id=device_id, chain_id=chain_id, genesis_digest=genesis_digest)
    if not new.key_file.exists():
        create_key(new.key_file, algorithm)
        failpoints.hit("rotation.key_made")
        asked_with = places.key_file
    else:
        asked_with = new.key_file
    try:
        membership = renew(
            url, new, device_id=device_id, chain_id=chain_id, genesis_digest=genesis_digest, signer_file=asked_with
        )
    except RegistrarRefusalError as error:
        if asked_with is places.key_file:
            raise
        log.info("the registrar does not know the new key yet: %s", error)
        membership = renew(
            url, new, device_id=device_id, chain_id=chain_id, genesis_digest=genesis_digest, signer_file=places.key_file
        )
    failpoints.hit("rotation.answered")
    _settle(new, places)
    return membership


def is_unfinished(places: Places) -> bool:
    """Whether a rotation was cut off."""
    new = _next(places)
    return new.key_file.exists() or new.cert_file.exists()


def _settle(new: Places, places: Places) -> None:
    """Key first: a certificate beside the old key would look like that of another board."""
    if new.key_file.exists():
        _move(new.key_file, places.key_file)
    failpoints.hit("rotation.key_moved")
    _move(new.cert_file, places.cert_file)


def _next(places: Places) -> Places:
    return replace(places, key_file=_beside(places.key_file), cert_file=_beside(places.cert_file))


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".next")


def _move(source: Path, target: Path) -> None:
    source.replace(target)
    sync_directory(target.parent)
