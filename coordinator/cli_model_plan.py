"""``--ram-limit`` of ``flchain model build``: train what gains most within a bound on memory."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import numpy.typing as npt

    from coordinator.authoring.update_plan import PeakOf
    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.network import Network

    Make = Callable[[Network], Artifact]

BACKEND: Final = "onnxruntime"
_MIB: Final = 1024 * 1024
_SHOWN: Final = 12


def add_options(build: argparse.ArgumentParser) -> None:
    """Declare the option."""
    build.add_argument(
        "--ram-limit",
        type=float,
        metavar="MIB",
        help=f"predicted peak of a process that trains with {BACKEND}, without transport; of the tensors that "
        "--trainable allows, those are trained that gain most on --calibrate within it",
    )


def within_limit(
    network: Network, arrays: Mapping[str, npt.NDArray[np.float32]], options: argparse.Namespace, make: Make
) -> Network:
    """Freeze what does not fit, and print what was left out and why.

    Args:
        network: Its trainable tensors are the candidates.
        arrays: Where training starts, by tensor name.
        options: Of the command.
        make: The artifact of a network, as it will be built.

    Raises:
        ConfigError: not a limit, or no calibration data where a choice is needed.
        TrainingError: nothing fits, or the calibration data do not fit the network.
    """
    if options.ram_limit is None:
        return network
    if not 0 < options.ram_limit < float("inf"):
        raise ConfigError(f"--ram-limit {options.ram_limit:g}: expected MiB above 0")
    from coordinator.authoring.memory import peak_memory, signature_bytes

    limit_bytes = int(options.ram_limit * _MIB)

    def peak_of(chosen: Network) -> int:
        return peak_memory(make(chosen), backend=BACKEND).total_bytes + signature_bytes()

    whole = peak_of(network)
    if whole <= limit_bytes:
        print(f"memory: {whole / _MIB:.1f} MiB predicted, within {options.ram_limit:g}: nothing is left out")
        return network
    if options.calibrate is None:
        raise ConfigError(
            f"--ram-limit {options.ram_limit:g}: all of --trainable need {whole / _MIB:.1f} MiB; choosing among them "
            "needs --calibrate FILE.npz"
        )
    return _chosen(network, arrays, options, whole_bytes=whole, limit_bytes=limit_bytes, peak_of=peak_of)


def _chosen(
    network: Network,
    arrays: Mapping[str, npt.NDArray[np.float32]],
    options: argparse.Namespace,
    *,
    whole_bytes: int,
    limit_bytes: int,
    peak_of: PeakOf,
) -> Network:
    from coordinator.authoring.contribution import contributions
    from coordinator.authoring.update_plan import choose_plan
    from coordinator.calibration_file import load_calibration

    data = load_calibration(options.calibrate, network, batch=options.batch)
    plan = choose_plan(network, contributions(network, arrays, data), limit_bytes=limit_bytes, peak_of=peak_of)
    everything = len(plan.trained) + len(plan.left_out)
    print(
        f"memory: {whole_bytes / _MIB:.1f} MiB for all {everything} tensors, limit {options.ram_limit:g}: "
        f"{len(plan.trained)} are trained, {plan.peak_bytes / _MIB:.1f} MiB predicted"
    )
    for left in plan.left_out[:_SHOWN]:
        print(f"left out: {left.tensor} (gain {left.gain:.4f}): {left.reason}")
    if len(plan.left_out) > _SHOWN:
        print(f"left out: and {len(plan.left_out) - _SHOWN} more that gain less")
    return plan.network
