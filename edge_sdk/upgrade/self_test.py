"""Runs the self-test (``probe``) of a client that is not running yet, as the device's user.

Nothing is believed of what it says but whether it passed, and for which version.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_sdk.errors import ConfigError
from edge_sdk.upgrade.release import Release

PROBE: Final = "edge_sdk.upgrade.probe"
REASON_CHARS_MAX: Final = 400


@dataclass(frozen=True, slots=True)
class SelfTest:
    """How to run it on this board."""

    files: tuple[Path, ...]
    """device.toml and upgrade.toml."""
    rights: dict[str, Any]
    """Of ``rights_of``."""
    timeout_s: float

    def run(self, environment: Path, release: Release) -> str | None:
        """Run the test of a new environment; what is wrong, None when nothing is."""
        command = [str(environment / "bin" / "python"), "-I", "-m", PROBE]
        try:
            done = _run([*command, *(str(path.absolute()) for path in self.files)], self.timeout_s, self.rights)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)[:REASON_CHARS_MAX]
        if done.returncode:
            return " ".join(done.stderr.split())[-REASON_CHARS_MAX:] or f"status {done.returncode}"
        try:
            said = json.loads(done.stdout)
            found = (said["version"], said["state_schema"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return "the self-test printed no result"
        if found == (release.version, release.state_schema):
            return None
        expected = (release.version, release.state_schema)
        return f"it is version and schema {found}, the release says {expected}"[:REASON_CHARS_MAX]


def rights_of(user: str) -> dict[str, Any]:
    """Arguments of subprocess that drop root's rights; none where we have none to drop.

    Raises:
        ConfigError: there is no such user.
    """
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise ConfigError(f"[upgrade] user = {user!r}: expected a user of this system") from error
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _run(command: Sequence[str], timeout_s: float, rights: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",  # a runtime that breaks down may say anything
        check=False,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        cwd="/",
        env={"OMP_NUM_THREADS": "1", "PATH": os.defpath},
        **rights,
    )
