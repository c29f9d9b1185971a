"""``python -m tools.board_test``: plays the whole life of a board and prints what was reached, and when.

With ``--keep FOLDER`` the files stay, and after a failure ``--keep FOLDER --from ACT`` goes on with the same card and
the same edge servers.
"""

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
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from tools.board_test import scenario, upgrades
from tools.board_test.bench import Bench
from tools.board_test.card import client_wheel, make_card, wheelhouse
from tools.board_test.data import write_digits, write_share
from tools.board_test.edge import MINERS, Edge, EdgeError
from tools.board_test.shell import BoardError
from tools.board_test.software import Software
from tools.board_test.vendor import DATA_ON_BOARD, vendor_image, vendor_root

_T = TypeVar("_T")
DEVICE: Final = "board-1"
MODEL: Final = "lenet"
FACTS: Final = "facts.json"
# Short jobs that are saved often, so that a power cut finds one that has a checkpoint and steps to go.
TRAINING: Final = "\n[training]\nsteps = {steps}\ncheckpoint_s = 1.0\n"


class Act(NamedTuple):
    """One part of the board's life; each leaves a board that the next one can take over, switched on or off."""

    name: str
    title: str
    play: Callable[[Bench], None]


ACTS: Final = (
    Act("first-boot", "first boot: enrolled, trained, installed a certified model", scenario.first_boot),
    Act("memory", "memory", scenario.memory),
    Act("power-cut", "power cut in the middle of training, and on from the checkpoint", scenario.power_cut),
    Act("cut-while-installing", "power cut while a release is installed", upgrades.cut_while_installing),
    Act("wrong-clock", "a clock in the past, then the right time", upgrades.wrong_clock),
    Act("cut-while-trying", "power cut during the trial, then committed", upgrades.cut_while_trying),
    Act("broken-release", "a broken release was taken back, with a read-only root", upgrades.broken_release),
    Act("ledger", "the ledgers verify on the board", scenario.ledger_on_board),
    Act("books", "books and card are in order", scenario.books),
)


def main(argv: list[str]) -> int:
    """Run it; 0 when everything held."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.begin is not None and not (options.keep and (options.keep / FACTS).is_file()):
        parser.error("--from goes on with the files of an earlier run: name its folder with --keep")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="flchain-board-"))
    folder.mkdir(parents=True, exist_ok=True)
    start_s = time.monotonic()
    facts: dict[str, Any] = {} if options.begin is None else json.loads((folder / FACTS).read_text("utf-8"))
    say = _Clock(facts, folder / FACTS)
    try:
        _play(options, folder, facts, say)
    except (BoardError, EdgeError, RuntimeError) as error:
        print(json.dumps(facts, indent=2))
        print(f"FAILED after {time.monotonic() - start_s:.0f} s: {error}\nfiles: {folder}", file=sys.stderr)
        if say.act is not None:
            print(f'to go on: make board-test ARGS="--keep {folder} --from {say.act}"', file=sys.stderr)
        return 1
    facts["seconds"] = round(time.monotonic() - start_s)
    print(json.dumps(facts, indent=2))
    if options.report:
        options.report.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if options.keep is None:
        shutil.rmtree(folder)
    return 0


def _play(options: argparse.Namespace, folder: Path, facts: dict[str, Any], say: _Clock) -> None:
    root = say("Debian arm64 from the archive", lambda: vendor_root(folder / "mmdebstrap.log"))
    if options.begin is None:
        wheels = say("wheelhouse for the board", lambda: _wheels(folder))
        edge = say("edge servers are founded", lambda: _edge(folder))
        software = Software.found(folder / "software", edge, wheels)
    else:
        edge = Edge(folder / "fleet")
        software = Software(folder / "software", edge, folder / "wheels")
    names = [act.name for act in ACTS]
    with ExitStack() as stack:
        say("broker, sequencer and miners run", lambda: stack.enter_context(edge))
        card = folder / "card.img"
        if options.begin is None:
            say("the card is flashed", lambda: _card(card, root, software, edge, options))
        bench = Bench(
            folder=folder,
            edge=edge,
            software=software,
            card=card,
            kernel=root / "vmlinuz",
            device_id=DEVICE,
            memory_mib=options.memory,
            cpu=options.cpu,
            facts=facts,
        )
        stack.enter_context(bench)
        for act in ACTS[names.index(options.begin or names[0]) :]:
            say.act = act.name
            say(act.title, partial(act.play, bench))


def _edge(folder: Path) -> Edge:
    write_digits(folder / "digits.npz")
    return Edge.found(folder / "fleet", dataset=("--dataset", "npz", "--data", str(folder / "digits.npz")), model=MODEL)


def _wheels(folder: Path) -> Path:
    """The wheelhouse with this tree's client, in a folder of its own."""
    place = folder / "wheels"
    client = client_wheel(folder)
    shutil.copytree(wheelhouse(client), place)
    shutil.copy(client, place)
    return place


def _card(card: Path, root: Path, software: Software, edge: Edge, options: argparse.Namespace) -> None:
    folder = card.parent
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
    said = make_card(folder / "vendor.img", board_folder, folder / "wheels", software.board_settings(), card)
    for line in said.values():
        print("    " + line.strip().replace("\n", "\n    "))
    (folder / "vendor.img").unlink()


class _Clock:
    """Says what was done when it is done, and keeps the facts on the disk for a run that goes on later."""

    def __init__(self, facts: dict[str, Any], path: Path) -> None:
        self._start_s = time.monotonic()
        self._facts, self._path = facts, path
        self.act: str | None = None
        """The act that is being played."""

    def __call__(self, what: str, act: Callable[[], _T]) -> _T:
        begin_s, load = time.monotonic(), os.getloadavg()[0]
        result = act()
        now_s = time.monotonic()
        loads = [round(load, 1), round(os.getloadavg()[0], 1)]
        self._facts.setdefault("acts", []).append({"act": what, "seconds": round(now_s - begin_s), "load": loads})
        self._path.write_text(json.dumps(self._facts, indent=2) + "\n", encoding="utf-8")
        text = f"{now_s - begin_s:.0f} s, load {loads[0]} to {loads[1]}"
        print(f"{now_s - self._start_s:6.0f} s  {what} ({text})", flush=True)
        return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.board_test", description="Play the life of a board on an emulated arm64 machine."
    )
    parser.add_argument("--keep", type=Path, help="new folder whose files stay; a temporary one otherwise")
    parser.add_argument(
        "--from",
        dest="begin",
        choices=[act.name for act in ACTS],
        help="go on with this act and the files of --keep, after a run that failed",
    )
    parser.add_argument("--report", type=Path, help="write the facts as JSON")
    parser.add_argument("--memory", type=int, default=512, help="MiB of the board, default 512")
    parser.add_argument(
        "--cpu", default="cortex-a72", help="core to emulate: cortex-a53, cortex-a72 (default), cortex-a76"
    )
    parser.add_argument("--steps", type=int, default=40, help="local steps of a job, default 40")
    return parser


if __name__ == "__main__":
    os.umask(0o022)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no process behind
    sys.exit(main(sys.argv[1:]))
