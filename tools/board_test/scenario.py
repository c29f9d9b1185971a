"""The life of a board, act by act: first boot, training, power cut, audit, and the books at the end.

What happens to its software is in ``upgrades``. Acts share one ``Bench``; each leaves facts in ``bench.facts``, which
become the summary. Times are those of the emulation on this machine: they say that something happens, never how fast
a board would be.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from coordinator.demo.auditor import audit
from edge_sdk.protocol.messages import Genesis
from edge_sdk.protocol.wire import from_bytes
from tools.board_test.bench import PROGRAM, STATE, TRAINING_S, Bench, check
from tools.board_test.card import check_card, read_from_card
from tools.board_test.edge import HOST_FOR_BOARD, MINERS, flchain

FIRST_BOOT_S: Final = 900.0
CLOCK_OF_A_NEW_BOARD: Final = "2020-01-01T00:00:00"
"""Before Debian 13 and every certificate of the test: a board without a clock battery."""
GENESIS_BYTES_MAX: Final = 2**20
PSWPOUT: Final = "pswpout"


def first_boot(bench: Bench) -> None:
    """Installs itself, corrects its clock, enrols, trains, gets receipts and installs what was certified."""
    board = bench.power_on(clock=CLOCK_OF_A_NEW_BOARD)
    shell_s = board.seconds_on
    board.shell.until(f"test -e {STATE}/.installed", "the client is installed", timeout_s=FIRST_BOOT_S)
    installed_s = board.seconds_on
    board.shell.until(f"test -e {STATE}/cert.pem", "the board is enrolled", timeout_s=FIRST_BOOT_S)
    enrolled_s = board.seconds_on
    mode = board.shell.run(f"stat -c '%a %U' {STATE}/key.pem").split()
    check(mode == ["600", "flchain"], f"key.pem: {mode}")
    left = board.shell.run(f"ls {STATE} /var/lib/flchain-seed/state | grep -c claim || true").strip()
    check(left == "0", "the claim is still on the board")
    bench.first_merge()
    bench.facts["first boot"] = {
        "shell_s": round(shell_s),
        "installed_s": round(installed_s),
        "enrolled_s": round(enrolled_s),
        "merged_s": round(board.seconds_on),
        "clock_at_power_on": CLOCK_OF_A_NEW_BOARD,
    }
    bench.facts["status"] = status = bench.status()
    check(status["model"]["version"] >= 1, "no certified model is installed")
    bench.facts["system"] = {
        "kernel": board.shell.run("uname -rm").strip(),
        "python": board.shell.run("python3 -V").strip(),
        "unit": board.shell.run("systemctl is-active flchain-device.service").strip(),
        "failed_units": board.shell.run("systemctl list-units --failed --plain --no-legend").split("\n")[:-1],
        "journal": board.shell.run("journalctl --disk-usage").strip(),
    }


def memory(bench: Bench) -> None:
    """Trained within the memory of the board: nothing swapped, nothing killed."""
    board = bench.board
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
    check(facts["swapped_pages"] == 0 and facts["oom_kills"] == 0, f"memory: {facts}")


def power_cut(bench: Bench) -> None:
    """Cut off while a job runs and has a checkpoint, the board goes on by itself: with that job, and its sequence."""
    saved = f"{STATE}/base/state.cbor"
    # The first checkpoint of a job that began after this line: most of its steps are still to come.
    fresh = f"while test -e {saved}; do sleep 0.1; done; until test -e {saved}; do sleep 0.1; done"
    bench.board.shell.run(fresh, timeout_s=TRAINING_S)
    bench.cut_power()
    before = bench.edge.version()
    board = bench.power_on()
    shell_s = board.seconds_on
    outcome = bench.one_more()
    lines = [json.loads(line) for line in board.shell.run(f"grep -a '\"train\"' {STATE}/run.jsonl").splitlines()]
    steps = [int(line["steps"]) for line in lines if "steps" in line]
    resumed = [count for count in steps if 0 < count < max(steps)]
    check(resumed != [], f"no job went on from its checkpoint: steps {steps}")
    # It has done its part, and takes half of the time of each of the boots that follow.
    board.shell.run("touch /etc/cloud/cloud-init.disabled")
    recovered = board.shell.run("dmesg | grep -c 'recovery complete' || true").strip()
    bench.facts["power cut"] = {
        "version_before": before,
        "shell_s": round(shell_s),
        "journal_recovered": recovered != "0",
        "steps_of_jobs": steps,
        "update_after": outcome,
        "version_after": bench.edge.version(),
    }


def ledger_on_board(bench: Bench) -> None:
    """The ledgers of this machine verify on the board, with the same answer and the same blocks; the fleet ends."""
    board, kept = bench.board, bench.folder / "kept"
    bench.edge.stop()
    shutil.copytree(bench.edge.root / "miners", kept / "miners", ignore=_no_files, dirs_exist_ok=True)
    here = flchain("ledger", "verify", str(kept), "--json")
    blocks_here = {miner: flchain("ledger", "show", str(kept / "miners" / miner), "--json") for miner in MINERS}
    archive = bench.folder / "share" / "kept.tar"
    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w") as tar:
        tar.add(kept, arcname="kept")
    with _served(archive.parent) as port:
        url = f"http://{HOST_FOR_BOARD}:{port}/kept.tar"
        opened = f"tarfile.open(fileobj=urllib.request.urlopen('{url}'), mode='r|')"
        board.shell.run(f"python3 -c \"import tarfile, urllib.request; {opened}.extractall('{STATE}', filter='data')\"")
    there = board.shell.run(f"{PROGRAM} ledger verify {STATE}/kept --json", timeout_s=TRAINING_S)
    reports_here, reports_there = json.loads(here), json.loads(there)
    check(reports_here == reports_there, f"the audits differ:\n{here}\n{there}")
    roots = 0
    for miner in MINERS:
        shown = json.loads(board.shell.run(f"{PROGRAM} ledger show {STATE}/kept/miners/{miner} --json"))
        check(shown == json.loads(blocks_here[miner]), f"the blocks of {miner} differ")
        roots += len(shown)
    bench.facts["ledger on the board"] = {
        "miners": len(reports_there),
        "blocks_compared": roots,
        "merges_recomputed": [report["merges_recomputed"] for report in reports_there],
        "model_root": reports_there[0]["model_root"],
    }
    board.shell.run(f"rm -rf {STATE}/kept")


def books(bench: Bench) -> None:
    """Shut down in order: nothing that a quorum confirmed is lost, nothing is merged twice; the card is clean."""
    bench.power_off()
    check_card(bench.card)
    kept = bench.folder / "kept"
    device = kept / "devices" / bench.device_id
    read_from_card(bench.card, (f"{STATE}/state.sqlite3", f"{STATE}/state.sqlite3-wal"), device)
    genesis = from_bytes(Genesis, (bench.edge.root / "genesis.cbor").read_bytes(), bytes_max=GENESIS_BYTES_MAX)
    found = audit(kept, genesis, hostile=frozenset())
    check(found.published > 0, "no update was published")
    check(found.lost == 0 and found.duplicated == 0, f"lost {found.lost}, merged twice {found.duplicated}")
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


def _no_files(folder: str, names: list[str]) -> set[str]:
    """Sockets of a stopped fleet."""
    return {name for name in names if not (Path(folder) / name).is_file() and not (Path(folder) / name).is_dir()}


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
