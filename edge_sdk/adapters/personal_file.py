"""The personal model of a board on its disk: one file, replaced as a whole.

It holds the mix, the own parameters that the next mix takes, and what the held-out examples said. It belongs to one
chain and one artifact; of others it is forgotten. Losing it costs one job.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_sdk.adapters.durable_files import PRIVATE_MODE, read_file, write_file
from edge_sdk.errors import DecodeError, StoreError
from edge_sdk.protocol import codec
from edge_sdk.protocol.digest import genesis_digest, sha256
from edge_sdk.protocol.limits import BLOB_BYTES_MAX
from edge_sdk.protocol.messages import Genesis, ModelParams
from edge_sdk.protocol.wire import from_bytes, to_bytes

log: Final = logging.getLogger(__name__)

_FORMAT: Final = 1
_FILE_BYTES_MAX: Final = 2 * BLOB_BYTES_MAX + 1_024
_PERMILLE: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalModel:
    """What the file holds. Accuracies are of the held-out examples, which also chose alpha and model."""

    local: ModelParams
    """Parameters at the end of the last job."""
    mix: ModelParams
    version: int
    """Of the global model in the mix."""
    alpha: float
    held_out: int
    correct_personal: int
    correct_global: int
    is_better: bool
    """Whether the mix is the model to use here, and not the global one."""

    def summary(self) -> dict[str, Any]:
        """For ``flchain device status``."""
        return {
            "version": self.version,
            "alpha": self.alpha,
            "held_out": self.held_out,
            "accuracy": round(self.correct_personal / self.held_out, 4),
            "accuracy_global": round(self.correct_global / self.held_out, 4),
            "chosen": "personal" if self.is_better else "global",
        }


class PersonalFile:
    """Reads and writes ``personal.cbor``."""

    def __init__(self, path: Path, genesis: Genesis) -> None:
        """Name file and owner."""
        self._path = path
        self._owner = sha256(genesis_digest(genesis), genesis.artifact_digest)

    def read(self) -> PersonalModel | None:
        """What is there; None where nothing is, or nothing of this chain that can be read."""
        try:
            data = read_file(self._path, bytes_max=_FILE_BYTES_MAX)
            return None if data is None else self._decoded(data)
        except (DecodeError, StoreError) as error:
            log.warning("personal model forgotten: %s: %s", self._path, error)
            return None

    def write(self, model: PersonalModel) -> None:
        """Replace it.

        Raises:
            StoreError: the disk refuses.
        """
        fields = {
            1: _FORMAT,
            2: self._owner,
            3: to_bytes(model.local),
            4: to_bytes(model.mix),
            5: model.version,
            6: round(model.alpha * _PERMILLE),
            7: model.held_out,
            8: model.correct_personal,
            9: model.correct_global,
            10: model.is_better,
        }
        write_file(self._path, codec.encode(fields), mode=PRIVATE_MODE)

    def _decoded(self, data: bytes) -> PersonalModel:
        match codec.decode(data, bytes_max=_FILE_BYTES_MAX):
            case {
                1: 1,
                2: self._owner,
                3: bytes(local),
                4: bytes(mix),
                5: int(version),
                6: int(alpha),
                7: int(held_out),
                8: int(personal),
                9: int(global_),
                10: bool(is_better),
            } if held_out > 0:
                return PersonalModel(
                    local=from_bytes(ModelParams, local),
                    mix=from_bytes(ModelParams, mix),
                    version=version,
                    alpha=alpha / _PERMILLE,
                    held_out=held_out,
                    correct_personal=personal,
                    correct_global=global_,
                    is_better=is_better,
                )
        raise DecodeError("not of this chain and artifact")
