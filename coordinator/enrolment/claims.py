"""Claims, members and alarms of the registrar, in one SQLite file.

A claim is a random token for one device id, shown once and stored only as a hash, with an end date. The first request
that brings it binds it to one key. The same request again - its answer was lost - gets the same answer; another key
under the same token means that two boards hold one secret: the second is refused, an alarm is kept, the first is held.

The rows are also the registrar's to-do list: ``unsettled`` members are those whose state the ledger does not show yet.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from coordinator.enrolment.authority import DeviceRequest, Issued
from coordinator.enrolment.records import Alarm, Claim, EnrolmentRefusedError, Member, MemberStatus, Refusal
from edge_sdk.adapters.durable_files import PRIVATE_MODE
from edge_sdk.errors import CorruptStoreError, StoreError
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.protocol.messages import Algorithm, PublicKey

TOKEN_BYTES: Final = 32
TOKEN_CHARS_MAX: Final = 128
TTL_S_MAX: Final = 30 * 86_400
ALARMS_MAX: Final = 10_000
"""Alarms kept; a flood of bad requests replaces the oldest."""
_BUSY_MS: Final = 5_000
"""The command line and the miner may write at the same time."""
_SCHEMA_VERSION: Final = 1


_TABLES: Final = """
CREATE TABLE claims (
    token_hash BLOB PRIMARY KEY,
    device_id TEXT NOT NULL,
    expiry_s INTEGER NOT NULL,
    used_s INTEGER,
    key BLOB
) WITHOUT ROWID;
CREATE TABLE members (
    device_id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    serial INTEGER NOT NULL,
    algorithm INTEGER NOT NULL,
    key BLOB NOT NULL,
    certificate_pem BLOB NOT NULL,
    certificate_number TEXT NOT NULL,
    expiry_s INTEGER NOT NULL,
    settled INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE certificates (
    number TEXT PRIMARY KEY,
    device_id TEXT NOT NULL,
    expiry_s INTEGER NOT NULL,
    revoked INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE alarms (
    id INTEGER PRIMARY KEY,
    time_s INTEGER NOT NULL,
    device_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    note TEXT NOT NULL
);
"""


class ClaimStore:
    """The registrar's file. Every method is one transaction, durable when it returns."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        # The enrolment desk works in a thread, the registrar in the event loop: one connection, one user at a time.
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> ClaimStore:
        """Open or make the file, for this user only.

        Raises:
            StoreError: it cannot be opened.
            CorruptStoreError: it is not a file of this program.
        """
        try:
            path.touch(mode=PRIVATE_MODE, exist_ok=True)
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                _prepare(connection, path)
            except BaseException:
                connection.close()
                raise
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened: {error.strerror}") from error
        except sqlite3.OperationalError as error:
            raise StoreError(f"{path}: cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            raise CorruptStoreError(f"{path}: not the registrar's store: {error}") from error
        return cls(connection, path)

    def close(self) -> None:
        """Fold the log into the file and close it."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    # --- claims ---

    def issue_claim(self, device_id: DeviceId, *, now_s: int, ttl_s: int) -> str:
        """Make a token for one device; earlier unused ones of the same device are withdrawn. The token is not kept.

        An operator who issues a new claim to a held or revoked device decides that it may come back.
        """
        if not 1 <= ttl_s <= TTL_S_MAX:
            raise ValueError(f"ttl_s {ttl_s} is not in 1..{TTL_S_MAX}")
        token = secrets.token_urlsafe(TOKEN_BYTES)
        with self._transaction() as connection:
            connection.execute("DELETE FROM claims WHERE device_id = ? AND used_s IS NULL", (device_id,))
            connection.execute(
                "INSERT INTO claims (token_hash, device_id, expiry_s) VALUES (?, ?, ?)",
                (_token_hash(token), device_id, now_s + ttl_s),
            )
        return token

    def claims(self) -> list[Claim]:
        """Every claim, by device."""
        rows = self._read("SELECT device_id, expiry_s, used_s FROM claims ORDER BY device_id, expiry_s")
        return [Claim(device_id=DeviceId(row[0]), expiry_s=row[1], used_s=row[2]) for row in rows]

    def redeem(self, token: str, request: DeviceRequest, *, issue: Callable[[], Issued], now_s: int) -> Member:
        """Bind a claim to the first key that brings it, and admit the device with the certificate of ``issue``.

        The same key under the same claim gets the member as it is: its first answer was lost.

        Raises:
            EnrolmentRefusedError: unknown, expired, of another device, or used with another key; the last is an alarm
                and holds the device. Also when the device has been held or revoked since.
        """
        token_hash = _token_hash(token)
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT device_id, expiry_s, used_s, key FROM claims WHERE token_hash = ?", (token_hash,)
            ).fetchone()
            refused = self._judge(row, request, now_s)
            if refused is None and row[2] is None:
                connection.execute(
                    "UPDATE claims SET used_s = ?, key = ? WHERE token_hash = ?",
                    (now_s, _bound(request.key), token_hash),
                )
                return self._admit(request, issue())
        # Outside, because a refusal is an exception and the alarm that comes with it must be kept.
        if refused is not None:
            raise refused
        return self._present(request)

    def _judge(
        self, row: tuple[str, int, int | None, bytes | None] | None, request: DeviceRequest, now_s: int
    ) -> EnrolmentRefusedError | None:
        """Find the reason to refuse a claim, and do what follows from it within the open transaction."""
        if row is None:
            return EnrolmentRefusedError("no such claim", refusal=Refusal.UNKNOWN_CLAIM)
        owner, expiry_s, used_s, bound = DeviceId(row[0]), row[1], row[2], row[3]
        if used_s is not None and bound != _bound(request.key):
            note = f"claim brought again with another key, by a request for {request.device_id}"
            self._raise_alarm(owner, Refusal.REUSED_CLAIM, note, now_s)
            self._withdraw(owner, MemberStatus.HELD)
            return EnrolmentRefusedError("claim already used; the device is held", refusal=Refusal.REUSED_CLAIM)
        if owner != request.device_id:
            self._raise_alarm(owner, Refusal.OTHER_DEVICE, f"claim brought for {request.device_id}", now_s)
            return EnrolmentRefusedError("claim of another device", refusal=Refusal.OTHER_DEVICE)
        if now_s >= expiry_s:
            return EnrolmentRefusedError("claim has expired", refusal=Refusal.EXPIRED_CLAIM)
        return None

    # --- members ---

    def renew(self, request: DeviceRequest, *, current: PublicKey, issue: Callable[[], Issued]) -> Member:
        """Give an enrolled device its next certificate, and its next key where the request brings one.

        Args:
            request: The new request.
            current: The key that signed for it.
            issue: Makes the certificate.

        Raises:
            EnrolmentRefusedError: the device is not enrolled with ``current``.
        """
        with self._transaction():
            member = self._member(request.device_id)
            if member is None or member.status is not MemberStatus.ENROLLED or member.key != current:
                raise EnrolmentRefusedError("not enrolled with this key", refusal=Refusal.NOT_ENROLLED)
            return self._admit(request, issue())

    def member(self, device_id: DeviceId) -> Member | None:
        """One device."""
        rows = self._read("SELECT * FROM members WHERE device_id = ?", device_id)
        return _read_member(rows[0]) if rows else None

    def members(self) -> list[Member]:
        """Every device, by name."""
        return [_read_member(row) for row in self._read("SELECT * FROM members ORDER BY device_id")]

    def unsettled(self) -> list[Member]:
        """Devices whose state the ledger does not show yet."""
        return [_read_member(row) for row in self._read("SELECT * FROM members WHERE settled = 0 ORDER BY device_id")]

    def mark_settled(self, member: Member) -> None:
        """The ledger shows this very state of the device."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE members SET settled = 1 WHERE device_id = ? AND serial = ? AND status = ?",
                (member.device_id, member.serial, member.status.value),
            )

    def revoke(self, device_id: DeviceId) -> Member | None:
        """Withdraw a device and its certificates; None where it was never enrolled."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM claims WHERE device_id = ? AND used_s IS NULL", (device_id,))
            self._withdraw(device_id, MemberStatus.REVOKED)
            return self._member(device_id)

    def revoked_certificates(self, *, now_s: int) -> list[int]:
        """Serial numbers for the revocation list; certificates past their end need no entry."""
        rows = self._read("SELECT number FROM certificates WHERE revoked = 1 AND expiry_s > ?", now_s)
        return [int(row[0]) for row in rows]

    def alarms(self) -> list[Alarm]:
        """Every kept alarm, oldest first."""
        rows = self._read("SELECT time_s, device_id, kind, note FROM alarms ORDER BY id")
        return [Alarm(time_s=row[0], device_id=DeviceId(row[1]), kind=Refusal(row[2]), note=row[3]) for row in rows]

    def _admit(self, request: DeviceRequest, issued: Issued) -> Member:
        """Within the open transaction. A new key raises the serial and ends the certificates of the old one."""
        before = self._member(request.device_id)
        same = before is not None and before.key == request.key and before.status is MemberStatus.ENROLLED
        if not same:
            self._connection.execute("UPDATE certificates SET revoked = 1 WHERE device_id = ?", (request.device_id,))
        member = Member(
            device_id=request.device_id,
            status=MemberStatus.ENROLLED,
            serial=(before.serial if before else 0) + (0 if same else 1),
            key=request.key,
            certificate_pem=issued.pem,
            certificate_number=issued.number,
            expiry_s=issued.expiry_s,
            settled=same and before is not None and before.settled,
        )
        self._connection.execute(
            "INSERT INTO certificates (number, device_id, expiry_s, revoked) VALUES (?, ?, ?, 0)",
            (str(issued.number), request.device_id, issued.expiry_s),
        )
        row = (
            member.device_id,
            member.status.value,
            member.serial,
            int(member.key.algorithm),
            member.key.data,
            member.certificate_pem,
            str(member.certificate_number),
            member.expiry_s,
            member.settled,
        )
        self._connection.execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return member

    def _present(self, request: DeviceRequest) -> Member:
        member = self.member(request.device_id)
        if member is None or member.status is not MemberStatus.ENROLLED or member.key != request.key:
            raise EnrolmentRefusedError("the device has been held or revoked since", refusal=Refusal.NOT_ENROLLED)
        return member

    def _read(self, query: str, *values: str | int) -> list[Any]:
        """Rows of a query outside of a transaction."""
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.DatabaseError as error:
                raise StoreError(f"{self._path}: cannot be read: {error}") from error

    def _member(self, device_id: DeviceId) -> Member | None:
        """Within the open transaction."""
        row = self._connection.execute("SELECT * FROM members WHERE device_id = ?", (device_id,)).fetchone()
        return None if row is None else _read_member(row)

    def _withdraw(self, device_id: DeviceId, status: MemberStatus) -> None:
        """Within the open transaction; what is withdrawn already stays as it is."""
        self._connection.execute("UPDATE certificates SET revoked = 1 WHERE device_id = ?", (device_id,))
        self._connection.execute(
            "UPDATE members SET status = ?1, settled = (status != 'enrolled' AND settled)"
            " WHERE device_id = ?2 AND status != 'revoked'",
            (status.value, device_id),
        )

    def _raise_alarm(self, device_id: DeviceId, kind: Refusal, note: str, now_s: int) -> None:
        """Within the open transaction."""
        self._connection.execute(
            "INSERT INTO alarms (time_s, device_id, kind, note) VALUES (?, ?, ?, ?)",
            (now_s, device_id, kind.value, note),
        )
        self._connection.execute(
            "DELETE FROM alarms WHERE id <= (SELECT max(id) FROM alarms) - ?",
            (ALARMS_MAX,),
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Write all or nothing; the lock is taken first, so that two processes cannot both read "unused"."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise StoreError(f"{self._path}: cannot be written: {error}") from error


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new file; refuse a file with others."""
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        for statement in _TABLES.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    elif version != _SCHEMA_VERSION:
        connection.execute("ROLLBACK")
        raise CorruptStoreError(f"{path}: schema version {version}, expected {_SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _token_hash(token: str) -> bytes:
    """The token has 256 random bits: a plain hash cannot be searched, and a slow one would only help a flood."""
    return hashlib.sha256(token.encode()).digest()


def _bound(key: PublicKey) -> bytes:
    """What a claim remembers of the key that used it."""
    return bytes([-key.algorithm]) + key.data


def _read_member(row: tuple[str, str, int, int, bytes, bytes, str, int, int]) -> Member:
    return Member(
        device_id=DeviceId(row[0]),
        status=MemberStatus(row[1]),
        serial=row[2],
        key=PublicKey(algorithm=Algorithm(row[3]), data=row[4]),
        certificate_pem=row[5],
        certificate_number=int(row[6]),
        expiry_s=row[7],
        settled=bool(row[8]),
    )
