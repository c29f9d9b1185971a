"""Shut devices out of the broker: revocation list and access list follow the claim store, then the broker reloads them.

The revocation list refuses new connections; the access list silences a session that was open already.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from coordinator.broker.access import access_list
from coordinator.enrolment.authority import Authority
from coordinator.enrolment.claims import ClaimStore
from coordinator.enrolment.records import MemberStatus
from edge_sdk.adapters.durable_files import PRIVATE_MODE, write_file
from edge_sdk.protocol.ids import MinerId, TaskId

log = logging.getLogger(__name__)

BROKER_NAME: Final = "mosquitto"
_PID_CHARS_MAX: Final = 16


class BrokerAccess:
    """Writes the broker's two lists. Both are replaced whole, so the broker never reads half of one."""

    def __init__(
        self,
        authority: Authority,
        store: ClaimStore,
        *,
        task: TaskId,
        miners: Sequence[MinerId],
        crl_file: Path,
        acl_file: Path | None = None,
        broker_pid_file: Path | None = None,
    ) -> None:
        self._authority = authority
        self._store = store
        self._task = task
        self._miners = tuple(miners)
        self._crl_file = crl_file
        self._acl_file = acl_file
        self._broker_pid_file = broker_pid_file

    def refresh(self, *, now_s: int) -> bool:
        """Write both lists and ask the broker to reload them.

        Returns:
            Whether a broker was asked; if not, an operator has to.

        Raises:
            StoreError: a list cannot be written.
        """
        numbers = self._store.revoked_certificates(now_s=now_s)
        write_file(self._crl_file, self._authority.revocation_list(numbers, now_s=now_s))
        if self._acl_file is not None:
            revoked = [one.device_id for one in self._store.members() if one.status is not MemberStatus.ENROLLED]
            write_file(
                self._acl_file, access_list(self._task, self._miners, revoked=revoked).encode(), mode=PRIVATE_MODE
            )
        return self._broker_pid_file is not None and _reload(self._broker_pid_file)


def _reload(pid_file: Path) -> bool:
    """Send SIGHUP to the broker of a pid file, if that process still is a broker and ours to signal."""
    try:
        text = pid_file.read_text(encoding="ascii").strip()
        if not text.isdigit() or len(text) > _PID_CHARS_MAX:
            return False
        name = Path(f"/proc/{text}/comm").read_text(encoding="ascii").strip()
        if name != BROKER_NAME:
            log.warning("process of the pid file is no broker", extra={"file": str(pid_file), "found": name})
            return False
        os.kill(int(text), signal.SIGHUP)
    except (OSError, UnicodeDecodeError) as error:
        log.warning("broker not reloaded", extra={"file": str(pid_file), "error": str(error)})
        return False
    return True
