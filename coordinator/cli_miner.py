"""``flchain miner``: found a deployment, or run one edge server of it."""

from __future__ import annotations

import argparse
import getpass
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.codec_choice import EXPECTED, parse_codec
from edge_sdk.errors import ConfigError, DecodeError
from edge_sdk.protocol.ids import ChainId, MinerId, TaskId, check_name

if TYPE_CHECKING:
    from coordinator.datasets.labelled import LabelledData
    from coordinator.datasets.targets import TargetData
    from coordinator.setup import Founded, Plan
    from edge_sdk.training.artifact import Artifact

FOLD_EXAMPLES: Final = 256
FOLD_SHARE_MAX: Final = 4
"""At most a quarter of the examples become folds; the rest stays for whoever brought them."""
BATCH: Final = 32


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments; 0 after an ordered stop."""
    options = _parser().parse_args(argv)
    if options.command == "run":
        return _run(options.config)
    return _init(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flchain miner", description="Set up or run an edge server.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run until SIGTERM")
    run.add_argument("--config", type=Path, required=True, help="miner.toml")
    init = commands.add_parser("init", help="keys, genesis, settings, broker files and units in a new folder")
    init.add_argument("directory", type=Path, help="new folder; nothing is overwritten")
    init.add_argument("--chain", type=_name, default="flchain", help="name of the chain (default: flchain)")
    init.add_argument("--task", type=_name, default="task", help="name of the task (default: task)")
    init.add_argument("--miners", type=_names, default="m0,m1,m2,m3", help="names of the miners, with commas between")
    init.add_argument("--host", type=_host, default="127.0.0.1", help="name or address that devices reach")
    init.add_argument("--bind", type=_host, default="127.0.0.1", help="address that services listen on")
    init.add_argument("--broker-port", type=_port, default=8883)
    init.add_argument("--http-port", type=_port, default=8080, help="of the first miner; the others follow")
    init.add_argument("--enrolment-port", type=_port, default=8443)
    data = init.add_argument_group("data and model")
    data.add_argument(
        "--dataset",
        choices=("digits", "idx", "hapt", "npz"),
        default="digits",
        help="where the miners' folds come from",
    )
    data.add_argument("--data", type=Path, help="folder (idx, hapt) or file (npz)")
    data.add_argument(
        "--model", default="mlp", help="mlp, lenet or another of the zoo, or an artifact of yours: NAME.flm"
    )
    data.add_argument(
        "--author", type=Path, metavar="NAME.pub", help="key that must have signed NAME.flm; the genesis pins it"
    )
    data.add_argument("--seed", type=int, default=0, help="of the model and the folds")
    data.add_argument(
        "--codec",
        default="int8",
        metavar="CODEC",
        help=f"how updates are written: {EXPECTED} (default: int8)",
    )
    data.add_argument("--block-size", type=_positive, default=4, help="updates that cut a block at once")
    data.add_argument("--tau", type=_seconds, default=30.0, help="seconds after which a block is cut anyway")
    return parser


def _run(config_file: Path) -> int:
    from coordinator.heap import keep_freed_memory
    from coordinator.one_thread import limit_threads

    limit_threads()  # before anything below loads numpy
    keep_freed_memory()
    from coordinator.config import load_config
    from coordinator.json_log import log_json_lines
    from coordinator.miner import run

    config = load_config(config_file)
    log_json_lines()
    return run(config)


def _init(options: argparse.Namespace) -> int:
    from coordinator.author_key import read_author
    from coordinator.authoring import zoo
    from coordinator.own_model import is_artifact_file, load_own_model
    from coordinator.setup import Plan, default_params, found
    from coordinator.task_form import fit_task
    from edge_sdk.adapters.system_clock import SystemClock

    codec = parse_codec(options.codec)
    plan = Plan(
        root=options.directory.absolute(),
        chain_id=ChainId(options.chain),
        task=TaskId(options.task),
        miners=options.miners,
        run_as=getpass.getuser(),
        host=options.host,
        bind=options.bind,
        broker_port=options.broker_port,
        http_port=options.http_port,
        enrolment_port=options.enrolment_port,
    )
    author = None if options.author is None else read_author(options.author)
    data: LabelledData | TargetData
    if is_artifact_file(options.model):
        own = load_own_model(Path(options.model), author=author)
        artifact, params, data = own.artifact, own.params, _fitted(own.artifact, options)
        print(f"{options.model}: signed by {artifact.authored_by}")
    elif author is not None:
        raise ConfigError(
            f"--author {options.author}: --model {options.model} comes with this program: expected NAME.flm"
        )
    else:
        data = _load(options.dataset, options.data)
        artifact, params = zoo.build(
            options.model,
            data.input_shape,
            data.class_count,
            batch=BATCH,
            seed=options.seed,
            is_output_only=codec.is_output_only,
        )
    rules = default_params(
        batch=artifact.batch, block_size=options.block_size, tau_ms=round(options.tau * 1_000), codec=codec
    )
    with tempfile.TemporaryDirectory(prefix="flchain-") as folder:
        folds = _write_folds(data, plan.miners, Path(folder), seed=options.seed)
        founded = found(
            plan,
            params=fit_task(rules, artifact),
            artifact=artifact.data,
            model=params,
            folds=folds,
            now_s=SystemClock().time_s(),
            author=author,
        )
    print(_next_steps(plan, founded))
    return 0


def _fitted(artifact: Artifact, options: argparse.Namespace) -> LabelledData | TargetData:
    """The data set of the options, as a user's own artifact takes it."""
    from coordinator.datasets.targets import load_targets
    from coordinator.own_model import fit_data, fit_targets

    model = Path(options.model)
    if artifact.network.is_classifier:
        return fit_data(artifact, _load(options.dataset, options.data), model=model)
    if options.dataset != "npz" or options.data is None:
        loss = artifact.network.loss.name.lower()
        raise ConfigError(
            f"--model {model}: its loss is {loss}: expected --dataset npz --data FILE with float targets y"
        )
    return fit_targets(artifact, load_targets(options.data), model=model)


def _load(dataset: str, path: Path | None) -> LabelledData:
    if dataset == "digits":
        from coordinator.datasets.digits import load_digits

        return load_digits()
    if path is None:
        raise ConfigError(f"--dataset {dataset} without --data: expected a folder or file")
    from coordinator.datasets.arrays import load_npz
    from coordinator.datasets.hapt import load_hapt
    from coordinator.datasets.idx import load_idx

    return {"idx": load_idx, "hapt": load_hapt, "npz": load_npz}[dataset](path)


def _write_folds(
    data: LabelledData | TargetData, miners: Sequence[MinerId], folder: Path, *, seed: int
) -> dict[MinerId, Path]:
    """One disjoint fold per miner out of the training examples, every class in proportion where there are classes."""
    import numpy as np

    from coordinator.datasets.partition import parse_partition
    from coordinator.datasets.split import split
    from coordinator.datasets.targets import TargetData

    x, y = (data.x, data.y) if isinstance(data, TargetData) else (data.x_train, data.y_train)
    examples, rng = min(FOLD_EXAMPLES, len(y) // (FOLD_SHARE_MAX * len(miners))), np.random.default_rng(seed)
    if examples < 1:
        raise ConfigError(f"--data: {len(y)} examples for {len(miners)} miners: expected more")
    if isinstance(data, TargetData):
        folds = data.deal_folds(len(miners), examples, rng)
    else:
        iid = parse_partition("iid")
        folds = list(split(data, miners=len(miners), devices=1, fold_examples=examples, partition=iid, rng=rng).folds)
    files = {}
    for miner, rows in zip(miners, folds, strict=True):
        files[miner] = folder / f"{miner}.npz"
        np.savez(files[miner], x=x[rows], y=y[rows])
    return files


def _next_steps(plan: Plan, founded: Founded) -> str:
    registrar = founded.miner_configs[0]
    return "\n".join(
        (
            f"Founded {plan.chain_id} in {plan.root}: {len(plan.miners)} miners, private files 0600, folders 0700.",
            f"Trust anchor (SHA-256 of genesis.cbor): {founded.anchor}",
            "",
            "Next, each in its own terminal (or install the units in systemd/):",
            f"  mosquitto -c {founded.broker_config}",
            f"  flchain sequencer run --config {founded.sequencer_config}",
            *(f"  flchain miner run --config {config}" for config in founded.miner_configs),
            "",
            "For each board, a single-use claim, then copy claim, authority and anchor to it by a way you trust:",
            f"  flchain registry claim board-01 --ttl 72h --out board-01.claim --config {registrar}",
            f"  authority: {founded.authority_file}",
            f"  enrolment: https://{plan.host}:{plan.enrolment_port}",
            "",
            f"Keep {plan.root / 'registrar'} on one machine and back it up: its keys admit and revoke devices.",
        )
    )


def _name(text: str) -> str:
    try:
        return check_name(text)
    except DecodeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _names(text: str) -> tuple[MinerId, ...]:
    return tuple(MinerId(_name(part)) for part in text.split(","))


def _host(text: str) -> str:
    allowed = text.isascii() and 0 < len(text) <= 253 and all(c.isalnum() or c in ".-:" for c in text)
    if not allowed:
        raise argparse.ArgumentTypeError(f"{text[:60]!r}: expected a host name or an address")
    return text


def _port(text: str) -> int:
    port = _positive(text)
    if port > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1..65535")
    return port


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text[:20]!r}: expected a number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:20]!r}: expected seconds") from error
    if not 0.1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text[:20]!r}: expected 0.1..86400 seconds")
    return seconds
