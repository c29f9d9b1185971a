"""A service manager of one service, as a program: ``python service_program.py start|stop|state FOLDER``.

Stands in for systemd where there is none: keeps one process of ``FOLDER/environments/current/bin/flchain device run``
alive, restarts it when it fails, and gives up after a few times. Standard library only; real processes, real signals.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RESTARTS_MAX = 3
RESTART_S = 0.3
STOP_S = 30.0


def main(argv: list[str]) -> int:
    command, folder = argv[0], Path(argv[1])
    if command == "start":
        if not _is_alive(_keeper(folder)):
            _write(folder / "service.state", "activating")
            with (folder / "service.log").open("ab") as log:
                subprocess.Popen(
                    [sys.executable, __file__, "keep", str(folder)], stdout=log, stderr=log, start_new_session=True
                )
            _wait((folder / "service.pid").exists)
    elif command == "stop":
        pid = _keeper(folder)
        if pid is not None and _is_alive(pid):
            os.kill(pid, signal.SIGTERM)
            _wait(lambda: not _is_alive(pid))
    elif command == "state":
        state = (folder / "service.state").read_text() if (folder / "service.state").exists() else "inactive"
        sys.stdout.write(state if state in {"failed", "inactive"} or _is_alive(_keeper(folder)) else "inactive")
    else:
        return _keep(folder)
    return 0


def _keep(folder: Path) -> int:
    """Run the device until SIGTERM or too many failures."""
    child: subprocess.Popen[bytes] | None = None
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.terminate()

    signal.signal(signal.SIGTERM, stop)
    _write(folder / "service.pid", str(os.getpid()))
    state = folder / "service.state"
    for _ in range(RESTARTS_MAX + 1):
        command = [str(folder / "environments" / "current" / "bin" / "flchain"), "device", "run"]
        child = subprocess.Popen([*command, "--config", str(folder / "device" / "device.toml")])
        _write(state, "active")
        status = child.wait()
        if stopping or status == 0:
            _write(state, "inactive")
            break
        _write(state, "restarting")
        time.sleep(RESTART_S)
    else:
        _write(state, "failed")
    (folder / "service.pid").unlink()
    return 0


def _write(path: Path, text: str) -> None:
    """At once: whoever asks for the state in between must not read an empty one."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(text)
    part.replace(path)


def _keeper(folder: Path) -> int | None:
    try:
        return int((folder / "service.pid").read_text())
    except (OSError, ValueError):
        return None


def _is_alive(pid: int | None) -> bool:
    try:
        return pid is not None and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _wait(condition: object) -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + STOP_S
    while not condition():
        if time.monotonic() > deadline_s:
            sys.exit("timed out")
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
