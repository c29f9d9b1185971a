"""``flchain bench train``: what a training step costs on this machine, in time and memory, backend by backend.

Needs what a board has. Models of the zoo are built here, which takes the ``authoring`` extra; artifacts that were built
elsewhere are given by path.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from coordinator import flatbuffers
from coordinator.training_bench import STEPS_PER_ROUND, Row, Subject, measure
from edge_sdk.adapters.durable_files import write_file
from edge_sdk.errors import ConfigError, EdgeFLError
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.backends import BACKEND_NAMES
from edge_sdk.training.network import Scheme

BACKENDS: Final = ("onnxruntime", "numpy", "litert", "torch")
SCHEMES: Final = {scheme.name.lower().replace("_", "-"): scheme for scheme in Scheme}
MODELS: Final = ("mlp", "lenet", "cnn1d")
BATCH: Final = 32
ROUNDS: Final = 10
ROUNDS_MAX: Final = 10_000
_SEED: Final = 0
_SUFFIX: Final = ".flm"

_EPILOG: Final = """\
A model is the name of a recipe, which is built here for each scheme (package onnx, the authoring extra), or the path of
an artifact NAME.flm with its parameters NAME.model.cbor beside it. A board has no onnx: write the artifacts elsewhere,
copy the folder, and give paths:

  elsewhere:    flchain bench train --models mlp,lenet --save DIR
  on the board: flchain bench train --models DIR/*.flm --report rows.json

LiteRT needs a flatbuffer in the artifact: recipes get one where tensorflow is installed (flchain model build --target
litert writes one too), for fp32 only.

The step that is timed is the backend's, on batches that are ready. Each backend runs in a process of its own, on one
thread; the processes take turns. A backend that is not installed is left out, and said so.

Report: a JSON list of rows. step_ms_median: median step in ms. ratio_to_torch_fp32, ratio_to_own_fp32: median of the
paired ratios of the rounds to torch's and to the backend's own float32 step, in processor time (by the clock with a
GPU), null where that did not run.
peak_rss_mib: largest resident memory of the process. loss_after: mean loss of the last steps, equal for backends that
compute the same.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments; 1 where nothing could be measured."""
    options = _parser().parse_args(argv)
    options.models = [name for names in options.models for name in names]
    with tempfile.TemporaryDirectory(prefix="flchain-bench-") as scratch:
        folder = Path(scratch) if options.save is None else options.save
        groups = _subjects(options, folder)
        if options.save is not None:
            files = sorted({subject.artifact_file for group in groups for subject in group})
            print(*files, sep="\n")
            return 0
        return _run(options, groups)


def _run(options: argparse.Namespace, groups: list[list[Subject]]) -> int:
    print(f"{platform.machine()}, Python {platform.python_version()}; one thread, {options.rounds} rounds in turns")
    rows: list[Row] = []
    skipped: list[str] = []
    print(_line("MODEL", "BACKEND", "SCHEME", "STEP MS", "/TORCH FP32", "/OWN FP32", "PEAK MIB", "LOSS"))
    for group in groups:
        measured, left_out = measure(group, rounds=options.rounds)
        for row in measured:
            print(_table_line(row), flush=True)
        rows += measured
        skipped += left_out
    for text in skipped:
        print(f"left out: {text}")
    if options.report is not None:
        write_file(options.report, (json.dumps([asdict(row) for row in rows], indent=1) + "\n").encode())
        print(f"{options.report}: {len(rows)} rows")
    return 0 if rows else 1


def _subjects(options: argparse.Namespace, folder: Path) -> list[list[Subject]]:
    """What to measure, one group per model."""
    groups: dict[str, list[Subject]] = {}
    for entry in options.models:
        if entry.endswith(_SUFFIX):
            files = [Path(entry)]
        else:
            files = [_build(entry, scheme, options, folder) for scheme in options.schemes]
        for file in files:
            artifact = _load(file)
            scheme = next(name for name, kind in SCHEMES.items() if kind is artifact.scheme)
            groups.setdefault(artifact.name, []).extend(
                Subject(
                    model=artifact.name,
                    backend=backend,
                    scheme=scheme,
                    artifact_file=file,
                    params_file=file.with_suffix(".model.cbor"),
                )
                for backend in options.backends
            )
    return list(groups.values())


def _load(file: Path) -> Artifact:
    try:
        artifact = Artifact.load(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"--models {file}: {error.strerror or error}") from error
    except EdgeFLError as error:
        raise ConfigError(f"--models {file}: {error}") from error
    params = file.with_suffix(".model.cbor")
    if not params.is_file():
        raise ConfigError(f"--models {file}: its parameters {params} do not exist")
    return artifact


def _build(model: str, scheme: str, options: argparse.Namespace, folder: Path) -> Path:
    """Build a recipe of the zoo and write artifact and parameters."""
    try:
        from coordinator.authoring import zoo
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--models {model}: recipes are built here, which needs the package {error.name!r}; either "
            "pip install 'edge-flchain[authoring]', or give the path of an artifact NAME.flm that was built elsewhere "
            "(flchain bench train --save DIR)"
        ) from error
    from edge_sdk.protocol import wire

    if model not in zoo.RECIPES:
        raise ConfigError(f"--models {model!r}: expected NAME.flm or one of {', '.join(zoo.MODELS)}")
    recipe = zoo.RECIPES[model]
    artifact, params = zoo.build(
        model, recipe.input_shape, recipe.outputs, batch=options.batch, scheme=SCHEMES[scheme], seed=_SEED
    )
    if "litert" in options.backends and artifact.scheme is Scheme.FP32 and flatbuffers.is_available():
        artifact = flatbuffers.with_flatbuffer(artifact)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{model}-{scheme}{_SUFFIX}"
    write_file(file, artifact.data)
    write_file(file.with_suffix(".model.cbor"), wire.to_bytes(params))
    return file


def _table_line(row: Row) -> str:
    ratios = ("-" if ratio is None else f"{ratio:.3f}" for ratio in (row.ratio_to_torch_fp32, row.ratio_to_own_fp32))
    return _line(
        row.model,
        row.backend,
        row.scheme,
        f"{row.step_ms_median:.3f}",
        *ratios,
        f"{row.peak_rss_mib:.1f}",
        f"{row.loss_after:.4f}",
    )


def _line(*cells: str) -> str:
    model, backend, scheme, *numbers = cells
    return f"{model:<14} {backend:<12} {scheme:<8}" + "".join(f" {number:>11}" for number in numbers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flchain bench", description="Measure on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="time and memory of a training step, backend by backend",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument(
        "--models",
        type=_names(None),
        nargs="+",
        default=[list(MODELS)],
        metavar="NAME,...|FILE.flm",
        help=f"recipes or artifacts (default: {','.join(MODELS)})",
    )
    train.add_argument(
        "--backends",
        type=_names(BACKEND_NAMES),
        default=list(BACKENDS),
        metavar="NAME,...",
        help=f"out of {', '.join(BACKEND_NAMES)} (default: {','.join(BACKENDS)})",
    )
    train.add_argument(
        "--schemes",
        type=_names(tuple(SCHEMES)),
        default=["fp32", "int8"],
        metavar="NAME,...",
        help=f"of recipes: out of {','.join(SCHEMES)} (default: fp32,int8)",
    )
    train.add_argument(
        "--rounds",
        type=_rounds,
        default=ROUNDS,
        help=f"turns of each process, of {STEPS_PER_ROUND} steps (default: {ROUNDS})",
    )
    train.add_argument("--batch", type=int, default=BATCH, help=f"of recipes: examples per step (default: {BATCH})")
    train.add_argument("--report", type=Path, metavar="FILE", help="write the rows as JSON")
    train.add_argument("--save", type=Path, metavar="DIR", help="only write the recipes' artifacts, for a board")
    return parser


def _names(known: tuple[str, ...] | None) -> Callable[[str], list[str]]:
    """Names with commas between them, each once."""

    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        unknown = [name for name in names if known is not None and name not in known]
        if unknown or "" in names:
            expected = "names with commas between them" if known is None else f"names out of {', '.join(known)}"
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
        return names

    return parse


def _rounds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= ROUNDS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1..{ROUNDS_MAX}")
    return int(text)
