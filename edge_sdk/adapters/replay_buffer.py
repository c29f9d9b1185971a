"""Rows of a sensor stream that a board keeps to train on: bounded, balanced over classes, in one SQLite file.

A board that sees its data once still needs a data set. Rows come in, ``training.reservoir`` decides which stay, and a
job copies what is there when it starts, so that its batches do not change while the stream goes on.

Every ``add`` is a transaction with ``synchronous=FULL``: after a power cut the file holds the first ``seen`` rows of
the stream as if nothing had happened, and a feeder that knows where it was goes on from there. Chance comes from seed
and row number alone, so the same stream leaves the same rows, however often it was interrupted.

A row is written over another of the same size, never deleted: the file does not fragment and stays below its bound.
Several processes may feed and read one file; each transaction reads the counts that it changes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from edge_sdk.adapters import failpoints
from edge_sdk.adapters.replay_form import PAGE_BYTES, RowForm
from edge_sdk.errors import ConfigError, CorruptStoreError, LocalProtocolError, StoreError, TrainingError
from edge_sdk.protocol.limits import CLASSES_MAX

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_sdk.training.reservoir import ClassCount

ROWS_MAX: Final = 4_096
BYTES_MAX: Final = 64 * 1024 * 1024
_FORMAT: Final = 1
_FIXED_BYTES: Final = 64 * 1024
"""Schema, counts of all classes, and room to spare."""
_TRANSACTION_BYTES_MAX: Final = 1024 * 1024
_TRANSACTION_ROWS_MAX: Final = 256
_WAL_PAGES: Final = 256
"""The journal beside the file is copied into it at this length: 1 MiB, and one transaction more."""
_BUSY_TIMEOUT_S: Final = 30.0

_TABLES: Final = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE classes (label INTEGER PRIMARY KEY, seen INTEGER NOT NULL, is_full INTEGER NOT NULL)",
    # number: place in the stream, from 0. place: 0..n-1 within the class.
    """CREATE TABLE rows (
        slot INTEGER PRIMARY KEY,
        label INTEGER NOT NULL,
        place INTEGER NOT NULL,
        number INTEGER NOT NULL,
        x BLOB NOT NULL,
        y BLOB NOT NULL
    )""",
    "CREATE UNIQUE INDEX by_class ON rows (label, place)",
)


class ReplayBuffer:
    """See the module. Use ``open`` or ``open_existing``; one thread uses a buffer."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        """Use ``open``."""
        self._path = path
        self._db = db
        self._form: RowForm | None = None
        self.capacity = 0
        """Rows that it holds at most."""
        self._seed = 0

    @classmethod
    def open(
        cls, path: Path, form: RowForm, *, rows_max: int = ROWS_MAX, bytes_max: int = BYTES_MAX, seed: int = 0
    ) -> ReplayBuffer:
        """Open a buffer to feed it, or make it.

        Args:
            path: NAME.sqlite3.
            form: Of every row.
            rows_max: Rows held at most.
            bytes_max: Longest file; a journal beside it takes up to 2 MiB more while rows come in.
            seed: Of the choice.

        Raises:
            ConfigError: it was made for other rows or other bounds, or not one row fits.
            CorruptStoreError: it is damaged, or no buffer.
            StoreError: it cannot be opened.
        """
        capacity = min(rows_max, (bytes_max - _FIXED_BYTES) // form.disk_bytes)
        if capacity < 1:
            raise ConfigError(f"{path}: a row takes {form.row_bytes} bytes: expected more than {bytes_max} for all")
        wanted = {"format": _FORMAT, "form": asdict(form), "capacity": capacity, "seed": seed}
        is_new = not path.exists()
        try:
            buffer = cls(path, sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None))
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}") from error
        try:
            with buffer._guard():
                if is_new:
                    path.chmod(0o600)
                    buffer._db.execute(f"PRAGMA page_size={PAGE_BYTES}")
                buffer._db.execute("PRAGMA journal_mode=WAL")
                buffer._db.execute("PRAGMA synchronous=FULL")
                buffer._db.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES}")
                buffer._db.execute(f"PRAGMA max_page_count={bytes_max // PAGE_BYTES}")
                buffer._db.execute("PRAGMA cache_size=-512")
                buffer._create(wanted)
            buffer._read_meta()
            buffer._check(form, capacity, seed)
        except Exception:
            buffer.close()
            raise
        return buffer

    @classmethod
    def open_existing(cls, path: Path) -> ReplayBuffer:
        """Open a buffer to read it, beside those who feed it.

        Raises:
            StoreError: there is none, or it cannot be read; CorruptStoreError: it is damaged, or no buffer.
        """
        if not path.exists():
            raise StoreError(f"{path}: there is no replay buffer yet; feed it with flchain device feed")
        try:
            db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=_BUSY_TIMEOUT_S, uri=True)
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}") from error
        db.isolation_level = None
        buffer = cls(path, db)
        try:
            buffer._read_meta()
        except Exception:
            buffer.close()
            raise
        return buffer

    @property
    def form(self) -> RowForm:
        """Of every row."""
        if self._form is None:
            raise LocalProtocolError("the buffer is not open")
        return self._form

    @property
    def seen(self) -> int:
        """Rows of the stream so far, kept or not: where a feeder goes on after an interruption."""
        with self._guard():
            return int(self._db.execute("SELECT coalesce(sum(seen), 0) FROM classes").fetchone()[0])

    def __len__(self) -> int:
        """Rows held now."""
        with self._guard():
            return int(self._db.execute("SELECT count(*) FROM rows").fetchone()[0])

    def counts(self) -> dict[int, ClassCount]:
        """What is known of each class; of targets without labels all is class 0."""
        from edge_sdk.training.reservoir import ClassCount

        with self._guard():
            rows = self._db.execute(
                "SELECT label, (SELECT count(*) FROM rows WHERE rows.label = classes.label), seen, is_full FROM classes"
            ).fetchall()
        return {label: ClassCount(stored, seen, bool(is_full)) for label, stored, seen, is_full in rows}

    def add(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
        """Take rows of the stream in their order; they are on the disk when this returns.

        Args:
            x: (n, *input_shape), uint8 for a buffer of bytes, else any float.
            y: (n,) integer labels from 0 on, or (n, target_count) floats.

        Raises:
            TrainingError: a row has another form, label or a value that is not finite; the text names it. None is kept.
            StoreError: the disk refuses; the rows of earlier transactions are kept, see ``seen``.
        """
        import numpy as np

        from edge_sdk.training.dataset import ArrayDataset

        form, has_labels = self.form, self.form.target_count == 0
        if (x.dtype == np.uint8) != (form.x_type == "uint8"):
            raise TrainingError(f"array x: type {x.dtype}, this buffer holds {form.x_type}")
        rows = ArrayDataset(
            x,
            y,
            input_shape=form.input_shape,
            class_count=CLASSES_MAX if has_labels else form.target_count,
            has_labels=has_labels,
        )
        with np.errstate(over="ignore"):  # what is too large for float32 is refused below
            features = x.astype("u1" if form.x_type == "uint8" else "<f4")
        if not np.isfinite(features).all():
            raise TrainingError("array x: a value is beyond float32")
        step = max(1, min(_TRANSACTION_ROWS_MAX, _TRANSACTION_BYTES_MAX // form.row_bytes))
        for start in range(0, len(features), step):
            chosen = range(start, min(start + step, len(features)))
            labels = [int(rows.y[index]) if has_labels else 0 for index in chosen]
            targets = [b"" if has_labels else rows.y[index].astype("<f4").tobytes() for index in chosen]
            self._add([features[index].tobytes() for index in chosen], labels, targets)

    def read(self, limit: int | None = None) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """The oldest ``limit`` rows that are held, or all: x, y and their places in the stream, in memory.

        Raises:
            StoreError: it cannot be read.
        """
        import numpy as np

        with self._reading(limit) as (count, found):
            x, y, numbers = self._empty(count, np.empty)
            for index, row in enumerate(found):
                self._put(row, index, x, y, numbers)
        return x, y, numbers

    def snapshot(self, folder: Path) -> None:
        """Copy all rows into ``x.npy``, ``y.npy`` and ``number.npy`` of a new folder, without holding them in memory.

        Raises:
            TrainingError: there is no row.
            StoreError: it cannot be read, or the disk refuses.
        """
        import numpy as np

        def mapped(name: str) -> Any:
            return lambda shape, dtype: np.lib.format.open_memmap(folder / name, "w+", dtype, shape)

        try:
            folder.mkdir(mode=0o700)
            with self._reading(None) as (count, found):
                if count == 0:
                    raise TrainingError(f"{self._path}: holds no rows yet; feed it with flchain device feed")
                arrays = self._empty(count, mapped("x.npy"), mapped("y.npy"), mapped("number.npy"))
                for index, row in enumerate(found):
                    self._put(row, index, *arrays)
            for array in arrays:
                array.flush()
        except OSError as error:
            raise StoreError(f"{folder}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Empty the journal and let go of the file."""
        self._db.close()

    def __enter__(self) -> Self:
        """Use in ``with``."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    # --- inside ---

    def _add(self, features: list[bytes], labels: list[int], targets: list[bytes]) -> None:
        """One transaction."""
        from edge_sdk.training.reservoir import Place, arrive, draws

        with self._guard(), self._transaction():
            counts = self.counts()
            number = sum(count.seen for count in counts.values())
            for x, label, y in zip(features, labels, targets, strict=True):
                changed, place = arrive(counts, label, capacity=self.capacity, draw=draws(self._seed, number))
                before, counts = counts, counts | changed
                if place == Place():
                    slot = sum(count.stored for count in before.values())
                    row = (slot, label, counts[label].stored - 1, number, x, y)
                    self._db.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", row)
                elif place is not None:
                    self._replace(place, counts, label, number, x, y)
                self._db.executemany(
                    "INSERT OR REPLACE INTO classes VALUES (?, ?, ?)",
                    [(name, count.seen, count.is_full) for name, count in changed.items()],
                )
                number += 1
            failpoints.hit("device.replay_before_commit")

    def _replace(self, place: Any, counts: dict[int, ClassCount], label: int, number: int, x: bytes, y: bytes) -> None:
        """Write a row over another one; the last row of a class that gave way takes the place that is empty."""
        where = (place.label, place.index)
        (slot,) = self._db.execute("SELECT slot FROM rows WHERE label = ? AND place = ?", where).fetchone()
        target = place.index if place.label == label else counts[label].stored - 1
        if place.label != label:
            self._db.execute("UPDATE rows SET label = -1 WHERE slot = ?", (slot,))
            moved = (place.index, place.label, counts[place.label].stored)
            self._db.execute("UPDATE rows SET place = ? WHERE label = ? AND place = ?", moved)
        self._db.execute(
            "UPDATE rows SET label = ?, place = ?, number = ?, x = ?, y = ? WHERE slot = ?",
            (label, target, number, x, y, slot),
        )

    @contextmanager
    def _reading(self, limit: int | None) -> Iterator[tuple[int, Iterator[Any]]]:
        """How many rows there are, and a walk through them in the order of the stream, all of one moment."""
        with self._guard():
            self._db.execute("BEGIN")
            try:
                (count,) = self._db.execute("SELECT count(*) FROM rows").fetchone()
                taken = count if limit is None else min(limit, count)
                yield (
                    taken,
                    self._db.execute("SELECT label, number, x, y FROM rows ORDER BY number LIMIT ?", (taken,)),
                )
            finally:
                self._db.execute("ROLLBACK")

    def _empty(self, count: int, make_x: Any, make_y: Any = None, make_number: Any = None) -> tuple[Any, Any, Any]:
        form = self.form
        x = make_x((count, *form.input_shape), "u1" if form.x_type == "uint8" else "<f4")
        y_shape, y_type = ((count, form.target_count), "<f4") if form.target_count else ((count,), "<i8")
        return x, (make_y or make_x)(y_shape, y_type), (make_number or make_x)((count,), "<i8")

    def _put(self, row: Any, index: int, x: Any, y: Any, numbers: Any) -> None:
        import numpy as np

        label, number, features, targets = row
        if len(features) != x[index].nbytes or (self.form.target_count and len(targets) != y[index].nbytes):
            raise CorruptStoreError(f"{self._path}: row {number} has another length than its form")
        x[index] = np.frombuffer(features, x.dtype).reshape(x.shape[1:])
        y[index] = np.frombuffer(targets, y.dtype) if self.form.target_count else label
        numbers[index] = number

    def _create(self, wanted: dict[str, object]) -> None:
        with self._transaction():
            if self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                return
            for statement in _TABLES:
                self._db.execute(statement)
            self._db.execute("INSERT INTO meta VALUES ('buffer', ?)", (json.dumps(wanted),))

    def _read_meta(self) -> None:
        with self._guard():
            try:
                row = self._db.execute("SELECT value FROM meta WHERE key = 'buffer'").fetchone()
            except sqlite3.OperationalError as error:
                raise CorruptStoreError(f"{self._path}: no replay buffer: {error}") from error
        try:
            found = json.loads(row[0])
            form = found["form"] | {"input_shape": tuple(found["form"]["input_shape"])}
            self._form, self.capacity, self._seed = RowForm(**form), int(found["capacity"]), int(found["seed"])
            is_known = found["format"] == _FORMAT
        except (TypeError, ValueError, KeyError, TrainingError) as error:
            raise CorruptStoreError(f"{self._path}: no replay buffer: {error}") from error
        if not is_known:
            raise CorruptStoreError(f"{self._path}: format {found['format']}, expected {_FORMAT}")

    def _check(self, form: RowForm, capacity: int, seed: int) -> None:
        """A sample stays uniform only under the rules that it began with."""
        for what, found, expected in (
            ("rows", self.form, form),
            ("room for", self.capacity, capacity),
            ("seed", self._seed, seed),
        ):
            if found != expected:
                raise ConfigError(
                    f"{self._path}: made with {what} {found}, expected {expected}; remove it to begin anew"
                )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Errors of SQLite as ours."""
        try:
            yield
        except sqlite3.OperationalError as error:  # locked, full, not writable
            raise StoreError(f"{self._path}: {error}") from error
        except sqlite3.Error as error:
            raise CorruptStoreError(f"{self._path}: {error}") from error
