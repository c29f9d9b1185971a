"""Images and labels in the IDX format of the MNIST family (MNIST, Fashion-MNIST, EMNIST digits, KMNIST ...).

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", file formats: big-endian magic
0x0000TTDD (TT = 8 for unsigned bytes, DD dimensions), DD sizes as uint32, then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from coordinator.datasets.labelled import Features, LabelledData, check_examples
from edge_sdk.errors import ConfigError

UNSIGNED_BYTE: Final = 8
FILE_BYTES_MAX: Final = 512 * 1024 * 1024
"""Unpacked; a compressed file cannot make us allocate more."""
PIXEL_MAX: Final = 255.0
GZIP_MAGIC: Final = b"\x1f\x8b"


def load_idx(folder: Path) -> LabelledData:
    """Read the four files of a folder, plain or gzip; names with ``-idx3-ubyte`` and with ``.idx3-ubyte`` are known.

    Raises:
        ConfigError: a file is missing, is not what its header says, or the arrays do not fit together.
    """
    x_train, y_train = _read_pair(folder, "train")
    x_test, y_test = _read_pair(folder, "t10k")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ConfigError(f"{folder}: training images are {x_train.shape[1:]}, test images {x_test.shape[1:]}")
    class_count = int(max(y_train.max(), y_test.max())) + 1
    check_examples(x_train, y_train, place=f"{folder} (train)", class_count=class_count)
    check_examples(x_test, y_test, place=f"{folder} (t10k)", class_count=class_count)
    return LabelledData(
        name="idx",
        x_train=_scaled(x_train),
        y_train=y_train.astype(np.int64),
        x_test=_scaled(x_test),
        y_test=y_test.astype(np.int64),
        groups=None,
        class_names=tuple(str(label) for label in range(class_count)),
    )


def _scaled(images: npt.NDArray[np.uint8]) -> Features:
    """Bytes (n, h, w) -> float32 (n, 1, h, w) in 0..1."""
    scaled: Features = images[:, np.newaxis].astype(np.float32)
    scaled /= np.float32(PIXEL_MAX)
    return scaled


def _read_pair(folder: Path, part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    images = _read_file(_find(folder, f"{part}-images", "idx3-ubyte"), dimensions=3)
    labels = _read_file(_find(folder, f"{part}-labels", "idx1-ubyte"), dimensions=1)
    if len(images) != len(labels):
        raise ConfigError(f"{folder}: {len(images)} {part} images and {len(labels)} labels")
    return images, labels


def _find(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{separator}{kind}{suffix}" for separator in "-." for suffix in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{folder}: no {names[0]} (also tried {', '.join(names[1:])})")


def _read_file(path: Path, *, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read one IDX file; header and length are checked against each other before the values are taken."""
    try:
        data = _read_bounded(path)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    header_bytes = 4 + 4 * dimensions
    if len(data) < header_bytes or data[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
        found = data[:4].hex() or "nothing"
        raise ConfigError(f"{path}: starts with {found}: expected 0000{UNSIGNED_BYTE:02x}{dimensions:02x} (IDX)")
    shape = struct.unpack(f">{dimensions}I", data[4:header_bytes])
    expected = math.prod(shape)
    if len(data) - header_bytes != expected or expected == 0:
        raise ConfigError(f"{path}: header says {shape}, {expected} values; the file holds {len(data) - header_bytes}")
    return np.frombuffer(data, dtype=np.uint8, offset=header_bytes).reshape(shape)


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
    with gzip.open(path) if compressed else path.open("rb") as stream:
        data = stream.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: more than {FILE_BYTES_MAX} bytes unpacked")
    return bytes(data)
