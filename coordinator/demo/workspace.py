"""Where a run keeps its files: a temporary folder that disappears, or one that the user keeps.

Layout of a run: ``miners/<id>/``, ``devices/<id>/``, ``sequencer/``, ``broker/``, ``ca/``, ``logs/``, ``data/``.
Sockets live elsewhere, in a short temporary folder: a Unix socket's path has room for 107 bytes only.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_sdk.errors import ConfigError


class Workspace:
    """Folders of one run. Leaving the context removes what the user did not ask to keep."""

    def __init__(self, keep: Path | None) -> None:
        """Make the folders.

        Raises:
            ConfigError: ``keep`` is a file, has content, or cannot be written.
        """
        self.is_kept = keep is not None
        self._sockets = Path(tempfile.mkdtemp(prefix="flchain-"))
        try:
            self.root = self._sockets / "run" if keep is None else _claim(keep)
            for folder in ("miners", "devices", "sequencer", "broker", "ca", "logs", "data"):
                (self.root / folder).mkdir(mode=0o700, parents=True)
        except OSError as error:
            shutil.rmtree(self._sockets)
            raise ConfigError(f"--keep {keep}: {error.strerror}: expected a folder that can be written") from error
        except ConfigError:
            shutil.rmtree(self._sockets)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._sockets)

    def socket(self, name: str) -> Path:
        """Path of a Unix socket, short enough whatever the user keeps."""
        return self._sockets / name

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.root / "logs"


def _claim(keep: Path) -> Path:
    """A folder that is new or empty; anything else may be somebody's run, or no run at all."""
    root = keep.absolute()
    if root.exists() and not root.is_dir():
        raise ConfigError(f"--keep {keep}: is a file: expected a new or empty folder")
    if root.is_dir() and any(root.iterdir()):
        raise ConfigError(f"--keep {keep}: is not empty: expected a new or empty folder")
    return root
