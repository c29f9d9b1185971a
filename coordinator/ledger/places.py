"""Where in a miner's directory something does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from edge_sdk.errors import CorruptLedgerError, EdgeFLError

LEDGER_FILE: Final = "ledger.sqlite3"
BLOBS_FOLDER: Final = "blobs"


@dataclass(frozen=True, slots=True)
class Places:
    """Names places below one folder; ``prefix`` is the folder as the user sees it, empty or ending in a slash."""

    prefix: str

    def corrupt(self, place: str, what: str, height: int | None = None) -> CorruptLedgerError:
        """Error for a file of the folder."""
        full = f"{self.prefix}{place}"
        where = full if height is None else f"{full}, height {height}"
        return CorruptLedgerError(f"{where}: {what}", place=full, height=height)

    def corrupt_table(self, table: str, what: str, height: int | None = None) -> CorruptLedgerError:
        """Error for a table of the ledger."""
        return self.corrupt(f"{LEDGER_FILE}: {table}", what, height)

    @contextmanager
    def table(self, table: str, height: int | None = None) -> Iterator[None]:
        """Name the table in every error of the block that does not name its place itself."""
        try:
            yield
        except CorruptLedgerError as error:
            if str(error).startswith(error.place):  # made by ``corrupt``: the place is complete
                raise
            raise self.corrupt(error.place, str(error), height if error.height is None else error.height) from error
        except EdgeFLError as error:
            raise self.corrupt_table(table, str(error), height) from error
