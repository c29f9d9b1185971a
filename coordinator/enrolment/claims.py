"""Claims, members and alarms of the registrar, in one SQLite file.

A claim is a random token for one device id, shown once and stored only as a hash, with an end date. The first request
that brings it binds it to one key. The same request again - its answer was lost - gets the same answer; another key
under the same token means that two boards hold one secret: the second is refused, an alarm is kept, the first is held.

The rows are also the registrar's to-do list: ``unsettled`` members are those whose state the ledger does not show yet.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from typing import Final

from coordinator.enrolment import alarms
from coordinator.enrolment.authority import DeviceRequest, Issued
from coordinator.enrolment.records import (
    Alarm,
    Arrival,
    Attempt,
    Claim,
    EnrolmentRefusedError,
    Member,
    MemberStatus,
    Refusal,
)
from coordinator.enrolment.store_file import StoreFile
from edge_sdk.adapters.enrolment import Wait
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.protocol.messages import Algorithm, PublicKey

TOKEN_BYTES: Final = 32
TOKEN_CHARS_MAX: Final = 128
TTL_S_MAX: Final = 30 * 86_400


class ClaimStore(StoreFile):
    """The registrar's file. Every method is one transaction, durable when it returns."""

    # --- claims ---

    def issue_claim(self, device_id: DeviceId, *, now_s: int, ttl_s: int) -> str:
        """Make a token for one device; earlier unused ones of the same device are withdrawn. The token is not kept.

        An operator who issues a new claim to a held or revoked device decides that it may come back. The copied claim
        of a held one is forgotten, so that the other board cannot hold it again.
        """
        if not 1 <= ttl_s <= TTL_S_MAX:
            raise ValueError(f"ttl_s {ttl_s} is not in 1..{TTL_S_MAX}")
        token = secrets.token_urlsafe(TOKEN_BYTES)
        with self._transaction() as connection:
            connection.execute("DELETE FROM claims WHERE device_id = ? AND used_s IS NULL", (device_id,))
            member = self._member(device_id)
            if member is not None and member.status is MemberStatus.HELD:
                connection.execute("DELETE FROM claims WHERE device_id = ?", (device_id,))
            alarms.clear_alarms(connection, device_id, now_s=now_s)
            connection.execute(
                "INSERT INTO claims (token_hash, device_id, expiry_s) VALUES (?, ?, ?)",
                (_token_hash(token), device_id, now_s + ttl_s),
            )
        return token

    def claims(self) -> list[Claim]:
        """Every claim, by device."""
        rows = self._read("SELECT device_id, expiry_s, used_s FROM claims ORDER BY device_id, expiry_s")
        return [Claim(device_id=DeviceId(row[0]), expiry_s=row[1], used_s=row[2]) for row in rows]

    def redeem(
        self,
        token: str,
        request: DeviceRequest,
        *,
        issue: Callable[[], Issued],
        now_s: int,
        waited: Mapping[Wait, int] | None = None,
    ) -> Member:
        """Bind a claim to the first key that brings it, and admit the device with the certificate of ``issue``.

        The same key under the same claim gets the member as it is, also after the end of the claim: its first answer
        was lost, and the key shows that it is the same board.

        Args:
            token: The claim.
            request: Name and key of the board.
            issue: Makes the certificate.
            now_s: Calendar time.
            waited: What the board says it had to wait for, in seconds.

        Raises:
            EnrolmentRefusedError: unknown, expired, of another device, or used with another key; the last is an alarm
                and holds the device. Also when the device has been held or revoked since, or its key is on two boards.
        """
        token_hash = _token_hash(token)
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT device_id, expiry_s, used_s, key FROM claims WHERE token_hash = ?", (token_hash,)
            ).fetchone()
            refused = self._judge(row, request, now_s)
            if refused is not None:
                alarms.count_attempt(connection, request.device_id, refused.refusal, now_s=now_s)
            elif row[2] is None:
                connection.execute(
                    "UPDATE claims SET used_s = ?, key = ? WHERE token_hash = ?",
                    (now_s, _bound(request.key), token_hash),
                )
                alarms.note_arrival(connection, request.device_id, waited or {}, now_s=now_s)
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
        if used_s is None and now_s >= expiry_s:
            return EnrolmentRefusedError("claim has expired", refusal=Refusal.EXPIRED_CLAIM)
        if self._is_barred(request.key):
            return EnrolmentRefusedError("this key was on two boards: make a new one", refusal=Refusal.CLONED_KEY)
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
            if self._is_barred(request.key):
                raise EnrolmentRefusedError("this key was on two boards", refusal=Refusal.CLONED_KEY)
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

    def hold_clone(self, device_id: DeviceId, key: PublicKey, note: str, *, now_s: int) -> bool:
        """Two boards sign with one key: raise an alarm, hold the device and never take this key again.

        Returns:
            Whether that changed anything; not where the device has another key or is withdrawn already.
        """
        with self._transaction() as connection:
            member = self._member(device_id)
            if member is None or member.status is not MemberStatus.ENROLLED or member.key != key:
                return False
            self._raise_alarm(device_id, Refusal.CLONED_KEY, note, now_s)
            connection.execute("INSERT OR REPLACE INTO barred_keys VALUES (?, ?)", (_bound(key), device_id))
            self._withdraw(device_id, MemberStatus.HELD)
            return True

    def release(self, device_id: DeviceId, *, now_s: int) -> Member | None:
        """Let a held device come back under its own key and certificate; None where it is not held.

        Raises:
            EnrolmentRefusedError: two boards hold the key, so it can come back to none of them.
        """
        with self._transaction() as connection:
            member = self._member(device_id)
            if member is None or member.status is not MemberStatus.HELD:
                return None
            if self._is_barred(member.key):
                raise EnrolmentRefusedError("its key was on two boards", refusal=Refusal.CLONED_KEY)
            connection.execute(
                "UPDATE members SET status = ?, serial = serial + 1, settled = 0 WHERE device_id = ?",
                (MemberStatus.ENROLLED.value, device_id),
            )
            connection.execute(
                "UPDATE certificates SET revoked = 0 WHERE number = ?", (str(member.certificate_number),)
            )
            connection.execute("DELETE FROM claims WHERE device_id = ?", (device_id,))  # the other board has it too
            alarms.clear_alarms(connection, device_id, now_s=now_s)
            return self._member(device_id)

    def revoke(self, device_id: DeviceId, *, now_s: int) -> Member | None:
        """Withdraw a device and its certificates; None where it was never enrolled."""
        with self._transaction() as connection:
            alarms.clear_alarms(connection, device_id, now_s=now_s)
            connection.execute("DELETE FROM claims WHERE device_id = ? AND used_s IS NULL", (device_id,))
            self._withdraw(device_id, MemberStatus.REVOKED)
            return self._member(device_id)

    def revoked_certificates(self, *, now_s: int) -> list[int]:
        """Serial numbers for the revocation list; certificates past their end need no entry."""
        rows = self._read("SELECT number FROM certificates WHERE revoked = 1 AND expiry_s > ?", now_s)
        return [int(row[0]) for row in rows]

    def alarms(self) -> list[Alarm]:
        """Every kept alarm, oldest first."""
        rows = self._read("SELECT time_s, last_s, count, cleared_s, device_id, kind, note FROM alarms ORDER BY id")
        return [alarms.read_alarm(row) for row in rows]

    def attempts(self) -> list[Attempt]:
        """Refused requests of every device since it last got in."""
        return [alarms.read_attempt(row) for row in self._read("SELECT * FROM attempts ORDER BY device_id, refusal")]

    def arrivals(self) -> list[Arrival]:
        """Last enrolment by claim of every device."""
        return [alarms.read_arrival(row) for row in self._read("SELECT * FROM arrivals ORDER BY device_id")]

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
        alarms.raise_alarm(self._connection, device_id, kind, note, now_s=now_s)

    def _is_barred(self, key: PublicKey) -> bool:
        """Within the open transaction."""
        return bool(self._connection.execute("SELECT 1 FROM barred_keys WHERE key = ?", (_bound(key),)).fetchone())


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
