"""Forward models as files: bounded reads, and external data only from the model's own folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.authoring.import_onnx import Imported, import_onnx
from coordinator.authoring.onnx_reader import FILE_BYTES_MAX
from edge_sdk.errors import TrainingError

if TYPE_CHECKING:
    from coordinator.authoring.onnx_reader import ReadExternal


def import_file(path: Path, *, loss: str, smoothing: float = 0.0) -> Imported:
    """Read and import a forward ONNX model.

    Raises:
        TrainingError: as ``import_onnx``, or the file cannot be read; the text begins with the file.
    """
    try:
        return import_onnx(_read(path), loss=loss, smoothing=smoothing, read_external=_external(path.resolve().parent))
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from error
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror or error}") from error


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise TrainingError(f"more than {FILE_BYTES_MAX} bytes")
    return data


def _external(folder: Path) -> ReadExternal:
    def read(location: str, offset: int, length: int) -> bytes:
        if "\0" in location:
            raise TrainingError("external data: a null byte in the name of its file")
        file = (folder / location).resolve()  # follows links, so that none leads out
        if not location or not file.is_relative_to(folder) or not file.is_file():
            raise TrainingError(f"external data {location[:80]!r} is not a file in the folder of the model")
        if not 0 <= offset <= file.stat().st_size - length:
            raise TrainingError(f"{length} bytes at {offset} of {location[:80]!r} do not fit the file")
        with file.open("rb") as source:
            source.seek(offset)
            return source.read(length)

    return read
