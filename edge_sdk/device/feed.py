"""``flchain device feed``: rows of a sensor stream from standard input into the board's replay buffer.

A row is a line of JSON: ``{"x": [...], "y": 3}``, x nested or flat in C order, y a label, or a list of floats for a
network without classes. Rows are written when 64 have come, when the stream rests for a second, and at its end; what
is written survives a power cut. With ``is_resumed`` the stream begins where it once began, and rows that the buffer has
seen are passed over, so that a feeder that was cut off can simply run again.
"""

from __future__ import annotations

import json
import math
import os
import select
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from edge_sdk.adapters.durable_files import read_file
from edge_sdk.adapters.replay_buffer import ReplayBuffer
from edge_sdk.adapters.replay_form import RowForm
from edge_sdk.device.config import DeviceConfig
from edge_sdk.errors import ConfigError, DecodeError, TrainingError
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge_sdk.training.artifact import Artifact

    Row = tuple[npt.NDArray[np.float32], int | npt.NDArray[np.float32]]

LINE_BYTES_MAX: Final = 4 * 1024 * 1024
ROWS_AT_ONCE: Final = 64
REST_S: Final = 1.0
_READ_BYTES: Final = 64 * 1024


def feed(config: DeviceConfig, descriptor: int, *, is_resumed: bool = False) -> str:
    """Read rows until the end of a stream.

    Args:
        config: Of the device; ``[device] data`` names the buffer, ``[replay]`` bounds it.
        descriptor: File descriptor to read lines from.
        is_resumed: Pass over as many rows as the buffer has seen.

    Returns:
        One line about what the buffer holds now.

    Raises:
        ConfigError: the device's data is no replay buffer, or it was made for other rows or bounds.
        TrainingError: a line is no row of this board's network; the rows before it are kept.
        StoreError: the disk refuses.
    """
    if not config.is_replay:
        raise ConfigError(f"{config.path}: [device] data = {config.data}: expected a replay buffer, NAME.sqlite3")
    feeder = _Feeder(config, is_resumed=is_resumed)
    try:
        for line in _lines(descriptor):
            if line is None:
                feeder.write()
            else:
                feeder.take(line)
    finally:
        summary = feeder.close()
    return summary


class _Feeder:
    """Collects rows, and writes them into a buffer that it opens for the first."""

    def __init__(self, config: DeviceConfig, *, is_resumed: bool) -> None:
        self._config = config
        self._artifact = _artifact(config)
        self._buffer: ReplayBuffer | None = None
        self._rows: list[Row] = []
        self._number = 0
        self._skipped = 0
        if is_resumed and config.data.exists():
            with ReplayBuffer.open_existing(config.data) as buffer:
                self._skipped = buffer.seen

    def take(self, line: bytes) -> None:
        """Take a line; blank ones are passed over."""
        if not line.strip():
            return
        self._number += 1
        if self._number <= self._skipped:
            return
        try:
            row = _row(line, self._artifact)
            self._check_form(row)
        except TrainingError as error:
            raise TrainingError(f"row {self._number}: {error}; the rows before it are kept") from error
        self._rows.append(row)
        if len(self._rows) >= ROWS_AT_ONCE:
            self.write()

    def _check_form(self, row: Row) -> None:
        """Rows are written together: each must have the form of the first."""
        if not self._rows:
            return
        first = self._rows[0]
        if (row[0].shape, _target_count(row)) != (first[0].shape, _target_count(first)):
            raise TrainingError("another form than the row before it")

    def write(self) -> None:
        """Write what was collected."""
        import numpy as np

        if not self._rows:
            return
        rows, self._rows = self._rows, []
        x, y = np.stack([row[0] for row in rows]), np.array([row[1] for row in rows])
        if self._buffer is None:
            self._buffer = ReplayBuffer.open(
                self._config.data,
                RowForm.of(x, y),
                rows_max=self._config.replay_rows_max,
                bytes_max=self._config.replay_bytes_max,
                seed=self._config.seed,
            )
        self._buffer.add(x, y)

    def close(self) -> str:
        """Write the rest; one line about the buffer."""
        try:
            self.write()
            if self._buffer is None:
                return "no rows came"
            counts = sorted(self._buffer.counts().items())
            held = ", ".join(f"class {label}: {count.stored} of {count.seen}" for label, count in counts)
            return f"{self._config.data}: holds {len(self._buffer)} of {self._buffer.seen} rows ({held})"
        finally:
            if self._buffer is not None:
                self._buffer.close()


def _lines(descriptor: int) -> Iterator[bytes | None]:
    """Lines of a stream; None whenever it rests."""
    pending = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], REST_S)
        if not ready:
            yield None
            continue
        data = os.read(descriptor, _READ_BYTES)
        *whole, pending = (pending + data).split(b"\n")
        yield from whole
        if len(pending) > LINE_BYTES_MAX:
            raise TrainingError(f"a line of more than {LINE_BYTES_MAX} bytes: expected one row of JSON in each line")
        if not data:
            yield pending
            return


def _row(line: bytes, artifact: Artifact | None) -> Row:
    """One row, held against the artifact where the board has it already."""
    import numpy as np

    try:
        fields = json.loads(line)
        with np.errstate(over="ignore"):  # what is too large for float32 is refused below
            x, y = np.asarray(fields["x"], np.float32), fields["y"]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        shown = line[:60].decode(errors="replace")
        raise TrainingError(f'{shown!r}: expected {{"x": [numbers], "y": label}}') from error
    if artifact is not None:
        shape = artifact.network.input_shape
        if x.shape != shape and x.shape != (math.prod(shape),):
            raise TrainingError(f"x has shape {x.shape}, the artifact takes {shape}")
        x = x.reshape(shape)
    if not x.ndim or not np.isfinite(x).all():
        raise TrainingError("x holds a value that is not finite, or is no list")
    return x, _target(y, artifact)


def _target(y: Any, artifact: Artifact | None) -> int | npt.NDArray[np.float32]:
    """A label, or the targets of a network without classes."""
    import numpy as np

    count = None if artifact is None else artifact.network.class_count
    has_labels = isinstance(y, int) and not isinstance(y, bool)
    if artifact is not None and has_labels != artifact.network.is_classifier:
        expected = "a label" if artifact.network.is_classifier else f"{count} numbers"
        raise TrainingError(f"y is {str(y)[:40]}: expected {expected}")
    if has_labels:
        if count is not None and not 0 <= y < count:
            raise TrainingError(f"y is {y}: expected a label in 0..{count - 1}")
        return int(y)
    try:
        with np.errstate(over="ignore"):
            targets = np.asarray(y, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise TrainingError(f"y is {str(y)[:40]}: expected a label, or a list of numbers") from error
    if targets.ndim != 1 or not len(targets) or (count is not None and len(targets) != count):
        raise TrainingError(f"y has shape {targets.shape}: expected a label, or a list of {count or 'some'} numbers")
    if not np.isfinite(targets).all():
        raise TrainingError("y holds a value that is not finite")
    return targets


def _target_count(row: Row) -> int:
    return 0 if isinstance(row[1], int) else len(row[1])


def _artifact(config: DeviceConfig) -> Artifact | None:
    """The board's artifact, where it has come already."""
    from edge_sdk.training.artifact import Artifact

    data = read_file(config.artifact_file, bytes_max=ARTIFACT_BYTES_MAX)
    if data is None:
        return None
    try:
        return Artifact.load(data)
    except DecodeError as error:
        raise ConfigError(f"{config.artifact_file}: {error}") from error
