"""Runs a command where arm64 programs run: a private user and mount namespace with its own binfmt_misc.

Linux 6.7 and later keep the list of interpreters per user namespace, so nothing of this machine changes. util-linux
could map the ids only with the setuid programs of package uidmap; root writes the maps itself.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

INTERPRETER: Final = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
"""Of Debian's package qemu-user-static."""
IDS: Final = "0 0 65536\n"
START_S: Final = 10.0
_POLL_S: Final = 0.02
# The first line waits for the maps. Registering may already be done where the kernel shares one list.
_INSIDE: Final = """
read -r _
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || cat "$0" > /proc/sys/fs/binfmt_misc/register
exec "$@" </dev/null
"""


def run_foreign(command: Sequence[str], log: Path) -> None:
    """Run a command in the namespace, its output into ``log``.

    Raises:
        RuntimeError: the namespace cannot be made, or the command fails; the log says why.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["/usr/bin/unshare", "--user", "--mount", "sh", "-euc", _INSIDE, str(INTERPRETER), *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        )
        assert process.stdin is not None
        try:
            _map_ids(process)
            process.stdin.write(b"go\n")
            process.stdin.close()
            status = process.wait()
        finally:
            process.kill()
            process.wait()
    if status != 0:
        tail = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{command[0]}: exit status {status}, see {log}:\n{tail}")


def _map_ids(process: subprocess.Popen[bytes]) -> None:
    """Give the child's new user namespace the first 65536 users and groups."""
    ours = Path("/proc/self/ns/user").readlink()
    deadline = time.monotonic() + START_S
    while Path(f"/proc/{process.pid}/ns/user").readlink() == ours:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("no user namespace: this needs root and user namespaces of the kernel")
        time.sleep(_POLL_S)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{process.pid}/{name}").write_text(IDS)
