"""``flchain ledger``: show a ledger's blocks, or audit it from genesis. Opens files read-only and trusts nobody."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.ledger.replay import LEDGER_FILE, MINERS_FOLDER, MinerReport, verify_directory
from coordinator.ledger.rows import BlockRow
from coordinator.ledger.store import LedgerStore
from coordinator.serving.documents import block_document
from edge_sdk.errors import ConfigError, CorruptLedgerError
from edge_sdk.protocol.digest import genesis_digest
from edge_sdk.protocol.ids import MinerId
from edge_sdk.protocol.messages import Verdict

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

BLOCKS_SHOWN: Final = 50
PAGE_BLOCKS: Final = 100
EXIT_CORRUPT: Final = 1


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments; 1 where a ledger does not hold."""
    options = _parser().parse_args(argv)
    if options.command == "show":
        return _show(options.directory, first=options.first, limit=options.limit, as_json=options.json)
    return _verify(options.directory, anchor=options.anchor, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flchain ledger", description="Show or audit a miner's ledger.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="decided blocks as a table")
    show.add_argument("directory", type=Path, help="folder of a miner, or of a kept run (its first miner)")
    show.add_argument("--from", dest="first", type=_index, default=1, metavar="INDEX", help="first block")
    show.add_argument("--limit", type=_index, default=BLOCKS_SHOWN, help=f"blocks at most, default {BLOCKS_SHOWN}")
    verify = commands.add_parser("verify", help="replay from genesis and compare every table and blob")
    verify.add_argument("directory", type=Path, help="folder of a miner, or of a kept run (all its miners)")
    verify.add_argument("--anchor", help="SHA-256 that the genesis must have, in hex")
    for command in (show, verify):
        command.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _show(directory: Path, *, first: int, limit: int, as_json: bool) -> int:
    store = LedgerStore.open(_ledger_files(directory)[0], read_only=True)
    try:
        blocks = list(_blocks(store, first, limit))
        if as_json:
            json.dump([block_document(block) for block in blocks], sys.stdout, indent=2)
            print()
        else:
            _print_table(store, blocks)
    finally:
        store.close()
    return 0


def _print_table(store: LedgerStore, blocks: Sequence[BlockRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{store.genesis.chain_id}: ledger of {store.miner_id}, height {store.height()}")
    for heading in (
        "block",
        "height",
        "cause",
        "version",
        "merged",
        "refused",
        "base score",
        "model root",
        "signed by",
    ):
        table.add_column(heading, justify="left" if heading in {"cause", "model root", "signed by"} else "right")
    for block in blocks:
        merged = sum(entry.verdict is Verdict.MERGED for entry in block.entries)
        refusals = sorted({entry.reason.name.lower() for entry in block.entries if entry.verdict is Verdict.REFUSED})
        certificate = block.certificate
        table.add_row(
            str(block.header.index),
            str(block.header.decided_height),
            block.header.cause.name.lower(),
            str(block.header.version),
            str(merged),
            f"{len(block.entries) - merged} {','.join(refusals)}".strip(),
            str(block.header.base_score),
            "-" if certificate is None else certificate.statement.model_root.hex()[:16],
            "not certified" if certificate is None else " ".join(vote.miner_id for vote in certificate.signatures),
        )
    Console().print(table)


def _verify(directory: Path, *, anchor: str | None, as_json: bool) -> int:
    try:
        if anchor is not None:
            _check_anchor(directory, anchor.lower())
        with _progress() as progress:
            report = verify_directory(directory, progress=progress)
    except CorruptLedgerError as error:
        where = "" if str(error).startswith(error.place) else f"{error.place}: "
        print(f"flchain ledger verify: {where}{error}", file=sys.stderr)
        return EXIT_CORRUPT
    if as_json:
        json.dump([_document(miner) for miner in report.miners], sys.stdout, indent=2)
        print()
        return 0
    for miner in report.miners:
        skipped = f" merges_skipped={miner.merges_skipped}" if miner.merges_skipped else ""
        print(
            f"{miner.miner_id} ok heights={miner.heights} blocks={miner.blocks} version={miner.version}"
            f" merges={miner.merges_recomputed}{skipped} blobs={miner.blobs} model_root={miner.model_root.hex()}"
        )
    return 0


def _document(miner: MinerReport) -> dict[str, str | int]:
    return {
        "miner": miner.miner_id,
        "heights": miner.heights,
        "blocks": miner.blocks,
        "version": miner.version,
        "merges_recomputed": miner.merges_recomputed,
        "merges_skipped": miner.merges_skipped,
        "blobs": miner.blobs,
        "open_updates": miner.open_updates,
        "model_root": miner.model_root.hex(),
        "state_root": miner.state_root.hex(),
    }


def _check_anchor(directory: Path, anchor: str) -> None:
    """Without an anchor, a ledger is only shown to agree with its own genesis."""
    for file in _ledger_files(directory):
        store = LedgerStore.open(file, read_only=True)
        try:
            found = genesis_digest(store.genesis).hex()
        finally:
            store.close()
        if found != anchor:
            raise CorruptLedgerError(f"{file}, height 0: genesis {found}, expected {anchor}", place=str(file), height=0)


@contextmanager
def _progress() -> Iterator[_Progress | None]:
    """A bar on a terminal, nothing in a log."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        yield _Progress(bars)


class _Progress:
    """One bar per miner."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[MinerId, TaskID] = {}

    def __call__(self, miner_id: MinerId, done: int, last: int) -> None:
        if miner_id not in self._tasks:
            self._tasks[miner_id] = self._bars.add_task(miner_id)
        self._bars.update(self._tasks[miner_id], completed=done, total=last)


def _blocks(store: LedgerStore, first: int, limit: int) -> Iterator[BlockRow]:
    while limit > 0:
        page = store.blocks(first, min(limit, PAGE_BLOCKS))
        yield from page
        if len(page) < min(limit, PAGE_BLOCKS):
            return
        limit -= len(page)
        first = page[-1].header.index + 1


def _ledger_files(directory: Path) -> list[Path]:
    """The ledger of a miner's folder, or those of a kept run."""
    if (directory / LEDGER_FILE).is_file():
        return [directory / LEDGER_FILE]
    files = sorted((directory / MINERS_FOLDER).glob(f"*/{LEDGER_FILE}"))
    if not files:
        raise ConfigError(f"{directory}: expected {LEDGER_FILE}, or {MINERS_FOLDER}/<id>/{LEDGER_FILE}")
    return files


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text[:20]!r}: expected a number from 1 on")
    return int(text)
