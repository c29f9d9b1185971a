"""Options of ``flchain model build`` that say how the artifact trains: state, optimizer, activation ranges."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from edge_sdk.protocol.messages import ModelParams
    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.grids import Grids
    from edge_sdk.training.network import Network, Scheme
    from edge_sdk.training.update_rule import UpdateRule

STATES: Final = {"q8.8": "INT8", "int8-sr": "INT8_SR", "fp32": "FP32"}
"""By the name of a state: member of ``Scheme``."""
OPTIMIZERS: Final = ("sgd", "momentum")
MOMENTUM: Final = 0.9
_NEAREST: Final = frozenset({"int8", "int8-nearest", "int8-rn"})


def add_options(build: argparse.ArgumentParser) -> None:
    """Declare the options."""
    build.add_argument(
        "--state",
        type=_state,
        default="q8.8",
        metavar="|".join(STATES),
        help="what a weight is while it trains: int16 in 1/256 of an int8 step; int8 rounded stochastically, the least "
        "memory; or float32 (default: q8.8)",
    )
    build.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        default="sgd",
        help="momentum keeps the last step on the device (default: sgd)",
    )
    build.add_argument(
        "--momentum",
        type=float,
        metavar="SHARE",
        help=f"of the last step, with --optimizer momentum (default: {MOMENTUM})",
    )
    build.add_argument(
        "--clip",
        type=float,
        default=0.0,
        metavar="NORM",
        help="largest L2 norm of a step's gradient (default: no bound)",
    )
    build.add_argument(
        "--prox",
        type=float,
        default=0.0,
        metavar="MU",
        help="FedProx: weight of the squared distance to the job's base, halved, in the loss (default: 0)",
    )
    build.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE.npz",
        help="examples x and y, as on a board: fixes the range of each activation and adds the int8 inference graph; "
        "best for a trained model (default: the range of each batch)",
    )


def scheme(options: argparse.Namespace) -> Scheme:
    """Arithmetic of the weights."""
    from edge_sdk.training.network import Scheme

    return Scheme[STATES[options.state]]


def update_rule(options: argparse.Namespace) -> UpdateRule:
    """What the step adds to plain SGD.

    Raises:
        ConfigError: a momentum without its optimizer, or with a share of 0.
        TrainingError: a value is out of range.
    """
    from edge_sdk.training.update_rule import UpdateRule, check_rule

    momentum = 0.0
    if options.optimizer == "momentum":
        momentum = MOMENTUM if options.momentum is None else options.momentum
        if momentum == 0.0:
            raise ConfigError("--momentum 0: expected more than 0, or --optimizer sgd")
    elif options.momentum is not None:
        raise ConfigError(f"--momentum {options.momentum:g}: needs --optimizer momentum, found {options.optimizer}")
    rule = UpdateRule(momentum=momentum, clip_norm=options.clip, prox=options.prox)
    check_rule(rule)
    return rule


def calibrated_grids(options: argparse.Namespace, network: Network, params: ModelParams) -> Grids:
    """Grids of the activations from the examples of ``--calibrate``; none without it.

    Raises:
        ConfigError: a float32 state has no grids.
        TrainingError: the file, or an activation, cannot be used.
    """
    from edge_sdk.training.grids import NO_GRIDS

    if options.calibrate is None:
        return NO_GRIDS
    if options.state == "fp32":
        if options.ram_limit is not None:
            return NO_GRIDS  # the examples are for the limit's choice alone
        raise ConfigError("--calibrate: needs an int8 state or --ram-limit, found --state fp32")
    from coordinator.authoring.calibration import EXAMPLES_MAX, calibrate
    from coordinator.calibration_file import load_calibration

    data = load_calibration(options.calibrate, network, batch=options.batch)
    return calibrate(network, params, data.features(slice(0, EXAMPLES_MAX)))


def describe_activations(artifact: Artifact) -> str:
    """One line for people."""
    if artifact.state_kind == "fp32":
        return "float32"
    return f"uint8, {len(artifact.grids)} calibrated ranges" if artifact.grids else "uint8, the range of each batch"


def describe_rule(rule: UpdateRule) -> str:
    """One line for people."""
    parts = [f"momentum {rule.momentum:g}" if rule.momentum else "plain SGD"]
    if rule.clip_norm:
        parts.append(f"gradient clipped to {rule.clip_norm:g}")
    if rule.prox:
        parts.append(f"proximal term {rule.prox:g}")
    return ", ".join(parts)


def _state(text: str) -> str:
    if text in _NEAREST:
        raise argparse.ArgumentTypeError(
            f"{text}: int8 rounded to nearest does not learn: on digits at a learning rate of 0.02 it reached 23.0 % "
            "where float32 reached 93.0 %, since nearly every update is below half a step and is lost; "
            f"expected {', '.join(STATES)}"
        )
    if text not in STATES:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {', '.join(STATES)}")
    return text
