"""``flchain boards list|show``; ``measure`` and ``peer`` run on a board and belong to edge_sdk/cli_measure.py."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from firmware_profiles.errors import UsageError
from firmware_profiles.profile import BoardProfile, Figure, UnknownBoardError, board_ids, load_profile


def main(argv: Sequence[str]) -> int:
    """Run one boards command."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "show":
        try:
            _show(load_profile(arguments.board), is_json=arguments.json)
        except UnknownBoardError as error:
            raise UsageError(str(error)) from error
    else:
        _list([load_profile(board_id) for board_id in board_ids()], is_json=arguments.json)
    return 0


def _list(profiles: Sequence[BoardProfile], *, is_json: bool) -> None:
    if is_json:
        print(json.dumps([dataclasses.asdict(profile) for profile in profiles], indent=2))
        return
    print(f"{'board':<17} {'cores':>5} {'RAM MiB':>8} {'idle W':>7} {'load W':>7}  {'seed':<14} name")
    for profile in profiles:
        figures = (
            f"{_short(profile.cores):>5} {_short(profile.ram_mib):>8} "
            f"{_short(profile.idle_w):>7} {_short(profile.load_w):>7}"
        )
        print(f"{profile.board_id:<17} {figures}  {profile.image.init_format:<14} {profile.name}")
    print("'-': nobody measured it. Conditions and sources: flchain boards show BOARD")


def _show(profile: BoardProfile, *, is_json: bool) -> None:
    if is_json:
        print(json.dumps(dataclasses.asdict(profile), indent=2))
        return
    print(f"{profile.board_id}: {profile.name}")
    for field in dataclasses.fields(profile):
        value = getattr(profile, field.name)
        if isinstance(value, Figure):
            print(f"  {field.name:<14} {value.value:g}   {value.condition}\n{'':<17} source: {value.source}")
        elif value is None:
            print(f"  {field.name:<14} not available: nobody measured it")
    for name, figure in profile.further.items():
        print(f"  {name:<14} {figure.value:g}   {figure.condition}\n{'':<17} source: {figure.source}")
    image = profile.image
    print(f"  image          {image.route}")
    print(f"{'':<17} seed {image.init_format}, {image.architecture}, Python {image.python or 'not established'}")
    print(f"{'':<17} source: {image.source}")


def _short(figure: Figure | None) -> str:
    return "-" if figure is None else f"{figure.value:g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flchain boards", description="What is known of boards, with sources.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="every board in one line")
    showing = commands.add_parser("show", help="every figure of one board with its condition and source")
    showing.add_argument("board", metavar="BOARD", help="name, or the file of a profile of one's own (.toml)")
    commands.add_parser("measure", help="measure this board and write a profile of one's own", add_help=False)
    commands.add_parser("peer", help="answer a board that measures its link to this machine", add_help=False)
    for command in (listing, showing):
        command.add_argument("--json", action="store_true", help="as JSON")
    return parser
