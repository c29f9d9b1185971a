"""Two model slots and a pointer: a model is written beside the one that runs, tested, and only then pointed at.

::

    slots/current            "a" or "b", replaced atomically
    slots/a/model.cbor       the blob
    slots/a/info.cbor        {1: version, 2: model root, 3: blob digest}, written after the blob
    slots/b/model.part       a download that may be resumed

A slot counts only with an info file and a blob of its digest, so a power cut at any moment leaves the old model or
the new one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk.adapters import failpoints
from edge_sdk.adapters.durable_files import (
    make_private_directory,
    read_file,
    sync_directory,
    sync_file,
    write_file,
)
from edge_sdk.errors import DecodeError, StoreError
from edge_sdk.protocol import codec
from edge_sdk.protocol.ids import Digest, check_digest
from edge_sdk.protocol.limits import BLOB_BYTES_MAX
from edge_sdk.protocol.messages import ModelParams
from edge_sdk.protocol.model import check_params, model_root
from edge_sdk.protocol.wire import from_bytes

NAMES: Final = ("a", "b")
_INFO_BYTES_MAX: Final = 256
_POINTER_BYTES_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class SlotModel:
    """A model in a slot."""

    slot: str
    version: int
    root: Digest
    blob_digest: Digest


class Slots:
    """The A/B slots below one directory. Methods raise ``StoreError`` when the disk refuses."""

    def __init__(self, root: Path) -> None:
        """Make the directories."""
        self._root = root
        for name in NAMES:
            make_private_directory(root / name)

    def current(self) -> SlotModel | None:
        """The model that the pointer names, if its blob is what its info says; None otherwise."""
        name = self._pointer()
        return None if name is None else self._inspect(name)

    def other(self) -> SlotModel | None:
        """The model in the slot that the pointer does not name."""
        return self._inspect(self._inactive())

    def read(self, model: SlotModel) -> ModelParams:
        """Parameters of a model in a slot.

        Raises:
            DecodeError: the blob is not a model, or not the one that was installed.
        """
        return decode_model(self.blob(model), model.root)

    def blob(self, model: SlotModel) -> bytes:
        """The blob of a model in a slot; empty when it is gone."""
        return read_file(self._root / model.slot / "model.cbor", bytes_max=BLOB_BYTES_MAX) or b""

    def part(self) -> Path:
        """File of the inactive slot into which the next model is downloaded."""
        return self._root / self._inactive() / "model.part"

    def stage(self, version: int, root: Digest, blob_digest: Digest) -> SlotModel:
        """Turn the download into the content of the inactive slot, after its digest was checked.

        Raises:
            DecodeError: the blob is not a model with this root; it is deleted.
        """
        part, slot = self.part(), self._inactive()
        data = read_file(part, bytes_max=BLOB_BYTES_MAX) or b""
        try:
            decode_model(data, root)
        except DecodeError:
            part.unlink(missing_ok=True)
            raise
        directory = self._root / slot
        # The old info goes first: a new blob beside an old info must never count.
        (directory / "info.cbor").unlink(missing_ok=True)
        sync_directory(directory)
        sync_file(part)
        part.replace(directory / "model.cbor")
        failpoints.hit("device.mid_stage")
        write_file(directory / "info.cbor", codec.encode({1: version, 2: root, 3: blob_digest}))
        return SlotModel(slot, version, root, blob_digest)

    def switch(self, model: SlotModel) -> None:
        """Point at a slot. The former one stays for a rollback."""
        failpoints.hit("device.before_switch")
        write_file(self._root / "current", model.slot.encode())
        failpoints.hit("device.after_switch")

    def _pointer(self) -> str | None:
        data = read_file(self._root / "current", bytes_max=_POINTER_BYTES_MAX)
        return next((name for name in NAMES if data is not None and name.encode() == data), None)

    def _inactive(self) -> str:
        return NAMES[1] if self._pointer() == NAMES[0] else NAMES[0]

    def _inspect(self, name: str) -> SlotModel | None:
        """A slot's model, if info and blob are whole and agree."""
        info = read_file(self._root / name / "info.cbor", bytes_max=_INFO_BYTES_MAX)
        try:
            data = read_file(self._root / name / "model.cbor", bytes_max=BLOB_BYTES_MAX)
        except StoreError:
            return None  # longer than any model: not one of ours
        if info is None or data is None:
            return None
        try:
            match codec.decode(info, bytes_max=_INFO_BYTES_MAX):
                case {1: int(version), 2: bytes(root), 3: bytes(digest)}:
                    model = SlotModel(name, version, check_digest(root), check_digest(digest))
                case _:
                    return None
        except DecodeError:
            return None
        return model if hashlib.sha256(data).digest() == model.blob_digest else None


def decode_model(data: bytes, root: Digest) -> ModelParams:
    """Read a model blob and hold it against its model root.

    Raises:
        DecodeError: it is malformed, breaks a bound or has another root.
    """
    params = from_bytes(ModelParams, data)
    check_params(params)
    found = model_root(params)
    if found != root:
        raise DecodeError(f"model root is {found.hex()}, certified is {root.hex()}")
    return params
