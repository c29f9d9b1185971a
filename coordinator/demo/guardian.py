"""Ends the fleet when its supervisor is gone: run as a script of its own, with nothing imported but the basics.

The supervisor writes ``+PID`` for each process group that it starts and ``-PID`` for each that has ended. The end of
the pipe means that the supervisor has ended too, by whatever cause: what is left then is killed. A signal at parent
death (``PR_SET_PDEATHSIG``) would do for children, but not for theirs.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import IO


def main(stream: IO[str]) -> None:
    """Read the pipe to its end, then kill what is left."""
    groups: set[int] = set()
    for line in stream:
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended by itself in the same moment


if __name__ == "__main__":
    # A session of its own hides it from Ctrl-C; a polite end of the session must not end it before the fleet.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    main(sys.stdin)
