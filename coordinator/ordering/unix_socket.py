"""Listening on a Unix socket that only the own user may open."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edge_sdk.errors import ConfigError

PATH_BYTES_MAX: Final = 107
"""sizeof(sun_path) - 1, see unix(7)."""


@contextmanager
def unix_listener(path: Path, *, backlog: int = 128) -> Iterator[socket.socket]:
    """Listen with mode 0600; replaces the socket file of a dead process, removes its own at the end.

    Raises:
        ConfigError: the path is too long, cannot be used, is not a socket, or another process listens there.
    """
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise ConfigError(f"{path}: socket path of {len(os.fsencode(path))} bytes: expected at most {PATH_BYTES_MAX}")
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # On Linux the file takes the mode of the unbound socket, so there is no moment with a wider one.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{path}: cannot listen: {error.strerror}: expected a socket path in a directory of ours"
        ) from error
    listener.settimeout(0)
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # absent; other reasons show at bind
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path}: is not a socket: expected a free path or the socket of a process that ended")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}: expected a socket of ours") from error
        else:
            raise ConfigError(f"{path}: another process listens there: expected a free socket path")
