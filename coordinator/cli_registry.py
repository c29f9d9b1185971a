"""``flchain registry``: claims for new devices, the list of members, revocation; beside the registrar's miner."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from coordinator.config import MinerConfig, load_config
from coordinator.enrolment.authority import Authority
from coordinator.enrolment.board_folder import write_board_folder
from coordinator.enrolment.claims import TTL_S_MAX, ClaimStore
from coordinator.enrolment.config import EnrolmentConfig
from coordinator.enrolment.records import EnrolmentRefusedError, Member, MemberStatus
from coordinator.enrolment.registrar import revoke_transaction
from coordinator.enrolment.service import broker_access
from coordinator.genesis_file import load_genesis
from coordinator.ordering.rpc import OrderedLogClient
from edge_sdk.adapters.durable_files import PRIVATE_MODE, write_file
from edge_sdk.adapters.keys import fingerprint, load_signer
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.errors import ConfigError, DecodeError, RemoteProtocolError, TransportError
from edge_sdk.protocol.ids import DeviceId, check_name
from edge_sdk.protocol.messages import Genesis, Reason

FINGERPRINT_CHARS_MIN: Final = 8
FINGERPRINT_CHARS_SHOWN: Final = 16
_DURATION: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])", re.ASCII)
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments; 1 where a revocation could not be handed to the ledger yet."""
    options = _parser().parse_args(argv)
    config = load_config(options.config)
    if config.enrolment is None:
        raise ConfigError(f"{options.config}: [enrolment] port = nothing: expected the registrar's miner")
    store = ClaimStore.open(config.enrolment.claims_db)
    try:
        if options.command == "claim":
            return _claim(config, config.enrolment, store, options)
        if options.command == "release":
            return _release(config.enrolment, load_genesis(config.genesis_file), store, options)
        if options.command == "revoke":
            return _revoke(config, config.enrolment, store, options.device)
        return _list(store, as_json=options.json)
    finally:
        store.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flchain registry", description="Manage the devices of a fleet.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    claim = commands.add_parser("claim", help="make a single-use claim for a new device, or for one that comes back")
    claim.add_argument("device", type=_device)
    claim.add_argument("--ttl", type=_duration, default=72 * 3_600, help="life of the claim, such as 72h (default)")
    place = claim.add_mutually_exclusive_group(required=True)
    place.add_argument("--folder", type=Path, help="new folder for the board: settings, claim and trust anchors")
    place.add_argument("--out", type=Path, help="file for the claim alone, mode 0600; it is shown nowhere else")
    listing = commands.add_parser("list", help="show devices, open claims and alarms")
    listing.add_argument("--json", action="store_true", help="as JSON")
    release = commands.add_parser("release", help="let a held device come back under its own key")
    release.add_argument("device", type=_device)
    release.add_argument(
        "--key",
        required=True,
        metavar="HEX",
        help=f"beginning of its key's fingerprint, {FINGERPRINT_CHARS_MIN} digits or more: flchain device status",
    )
    revoke = commands.add_parser("revoke", help="withdraw a device: ledger, certificates and broker")
    revoke.add_argument("device", type=_device)
    for command in (claim, listing, release, revoke):
        command.add_argument("--config", type=Path, required=True, help="miner.toml of the registrar's miner")
    return parser


def _claim(config: MinerConfig, enrolment: EnrolmentConfig, store: ClaimStore, options: argparse.Namespace) -> int:
    place: Path = options.folder or options.out
    if place.exists():
        raise ConfigError(f"{place}: exists already: expected a new name")
    now_s = SystemClock().time_s()
    token = store.issue_claim(options.device, now_s=now_s, ttl_s=options.ttl)
    if options.folder is None:
        write_file(place, f"{token}\n".encode(), mode=PRIVATE_MODE)
    else:
        genesis = load_genesis(config.genesis_file)
        write_board_folder(place, options.device, token, config=config, enrolment=enrolment, genesis=genesis)
    print(f"claim for {options.device} in {place}, valid until {_calendar(now_s + options.ttl)}")
    if options.folder is not None:
        print("copy the folder to the board, put its data there as data.npz (arrays x and y), then on the board:")
        print(f"  flchain device enrol --config {place.name}/device.toml")
        print(f"  flchain device run --config {place.name}/device.toml")
    return 0


def _list(store: ClaimStore, *, as_json: bool) -> int:
    members, alarms = store.members(), store.alarms()
    claims = [claim for claim in store.claims() if claim.used_s is None]
    if as_json:
        document = {
            "devices": [_document(member) for member in members],
            "claims": [{"device": claim.device_id, "expiry_s": claim.expiry_s} for claim in claims],
            "alarms": [
                {
                    "time_s": alarm.time_s,
                    "last_s": alarm.last_s,
                    "count": alarm.count,
                    "cleared_s": alarm.cleared_s,
                    "device": alarm.device_id,
                    "kind": alarm.kind.value,
                    "note": alarm.note,
                }
                for alarm in alarms
            ],
            "refused": [
                {
                    "device": attempt.device_id,
                    "reason": attempt.refusal.value,
                    "count": attempt.count,
                    "last_s": attempt.last_s,
                }
                for attempt in store.attempts()
            ],
        }
        json.dump(document, sys.stdout, indent=2)
        print()
        return 0
    print(f"{'DEVICE':<24} {'STATUS':<10} {'SERIAL':>6} {'ON LEDGER':<10} {'CERTIFICATE UNTIL':<21} KEY")
    for member in members:
        settled = "yes" if member.settled else "not yet"
        until, key = _calendar(member.expiry_s), fingerprint(member.key)[:FINGERPRINT_CHARS_SHOWN]
        print(f"{member.device_id:<24} {member.status.value:<10} {member.serial:>6} {settled:<10} {until:<21} {key}")
    for claim in claims:
        print(f"{claim.device_id:<24} {'claimable':<10} {'-':>6} {'-':<10} claim until {_calendar(claim.expiry_s)}")
    for attempt in store.attempts():
        seen = f"{attempt.count} times, last {_calendar(attempt.last_s)}"
        print(f"refused {attempt.device_id}: {attempt.refusal.value}, {seen}")
    for alarm in alarms:
        state = "ALARM" if alarm.cleared_s is None else "cleared"
        times = f" ({alarm.count} times)" if alarm.count > 1 else ""
        print(f"{state} {_calendar(alarm.time_s)} {alarm.device_id}: {alarm.kind.value}: {alarm.note}{times}")
    return 0


def _document(member: Member) -> dict[str, str | int | bool]:
    return {
        "device": member.device_id,
        "status": member.status.value,
        "serial": member.serial,
        "settled": member.settled,
        "key": fingerprint(member.key),
        "certificate_expiry_s": member.expiry_s,
    }


def _release(enrolment: EnrolmentConfig, genesis: Genesis, store: ClaimStore, options: argparse.Namespace) -> int:
    """Two boards came with one claim: the operator says by the key which of them is the device."""
    member = store.member(options.device)
    if member is None or member.status is not MemberStatus.HELD:
        raise ConfigError(f"{options.device}: is not held: expected a device that an alarm has withdrawn")
    typed = options.key.lower()
    if len(typed) < FINGERPRINT_CHARS_MIN or not fingerprint(member.key).startswith(typed):
        raise ConfigError(
            f"--key {options.key[:64]}: expected the beginning of {fingerprint(member.key)[:FINGERPRINT_CHARS_MIN]}...;"
            " if the board shows another key, it is the copy: flchain registry claim for the true one"
        )
    now_s = SystemClock().time_s()
    try:
        store.release(options.device, now_s=now_s)
    except EnrolmentRefusedError as error:
        raise ConfigError(
            f"{options.device}: {error}: make a claim, and on one board only: flchain device enrol --new-key"
        ) from error
    authority = Authority.load(enrolment.ca_cert, enrolment.ca_key)
    reloaded = broker_access(enrolment, genesis, authority, store).refresh(now_s=now_s)
    print(f"{options.device}: released; broker {'reloaded' if reloaded else 'not reloaded: send it SIGHUP'}")
    print("the registrar's miner takes it to the ledger; the board goes on by itself")
    return 0


def _revoke(config: MinerConfig, enrolment: EnrolmentConfig, store: ClaimStore, device_id: DeviceId) -> int:
    """Withdraw in the store first: from then on the registrar repeats the rest until it is done."""
    member = store.revoke(device_id, now_s=SystemClock().time_s())
    if member is None:
        raise ConfigError(f"{device_id}: was never enrolled; open claims are withdrawn")
    genesis = load_genesis(config.genesis_file)
    authority = Authority.load(enrolment.ca_cert, enrolment.ca_key)
    reloaded = broker_access(enrolment, genesis, authority, store).refresh(now_s=SystemClock().time_s())
    print(f"{device_id}: certificate revoked; broker {'reloaded' if reloaded else 'not reloaded: send it SIGHUP'}")
    try:
        refusal = asyncio.run(_submit(config, enrolment, genesis, member))
    except (TransportError, RemoteProtocolError) as error:
        print(f"{device_id}: not on the ledger yet ({error}); the registrar's miner repeats it", file=sys.stderr)
        return 1
    if refusal is not None:
        print(f"{device_id}: not on the ledger yet ({refusal}); the registrar's miner repeats it", file=sys.stderr)
        return 1
    print(f"{device_id}: revocation handed to the ledger")
    return 0


async def _submit(config: MinerConfig, enrolment: EnrolmentConfig, genesis: Genesis, member: Member) -> str | None:
    """Hand the revocation to the ordered log; text of the refusal, or None."""
    signer = load_signer(enrolment.registrar_key)
    transaction = revoke_transaction(member.device_id, serial=member.serial, signer=signer, chain_id=genesis.chain_id)
    async with OrderedLogClient(config.rpc, miner_id=config.miner_id) as client:
        result = await client.submit(transaction)
    return None if result.code in {Reason.NONE, Reason.DUPLICATE} else result.info or f"reason {result.code}"


def _device(text: str) -> DeviceId:
    try:
        return DeviceId(check_name(text, what="device id"))
    except DecodeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _duration(text: str) -> int:
    match = _DURATION.fullmatch(text)
    seconds = 0 if match is None else int(match[1]) * _UNIT_S[match[2]]
    if not 1 <= seconds <= TTL_S_MAX:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number with s, m, h or d, at most {TTL_S_MAX}s")
    return seconds


def _calendar(time_s: int) -> str:
    return dt.datetime.fromtimestamp(time_s, tz=dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
