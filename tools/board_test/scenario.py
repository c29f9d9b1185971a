"""What is played on the emulated board, and what must hold after each act.

Acts share one ``Bench``; each leaves facts in ``bench.facts``, which become the summary. Times are those of the
emulation on this machine: they say that something happens, never how fast a board would be.
"""

from __future__ import annotations

import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from coordinator.demo.auditor import audit
from edge_sdk.protocol.messages import Genesis
from edge_sdk.protocol.wire import from_bytes
from tools.board_test.card import check_card, read_from_card
from tools.board_test.edge import HOST_FOR_BOARD, MINERS, Edge, flchain
from tools.board_test.machine import Hardware, Machine
from tools.board_test.shell import BoardError
from tools.board_test.software import BREAKAGE, BROKEN_VERSION, GOOD_VERSION, Software, upgrade_once

STATE: Final = "/var/lib/flchain"
PROGRAM: Final = "/opt/flchain/current/bin/flchain"
FIRST_BOOT_S: Final = 900.0
TRAINING_S: Final = 600.0
CLOCK_OF_A_NEW_BOARD: Final = "2020-01-01T00:00:00"
"""Before Debian 13 and every certificate of the test: a board without a clock battery."""
GENESIS_BYTES_MAX: Final = 2**20
PSWPOUT: Final = "pswpout"


@dataclass(kw_only=True)
class Bench:
    """What the acts share."""

    folder: Path
    edge: Edge
    card: Path
    kernel: Path
    device_id: str
    memory_mib: int
    cpu: str
    facts: dict[str, Any] = field(default_factory=dict)

    def power_on(self, boot: str, *, clock: str = "utc") -> Machine:
        """Switch the board on; its console log is ``<boot>/console.log``."""
        hardware = Hardware(kernel=self.kernel, disk=self.card, memory_mib=self.memory_mib, cpu=self.cpu, clock=clock)
        return Machine(hardware, self.folder / boot)


def first_boot(bench: Bench, board: Machine) -> None:
    """Installs itself, corrects its clock, enrols, trains, gets receipts and installs what was certified."""
    board.wait_for_shell()
    shell_s = board.seconds_on
    board.shell.until(f"test -e {STATE}/.installed", "the client is installed", timeout_s=FIRST_BOOT_S)
    installed_s = board.seconds_on
    board.shell.until(f"test -e {STATE}/cert.pem", "the board is enrolled", timeout_s=FIRST_BOOT_S)
    enrolled_s = board.seconds_on
    mode = board.shell.run(f"stat -c '%a %U' {STATE}/key.pem").split()
    _check(mode == ["600", "flchain"], f"key.pem: {mode}")
    left = board.shell.run(f"ls {STATE} /var/lib/flchain-seed/state | grep -c claim || true").strip()
    _check(left == "0", "the claim is still on the board")
    _one_more(bench, board)
    bench.facts["first boot"] = {
        "shell_s": round(shell_s),
        "installed_s": round(installed_s),
        "enrolled_s": round(enrolled_s),
        "merged_s": round(board.seconds_on),
        "clock_at_power_on": CLOCK_OF_A_NEW_BOARD,
    }
    bench.facts["status"] = status = _status(board)
    _check(status["model"]["version"] >= 1, "no certified model is installed")
    bench.facts["system"] = {
        "kernel": board.shell.run("uname -rm").strip(),
        "python": board.shell.run("python3 -V").strip(),
        "unit": board.shell.run("systemctl is-active flchain-device.service").strip(),
        "failed_units": board.shell.run("systemctl list-units --failed --plain --no-legend").split("\n")[:-1],
        "journal": board.shell.run("journalctl --disk-usage").strip(),
    }


def memory(bench: Bench, board: Machine) -> None:
    """Trained within the memory of the board: nothing swapped, nothing killed."""
    unit = dict(
        line.split("=", 1)
        for line in board.shell.run(
            "systemctl show flchain-device -p MemoryPeak,MemorySwapPeak,MainPID,NRestarts"
        ).splitlines()
    )
    vmstat = dict(line.split() for line in board.shell.run("cat /proc/vmstat").splitlines())
    process = board.shell.run(f"grep -E 'VmHWM|VmSwap' /proc/{unit['MainPID']}/status").split()
    facts = {
        "board_mib": bench.memory_mib,
        "unit_peak_mib": round(int(unit["MemoryPeak"]) / 2**20),
        "process_peak_mib": round(int(process[1]) / 1024),
        "swapped_pages": int(vmstat[PSWPOUT]),
        "oom_kills": int(vmstat["oom_kill"]),
        "restarts": int(unit["NRestarts"]),
    }
    bench.facts["memory"] = facts
    _check(facts["swapped_pages"] == 0 and facts["oom_kills"] == 0, f"memory: {facts}")


def power_cut(bench: Bench, board: Machine) -> None:
    """Cut the power while a job is running and has a checkpoint."""
    saved = f"{STATE}/base/state.cbor"
    # The first checkpoint of a job that began after this line: most of its steps are still to come.
    fresh = f"while test -e {saved}; do sleep 0.1; done; until test -e {saved}; do sleep 0.1; done"
    board.shell.run(fresh, timeout_s=TRAINING_S)
    board.kill()
    bench.facts["power cut"] = {"version_before": bench.edge.version()}


def after_power_cut(bench: Bench, board: Machine) -> None:
    """The board goes on by itself: the job from its checkpoint, the sequence where it was."""
    board.wait_for_shell()
    shell_s = board.seconds_on
    version = _one_more(bench, board)
    lines = [json.loads(line) for line in board.shell.run(f"grep '\"train\"' {STATE}/run.jsonl").splitlines()]
    steps = [int(line["steps"]) for line in lines if "steps" in line]
    resumed = [count for count in steps if 0 < count < max(steps)]
    _check(resumed != [], f"no job went on from its checkpoint: steps {steps}")
    recovered = board.shell.run("dmesg | grep -c 'recovery complete' || true").strip()
    bench.facts["power cut"] |= {
        "shell_s": round(shell_s),
        "journal_recovered": recovered != "0",
        "steps_of_jobs": steps,
        "version_after": version,
    }


def upgrade(bench: Bench, board: Machine, software: Software) -> None:
    """A good release is installed beside the old one, tried, and kept; training goes on with it."""
    software.publish(GOOD_VERSION)
    status, log = upgrade_once(board)
    _check(status["phase"] == "idle" and status["current"] == status["committed"], f"{status}\n{log}")
    said = board.shell.run(f"{PROGRAM} --version").strip()
    _check(said == f"flchain {GOOD_VERSION}", f"{said}: {status}\n{log}")
    _one_more(bench, board)
    bench.facts["upgrade"] = {"version": said, "environment": status["current"], "log": log.splitlines()[-8:]}


def broken_upgrade(bench: Bench, board: Machine, software: Software) -> None:
    """A release that crashes on start is taken back and held; the good one trains on."""
    good = board.shell.run("readlink /opt/flchain/current").strip()
    software.publish(BROKEN_VERSION, breakage=BREAKAGE)
    status, log = upgrade_once(board)
    _check(status["phase"] == "idle" and bool(status["held"]), f"{status}\n{log}")
    _check(status["current"] == status["committed"] == good, f"{status}\n{log}")
    said = board.shell.run(f"{PROGRAM} --version").strip()
    _check(said == f"flchain {GOOD_VERSION}", f"{said}: {status}\n{log}")
    _one_more(bench, board)
    bench.facts["broken upgrade"] = {"held": status["held"], "runs": said, "log": log.splitlines()[-8:]}


def ledger_on_board(bench: Bench, board: Machine) -> None:
    """The ledgers of this machine verify on the board, with the same answer and the same blocks."""
    kept = bench.folder / "kept"
    here = flchain("ledger", "verify", str(kept), "--json")
    blocks_here = {miner: flchain("ledger", "show", str(kept / "miners" / miner), "--json") for miner in MINERS}
    archive = bench.folder / "share" / "kept.tar"
    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w") as tar:
        tar.add(kept, arcname="kept")
    with _served(archive.parent) as port:
        url = f"http://{HOST_FOR_BOARD}:{port}/kept.tar"
        opened = f"tarfile.open(fileobj=urllib.request.urlopen('{url}'), mode='r|')"
        board.shell.run(
            f"python3 -c \"import tarfile, urllib.request; {opened}.extractall('/var/tmp', filter='data')\""
        )
    there = board.shell.run(f"{PROGRAM} ledger verify /var/tmp/kept --json", timeout_s=TRAINING_S)
    reports_here, reports_there = json.loads(here), json.loads(there)
    _check(reports_here == reports_there, f"the audits differ:\n{here}\n{there}")
    roots = 0
    for miner in MINERS:
        shown = json.loads(board.shell.run(f"{PROGRAM} ledger show /var/tmp/kept/miners/{miner} --json"))
        _check(shown == json.loads(blocks_here[miner]), f"the blocks of {miner} differ")
        roots += len(shown)
    bench.facts["ledger on the board"] = {
        "miners": len(reports_there),
        "blocks_compared": roots,
        "merges_recomputed": [report["merges_recomputed"] for report in reports_there],
        "model_root": reports_there[0]["model_root"],
    }
    board.shell.run("rm -rf /var/tmp/kept")


def check_books(bench: Bench) -> None:
    """The board is off: nothing that a quorum confirmed is lost, nothing is merged twice; the card is clean."""
    check_card(bench.card)
    kept = bench.folder / "kept"
    device = kept / "devices" / bench.device_id
    read_from_card(bench.card, (f"{STATE}/state.sqlite3", f"{STATE}/state.sqlite3-wal"), device)
    genesis = from_bytes(Genesis, (bench.edge.root / "genesis.cbor").read_bytes(), bytes_max=GENESIS_BYTES_MAX)
    found = audit(kept, genesis, hostile=frozenset())
    _check(found.published > 0, "no update was published")
    _check(found.lost == 0 and found.duplicated == 0, f"lost {found.lost}, merged twice {found.duplicated}")
    bench.facts["books"] = {
        "published": found.published,
        "merged": found.merged,
        "refused": {reason.name.lower(): count for reason, count in found.refused.items()},
        "pending": found.pending,
        "unreceipted": found.unreceipted,
        "lost": found.lost,
        "merged_twice": found.duplicated,
        "certificates_verified": found.certificates_verified,
    }


# --- helpers ---


def _status(board: Machine) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(board.shell.run(f"{PROGRAM} device status --config {STATE}/device.toml"))
    return document


def _one_more(bench: Bench, board: Machine) -> int:
    """Wait until one more update of the board is merged, and the board runs what came of it; that version.

    The ledger is asked here and the board's record with sed: starting Python on the board takes the time of a job.
    """
    goal = bench.edge.version() + 1
    bench.edge.until(lambda: bench.edge.version() >= goal, f"version {goal}", timeout_s=TRAINING_S)
    newest = f'sed -n \'s/.*"phase":"install".*"version":\\([0-9]*\\).*/\\1/p\' {STATE}/run.jsonl | sort -n | tail -1'
    board.shell.until(f'test "$({newest})" -ge {goal}', f"the board runs version {goal}", timeout_s=TRAINING_S)
    return goal


@contextmanager
def _served(folder: Path) -> Iterator[int]:
    """Serve a folder on the loopback interface; the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _check(holds: bool, what: str) -> None:  # noqa: FBT001 - reads like the sentence that it is
    if not holds:
        raise BoardError(what)
