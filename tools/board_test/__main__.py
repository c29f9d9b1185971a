"""``python -m tools.board_test``: plays the whole scenario and prints what was reached, and when."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from tools.board_test import scenario
from tools.board_test.card import client_wheel, make_card, wheelhouse
from tools.board_test.data import write_digits, write_share
from tools.board_test.edge import MINERS, Edge, EdgeError
from tools.board_test.scenario import Bench
from tools.board_test.shell import BoardError
from tools.board_test.software import Software
from tools.board_test.vendor import DATA_ON_BOARD, vendor_image, vendor_root

_T = TypeVar("_T")
DEVICE: Final = "board-1"
MODEL: Final = "lenet"
# Short jobs that are saved often, so that a power cut finds one that has a checkpoint and steps to go.
TRAINING: Final = "\n[training]\nsteps = {steps}\ncheckpoint_s = 1.0\n"


def main() -> int:
    """Run it; 0 when everything held."""
    options = _parser().parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="flchain-board-"))
    folder.mkdir(parents=True, exist_ok=True)
    start_s = time.monotonic()
    facts: dict[str, Any] = {}
    try:
        _play(options, folder, facts)
    except (BoardError, EdgeError, RuntimeError) as error:
        print(json.dumps(facts, indent=2))
        print(f"FAILED after {time.monotonic() - start_s:.0f} s: {error}\nfiles: {folder}", file=sys.stderr)
        return 1
    facts["seconds"] = round(time.monotonic() - start_s)
    print(json.dumps(facts, indent=2))
    if options.report:
        options.report.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if options.keep is None:
        shutil.rmtree(folder)
    return 0


def _play(options: argparse.Namespace, folder: Path, facts: dict[str, Any]) -> None:
    say = _Clock(facts)
    root = say("Debian arm64 from the archive", lambda: vendor_root(folder / "mmdebstrap.log"))
    wheels = say("wheelhouse for the board", lambda: _wheels(folder))
    write_digits(folder / "digits.npz")
    dataset = ("--dataset", "npz", "--data", str(folder / "digits.npz"))
    edge = say("edge servers are founded", lambda: Edge(folder / "fleet", dataset=dataset, model=MODEL))
    software = Software(folder / "software", edge, wheels)
    with edge:
        say("broker, sequencer and miners run", lambda: None)
        card = say("the card is flashed", lambda: _card(folder, root, wheels, software, edge, options))
        bench = Bench(
            folder=folder,
            edge=edge,
            card=card,
            kernel=root / "vmlinuz",
            device_id=DEVICE,
            memory_mib=options.memory,
            cpu=options.cpu,
            facts=facts,
        )
        with bench.power_on("boot-1", clock=scenario.CLOCK_OF_A_NEW_BOARD) as board:
            say("first boot: enrolled, trained, installed a certified model", lambda: scenario.first_boot(bench, board))
            say("memory", lambda: scenario.memory(bench, board))
            say("power cut in the middle of training", lambda: scenario.power_cut(bench, board))
        with bench.power_on("boot-2") as board:
            say("the board went on", lambda: scenario.after_power_cut(bench, board))
            say("upgraded over the air", lambda: scenario.upgrade(bench, board, software))
            say("a broken release was taken back", lambda: scenario.broken_upgrade(bench, board, software))
            edge.stop()
            shutil.copytree(folder / "fleet" / "miners", folder / "kept" / "miners", ignore=_not_files)
            say("the ledgers verify on the board", lambda: scenario.ledger_on_board(bench, board))
            say("shut down in order", board.power_off)
    say("books and card are in order", lambda: scenario.check_books(bench))


def _wheels(folder: Path) -> Path:
    """The wheelhouse with this tree's client, in a folder of its own."""
    place = folder / "wheels"
    client = client_wheel(folder)
    shutil.copytree(wheelhouse(client), place)
    shutil.copy(client, place)
    return place


def _card(folder: Path, root: Path, wheels: Path, software: Software, edge: Edge, options: argparse.Namespace) -> Path:
    board_folder = folder / DEVICE
    edge.claim(DEVICE, board_folder)
    settings = board_folder / "device.toml"
    text = settings.read_text(encoding="utf-8")
    text, count = re.subn(r'^data = ".*"$', f'data = "{DATA_ON_BOARD}"', text, flags=re.MULTILINE)
    assert count == 1, settings
    settings.write_text(text + TRAINING.format(steps=options.steps), encoding="utf-8")
    write_share(
        folder / "digits.npz", [edge.root / "miners" / name / "fold.npz" for name in MINERS], folder / "data.npz"
    )
    vendor_image(root, folder / "data.npz", folder / "vendor.img")
    said = make_card(folder / "vendor.img", board_folder, wheels, software.board_settings(), folder / "card.img")
    for line in said.values():
        print("    " + line.strip().replace("\n", "\n    "))
    (folder / "vendor.img").unlink()
    return folder / "card.img"


def _not_files(folder: str, names: list[str]) -> set[str]:
    """Sockets of a stopped fleet."""
    return {name for name in names if not (Path(folder) / name).is_file() and not (Path(folder) / name).is_dir()}


class _Clock:
    """Says what was done when it is done."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._start_s = time.monotonic()
        self._acts: list[dict[str, object]] = []
        facts["acts"] = self._acts

    def __call__(self, what: str, act: Callable[[], _T]) -> _T:
        begin_s = time.monotonic()
        result = act()
        now_s = time.monotonic()
        self._acts.append({"act": what, "seconds": round(now_s - begin_s)})
        print(f"{now_s - self._start_s:6.0f} s  {what} ({now_s - begin_s:.0f} s)", flush=True)
        return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.board_test", description="Play the life of a board on an emulated arm64 machine."
    )
    parser.add_argument("--keep", type=Path, help="new folder whose files stay; a temporary one otherwise")
    parser.add_argument("--report", type=Path, help="write the facts as JSON")
    parser.add_argument("--memory", type=int, default=512, help="MiB of the board, default 512")
    parser.add_argument(
        "--cpu", default="cortex-a72", help="core to emulate: cortex-a53, cortex-a72 (default), cortex-a76"
    )
    parser.add_argument("--steps", type=int, default=100, help="local steps of a job, default 100")
    return parser


if __name__ == "__main__":
    os.umask(0o022)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no process behind
    sys.exit(main())
