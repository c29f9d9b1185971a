"""``flchain model build``: a forward ONNX model in, a trainable artifact and its version 0 out; and what it costs."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator import cli_model_plan, cli_model_training
from coordinator.author_key import ALGORITHMS, PUBLIC_SUFFIX, default_key_file, open_author_key
from coordinator.own_model import PARAMETERS_SUFFIX
from edge_sdk.adapters.durable_files import write_file
from edge_sdk.errors import ConfigError
from edge_sdk.training.network import DIMENSION_MAX

if TYPE_CHECKING:
    from coordinator.authoring.cost import StepCost
    from coordinator.authoring.import_onnx import Imported
    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.network import Network

LOSSES: Final = ("ce", "mse", "bce")
BATCH: Final = 32
TARGETS: Final = ("onnx", "litert")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}", re.ASCII)


def add_parser(build: argparse.ArgumentParser) -> None:
    """Declare the options of ``build``."""
    source = build.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "model", type=Path, nargs="?", metavar="MODEL.onnx", help="forward model with one input of floats"
    )
    source.add_argument(
        "--from-torch",
        metavar="FILE.py:NAME",
        help="instead: a torch module, or what makes one without arguments; the file is run (needs torch)",
    )
    source.add_argument(
        "--zoo", metavar="NAME", help="instead: a network that ships, with random weights (any other name lists them)"
    )
    build.add_argument(
        "--input-shape",
        type=_shape,
        metavar="N,...",
        help="of --from-torch, and of --zoo where it is not the usual one: shape of one example, such as 1,28,28",
    )
    build.add_argument("--outputs", type=int, metavar="N", help="of --zoo: classes, or outputs (default: by network)")
    build.add_argument("--seed", type=int, default=0, help="of the weights of --zoo (default: 0)")
    build.add_argument(
        "--loss",
        choices=LOSSES,
        help="softmax or binary cross-entropy of logits, or squared error; networks of the zoo bring theirs",
    )
    build.add_argument("--label-smoothing", type=float, default=0.0, metavar="SHARE", help="of ce (default: 0)")
    build.add_argument(
        "--trainable",
        metavar="all|last:N|biases|NAME,...",
        help="the rest is frozen and costs no gradient (default: all, of --zoo what the network is made for); names "
        "are tensors or layers",
    )
    cli_model_plan.add_options(build)
    build.add_argument("--batch", type=int, default=BATCH, help=f"examples per step (default: {BATCH})")
    cli_model_training.add_options(build)
    build.add_argument(
        "--target",
        choices=TARGETS,
        default=TARGETS[0],
        help="litert: with a flatbuffer for LiteRT and tflite-runtime (float32; needs tensorflow); "
        f"(default: {TARGETS[0]})",
    )
    build.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help=f"private key that signs the artifact; made on first use (default: {default_key_file()})",
    )
    build.add_argument(
        "--key-algorithm", choices=tuple(ALGORITHMS), default="eddsa", help="of a key that is made (default: eddsa)"
    )
    build.add_argument("-o", "--out", type=Path, required=True, metavar="NAME.flm", help="artifact to write")


def build(options: argparse.Namespace) -> int:
    """Import, differentiate, write artifact and version 0 beside it."""
    out: Path = options.out
    if _NAME.fullmatch(out.stem) is None or out.suffix != ".flm":
        raise ConfigError(f"--out {out}: expected NAME.flm with up to 48 letters, digits, dots, dashes")
    _require_onnx()
    from coordinator.authoring.builder import build_artifact
    from coordinator.authoring.trainable import with_trainable
    from coordinator.flatbuffers import with_flatbuffer
    from edge_sdk.protocol import wire
    from edge_sdk.training.quantize import to_params

    imported = _import(options)
    network = imported.network if _is_as_made(options) else with_trainable(imported, options.trainable or "all")
    scheme, rule = cli_model_training.scheme(options), cli_model_training.update_rule(options)
    params = to_params(network.tensors, imported.arrays)
    grids = cli_model_training.calibrated_grids(options, network, params)

    def make(chosen: Network) -> Artifact:
        return build_artifact(out.stem, chosen, batch=options.batch, scheme=scheme, rule=rule, grids=grids)

    artifact = make(cli_model_plan.within_limit(network, imported.arrays, options, make))
    if options.target == "litert":
        artifact = with_flatbuffer(artifact)
    artifact = _sign(artifact, options.key or default_key_file(), options.key_algorithm)
    parameters_file = out.with_suffix(PARAMETERS_SUFFIX)
    write_file(parameters_file, wire.to_bytes(params))
    write_file(out, artifact.data)
    for note in imported.notes:
        print(f"note: {note}")
    print(f"{out}: {len(artifact.data)} bytes, sha256 {artifact.digest.hex()}")
    print(f"{parameters_file}: version 0, the parameters of {options.model or options.from_torch or options.zoo}")
    describe(artifact)
    return 0


def _is_as_made(options: argparse.Namespace) -> bool:
    return options.zoo is not None and options.trainable is None


def _import(options: argparse.Namespace) -> Imported:
    if options.zoo is not None:
        return _from_zoo(options)
    if options.outputs is not None:
        raise ConfigError("--outputs belongs to --zoo: other models say their own")
    if options.loss is None:
        raise ConfigError(f"--loss is missing: expected one of {', '.join(LOSSES)}")
    if options.from_torch is None:
        if options.input_shape is not None:
            raise ConfigError("--input-shape belongs to --from-torch: an ONNX model says its own")
        from coordinator.onnx_files import import_file

        return import_file(options.model, loss=options.loss, smoothing=options.label_smoothing)
    if options.input_shape is None:
        raise ConfigError("--from-torch needs --input-shape, the shape of one example, such as 1,28,28")
    from coordinator.torch_files import import_torch

    return import_torch(
        options.from_torch, input_shape=options.input_shape, loss=options.loss, smoothing=options.label_smoothing
    )


def _from_zoo(options: argparse.Namespace) -> Imported:
    from coordinator.authoring import zoo

    if options.loss is not None or options.label_smoothing:
        raise ConfigError("--loss, --label-smoothing: networks of the zoo bring their loss")
    if options.outputs is not None and options.outputs < 1:
        raise ConfigError(f"--outputs {options.outputs}: expected 1 or more")
    return zoo.imported(options.zoo, input_shape=options.input_shape, class_count=options.outputs, seed=options.seed)


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.isdecimal() and 1 <= int(size) <= DIMENSION_MAX for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r}: expected sizes 1..{DIMENSION_MAX} such as 1,28,28")
    return tuple(map(int, sizes))


def _sign(artifact: Artifact, key_file: Path, algorithm: str) -> Artifact:
    signer, is_new = open_author_key(key_file, ALGORITHMS[algorithm])
    if is_new:
        print(f"{key_file}: new key that signs your artifacts, readable by you only: keep it")
        print(f"{key_file.with_suffix(PUBLIC_SUFFIX)}: its public half, for flchain miner init --author")
    return artifact.signed(signer)


def describe(artifact: Artifact) -> None:
    """Print an artifact's layers and, where the authoring extra is installed, what a step costs."""
    network = artifact.network
    outputs = f"{network.class_count} {'classes' if network.is_classifier else 'outputs'}"
    print(f"artifact {artifact.name}: {artifact.state_kind} state, batch {artifact.batch}")
    print(f"step: {cli_model_training.describe_rule(artifact.rule)}")
    print(f"activations: {cli_model_training.describe_activations(artifact)}")
    print(f"signed by {artifact.authored_by}")
    print(f"input {_sizes(network.input_shape)}, {outputs}, loss {network.loss.name.lower()}")
    print(f"graphs: training step {len(artifact.train_onnx)} bytes, evaluation {len(artifact.eval_onnx)} bytes")
    if artifact.litert:
        print(f"flatbuffer for LiteRT: {len(artifact.litert)} bytes")
    try:
        from coordinator.authoring.cost import step_cost
    except ImportError:
        print("layers and costs: need the authoring extra (onnx)")
        return
    _print_cost(artifact, step_cost(artifact))


def _print_cost(artifact: Artifact, cost: StepCost) -> None:
    header = ("LAYER", "OUTPUT", "PARAMETERS", "TRAINED", "MACS")
    print(f"{header[0]:<44} {header[1]:<14} {header[2]:>10} {header[3]:>10} {header[4]:>14}")
    for layer in cost.layers:
        tensors = [name.removesuffix("_weight") for name in layer.node.tensors[:1]]
        label = " ".join((layer.node.op.name.lower(), *tensors))
        shape = _sizes(layer.output_shape) or "-"
        macs = layer.forward_macs + layer.backward_macs
        print(f"{label:<44} {shape:<14} {layer.parameters:>10} {layer.trainable:>10} {macs:>14}")
    trained = sum(layer.trainable for layer in cost.layers)
    print(f"trained: {trained} of {artifact.network.parameter_count} parameters")
    print(f"a step: {cost.macs} multiply-accumulates of a batch, forward and backward")
    parameters_kib, activations_kib = cost.parameter_bytes / 1024, cost.activation_bytes / 1024
    print(f"tensors: {parameters_kib:.1f} KiB parameters in and out, {activations_kib:.1f} KiB others at the same time")


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "flchain model build needs the authoring extra: pip install 'edge-flchain[authoring]'"
        ) from error


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
