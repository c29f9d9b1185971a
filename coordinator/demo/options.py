"""Options of ``flchain demo``: read, filled up from the preset of the data set, checked before anything starts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from coordinator.authoring.zoo import MODELS, RECIPES
from coordinator.codec_choice import EXPECTED, INT8, CodecChoice, parse_codec
from coordinator.datasets.partition import Partition, parse_partition
from coordinator.demo.presets import (
    DATASETS,
    MEASURED,
    PRESETS,
    QUICK_BLOCK_SIZE,
    QUICK_DEVICES,
    QUICK_MAX_SECONDS,
    Preset,
)
from coordinator.own_model import is_artifact_file
from edge_sdk.errors import ConfigError
from edge_sdk.protocol.limits import BLOCK_UPDATES_MAX
from edge_sdk.protocol.messages import Codec
from firmware_profiles.profile import board_ids

_T = TypeVar("_T")

SEARCH: Final = "search"
BROKERS: Final = ("auto", "mosquitto", "embedded")
BYZANTINE_KINDS: Final = ("signflip", "nullifier", "randomizer", "labelflip", "nan", "scaled")
"""What ``[behaviour] byzantine`` of a device knows."""
DEVICES_MAX: Final = 200
"""Each device is a process of about 40 MiB."""
MINERS_MAX: Final = 16
SECONDS_MIN: Final = 20.0
"""Below, the processes would be stopped before the first block."""
SECONDS_MAX: Final = 86_400.0
TAU_S_MAX: Final = 600.0
SEED_MAX: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Byzantine:
    """How many devices attack, and how."""

    kind: str
    count: int

    def __str__(self) -> str:
        """Give back the text of the option."""
        return f"{self.kind}:{self.count}" if self.count else "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything that a run is told. ``preset`` holds what no option sets."""

    dataset: str
    data: Path | None
    model: str
    """A network that ships, or a file NAME.flm."""
    devices: int
    miners: int
    tau_s: float
    block_size: int
    partition: Partition
    byzantine: Byzantine
    board: str
    max_seconds: float
    rounds: int | None
    """Stop at this model version."""
    target: float | None
    """Stop at this accuracy, R2 or AUC."""
    seed: int
    personal: float | str | None
    """Share of own parameters in personal models; ``SEARCH``: each device finds it; None: no personal models."""
    keep: Path | None
    report: Path | None
    broker: str
    is_live: bool
    preset: Preset
    codec: CodecChoice = INT8
    """How updates are written."""


class _Parser(argparse.ArgumentParser):
    """One line per mistake, no usage text around it."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            message += ": expected options that flchain demo --help names"
        raise ConfigError(message)


def parse(argv: Sequence[str]) -> Options:
    """Read the arguments after ``demo``.

    Raises:
        ConfigError: one line that names option, what was found and what is expected.
    """
    found = _parser().parse_args(argv)
    preset = PRESETS[found.dataset]
    devices = _filled(found.devices, min(preset.devices, QUICK_DEVICES) if found.quick else preset.devices)
    _check_range("--devices", devices, 1, DEVICES_MAX)
    _check_range("--miners", found.miners, 1, MINERS_MAX)
    block_size = _filled(found.block_size, _default_block_size(preset, devices, is_quick=found.quick))
    _check_range("--block-size", block_size, 1, BLOCK_UPDATES_MAX)
    tau_s = _filled(found.tau, preset.tau_s)
    _check_range("--tau", tau_s, 0.05, TAU_S_MAX)
    max_seconds = _filled(found.max_seconds, QUICK_MAX_SECONDS if found.quick else preset.max_seconds)
    _check_range("--max-seconds", max_seconds, SECONDS_MIN, SECONDS_MAX)
    _check_range("--seed", found.seed, 0, SEED_MAX)
    if found.rounds is not None:
        _check_range("--rounds", found.rounds, 1, 2**31)
    if found.target is not None:
        _check_range("--target", found.target, 0.0, 1.0)
    codec = parse_codec(found.codec)
    byzantine = _byzantine(found.byzantine, devices)
    _check_attack(byzantine, codec)
    _check_data(found.dataset, found.data)
    _check_task(found.dataset, found.model, byzantine, found.personal)
    _check_report(found.report)
    return Options(
        dataset=found.dataset,
        data=found.data,
        model=_filled(found.model, preset.model),
        devices=devices,
        miners=found.miners,
        tau_s=tau_s,
        block_size=block_size,
        partition=parse_partition(_filled(found.partition, preset.partition)),
        byzantine=byzantine,
        board=found.board,
        max_seconds=max_seconds,
        rounds=found.rounds,
        target=found.target,
        seed=found.seed,
        personal=_personal(found.personal, codec),
        keep=found.keep,
        report=found.report,
        broker=found.broker,
        is_live=not found.no_live,
        preset=preset,
        codec=codec,
    )


def _parser() -> argparse.ArgumentParser:
    # Without abbreviations: --m would otherwise change its meaning with each new option.
    parser = _Parser(
        prog="flchain demo",
        description="Run a whole fleet on this machine: broker, sequencer, miners and devices, each a process.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="digits", help="what is learned (default: digits)")
    add("--data", type=Path, metavar="PATH", help="folder (idx, hapt, beijing, skab) or file (npz) of the data set")
    add(
        "--model",
        type=_model,
        metavar="MODEL",
        help=f"{', '.join(MODELS)}, or an artifact of yours: NAME.flm (default: by data set)",
    )
    add("--devices", type=_whole, metavar="N", help="device processes (default: by data set, digits 12)")
    add("--miners", type=_whole, default=4, metavar="N", help="miner processes (default: 4)")
    add("--tau", type=_number, metavar="S", help="seconds after which a block is cut however few updates wait")
    add("--block-size", type=_whole, metavar="N", help="updates that cut a block at once")
    add("--partition", metavar="HOW", help="iid, dirichlet:A, classes:K or natural")
    add(
        "--personal",
        metavar="ALPHA",
        help="each device also keeps a personal model with this share (0..1) of its own parameters, or search",
    )
    add(
        "--byzantine",
        metavar="KIND:N",
        help=f"hostile devices: none, or KIND:N of {', '.join(BYZANTINE_KINDS)} (default: signflip:1)",
    )
    add("--codec", default="int8", metavar="CODEC", help=f"how updates are written: {EXPECTED} (default: int8)")
    add("--board", choices=board_ids(), default="rpi-4b", help="profile that energy is modelled with", metavar="BOARD")
    add("--max-seconds", type=_number, metavar="S", help="wall time of the whole command")
    add("--rounds", type=_whole, metavar="N", help="stop at this model version")
    add("--target", type=_number, metavar="A", help="stop at this accuracy (0..1); of measurements R2 or AUC")
    add("--seed", type=_whole, default=1, metavar="N", help="split, model and training order (default: 1)")
    add("--broker", choices=BROKERS, default="auto", help="auto: mosquitto if installed, else embedded")
    add("--quick", action="store_true", help="small and short: for a first look and for tests")
    add("--keep", type=Path, metavar="DIR", help="keep every file of the run in this new or empty folder")
    add("--report", type=Path, metavar="FILE", help="write the report there, as JSON")
    add("--no-live", action="store_true", help="plain lines instead of the live view")
    return parser


def _model(text: str) -> str:
    if text not in MODELS and not is_artifact_file(text):
        expected = f"expected one of {', '.join(MODELS)}, or NAME.flm of flchain model build"
        raise argparse.ArgumentTypeError(f"{text[:60]!r}: {expected}")
    return text


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: expected a whole number") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: expected a number") from error


def _default_block_size(preset: Preset, devices: int, *, is_quick: bool) -> int:
    """Two thirds of the fleet at most, so that one slow device never holds a block back."""
    return max(1, min(QUICK_BLOCK_SIZE if is_quick else preset.block_size, 2 * devices // 3))


def _filled(found: _T | None, default: _T) -> _T:
    return default if found is None else found


def _byzantine(text: str | None, devices: int) -> Byzantine:
    """Without the option a fleet of three or more has one attacker, so that honest devices are the majority."""
    if text is None:
        return Byzantine("signflip", 1 if devices >= 3 else 0)
    if text == "none":
        return Byzantine("signflip", 0)
    kind, _, number = text.partition(":")
    expected = f"expected none or KIND:N, KIND one of {', '.join(BYZANTINE_KINDS)}, N in 1..{devices}"
    if kind not in BYZANTINE_KINDS or not (number.isascii() and number.isdigit() and len(number) <= 6):
        raise ConfigError(f"--byzantine {text}: {expected}")
    if not 1 <= int(number) <= devices:
        raise ConfigError(f"--byzantine {text}: {expected}")
    return Byzantine(kind, int(number))


def _check_attack(byzantine: Byzantine, codec: CodecChoice) -> None:
    if byzantine.kind == "nullifier" and byzantine.count and codec.codec is Codec.SPSA:
        raise ConfigError(f"--byzantine {byzantine} with --codec spsa: no message of directions can say that delta")


def _personal(text: str | None, codec: CodecChoice) -> float | str | None:
    if text is None:
        return None
    if codec.codec is Codec.SPSA:
        raise ConfigError(f"--personal {text} with --codec spsa: such a device trains no model of its own")
    if text == SEARCH:
        return text
    try:
        alpha = float(text)
    except ValueError as error:
        raise ConfigError(f"--personal {text[:40]}: expected a share in 0..1, or {SEARCH}") from error
    _check_range("--personal", alpha, 0.0, 1.0)
    return alpha


def _check_range(option: str, found: float, low: float, high: float) -> None:
    if not low <= found <= high:  # also false for NaN
        raise ConfigError(f"{option} {found:g}: expected {low:g}..{high:g}")


def _check_data(dataset: str, data: Path | None) -> None:
    if dataset == "digits":
        if data is not None:
            raise ConfigError(f"--data {data}: digits come with scikit-learn: expected no --data")
        return
    if data is None:
        what = "a .npz file" if dataset == "npz" else "a folder"
        raise ConfigError(f"--dataset {dataset}: expected --data with {what}")
    if dataset == "npz" and not data.is_file():
        raise ConfigError(f"--data {data}: no such file: expected an .npz with arrays x and y")
    if dataset != "npz" and not data.is_dir():
        raise ConfigError(f"--data {data}: no such folder: expected that of the data set")


def _check_task(dataset: str, model: str | None, byzantine: Byzantine, personal: str | None) -> None:
    """A network must fit the targets; what needs labels is refused where the targets are numbers."""
    is_measured = dataset in MEASURED
    if model in RECIPES and RECIPES[model].is_classifier == is_measured:
        fitting = ", ".join(name for name, recipe in RECIPES.items() if recipe.is_classifier != is_measured)
        raise ConfigError(f"--model {model} with --dataset {dataset}: expected one of {fitting}, or NAME.flm")
    if is_measured and byzantine.kind == "labelflip" and byzantine.count:
        raise ConfigError(f"--byzantine {byzantine} with --dataset {dataset}: there are no labels to flip")
    if is_measured and personal is not None:
        raise ConfigError(f"--personal {personal} with --dataset {dataset}: personal models are judged by labels")


def _check_report(report: Path | None) -> None:
    if report is not None and (report.is_dir() or not report.absolute().parent.is_dir()):
        raise ConfigError(f"--report {report}: expected a file in an existing folder")
