"""What a step allocates, by hand; and the predicted peak against fresh processes that train."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import NodeProto, TensorProto, helper, numpy_helper

from coordinator.authoring.arena import Arena
from coordinator.authoring.builder import build_artifact
from coordinator.authoring.memory import MIB, peak_memory
from coordinator.authoring.runtime_plan import plan_run
from coordinator.authoring.trainable import with_trainable
from coordinator.authoring.zoo import MODELS, RECIPES, build, imported
from edge_sdk.errors import TrainingError
from edge_sdk.protocol import wire
from edge_sdk.protocol.cose import SoftwareSigner
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.network import Scheme
from edge_sdk.training.quantize import to_params

ROOT = Path(__file__).parents[2]
TOLERANCE = 0.10


def serialized(nodes: list[NodeProto], inputs: dict[str, list[int]], outputs: dict[str, list[int]]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "by_hand",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.array([4, 25], np.int64), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def test_tensors_are_written_over_reused_or_taken() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["a"]),  # 400 bytes
        helper.make_node("Relu", ["a"], ["b"]),  # over a
        helper.make_node("Reshape", ["b", "shape"], ["c"]),  # the same bytes
        helper.make_node("Add", ["c", "c"], ["d"]),  # arithmetic takes its own; then nobody needs a
        helper.make_node("Sub", ["d", "c"], ["e"]),
        helper.make_node("Mul", ["e", "d"], ["f"]),  # in the memory of nobody: c has another shape than a
        helper.make_node("Identity", ["f"], ["out"]),
    ]
    plan = plan_run(serialized(nodes, {"x": [10, 10]}, {"out": [4, 25]}))
    assert plan.sizes == {"a": 400, "d": 400, "e": 400, "f": 400}
    assert [step.taken for step in plan.steps] == [("a",), (), (), ("d",), ("e",), ("f",)]
    assert [step.ended for step in plan.steps] == [(), (), (), (), ("a",), ("e", "d")]
    assert plan.lives() == (400, 400, 400, 800, 1200, 1200)
    assert (plan.inputs, plan.outputs) == ({"x": 400}, {"out": 400})


def test_a_freed_tensor_serves_the_next_of_its_shape() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["a"]),
        helper.make_node("Add", ["a", "x"], ["b"]),
        helper.make_node("Sub", ["b", "x"], ["c"]),  # in the memory of a
        helper.make_node("Identity", ["c"], ["out"]),
    ]
    plan = plan_run(serialized(nodes, {"x": [10, 10]}, {"out": [10, 10]}))
    assert set(plan.sizes) == {"a", "b", "c"}  # a result is never written over something else
    longer = [*nodes[:3], helper.make_node("Add", ["c", "x"], ["d"]), helper.make_node("Identity", ["d"], ["out"])]
    plan = plan_run(serialized(longer, {"x": [10, 10]}, {"out": [10, 10]}))
    assert set(plan.sizes) == {"a", "b", "d"}


def test_workspace_of_a_convolution_is_the_columns_of_an_image() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node("Identity", ["y"], ["out"])]
    plan = plan_run(serialized(nodes, {"x": [2, 3, 6, 6], "w": [32, 3, 3, 3]}, {"out": [2, 32, 4, 4]}))
    assert plan.steps[0].workspace_bytes == 4 * 27 * 16  # weights of a filter x positions
    few = plan_run(serialized(nodes, {"x": [2, 3, 40, 40], "w": [8, 3, 3, 3]}, {"out": [2, 8, 38, 38]}))
    assert few.steps[0].workspace_bytes == 64 * 1024  # gathered in parts


def test_frozen_convolutions_work_on_blocks_of_channels() -> None:
    sizes = {"x": [2, 3, 6, 6], "w": [24, 3, 3, 3], "v": [8, 24, 1, 1], "t": [8, 8, 1, 1], "b": [24], "c": [8]}
    nodes = [
        helper.make_node("Mul", ["w", "w"], ["k"]),  # depends on constants alone: not in a run
        helper.make_node("Conv", ["x", "k", "b"], ["h1"]),  # 3 channels are read as they lie
        helper.make_node("Relu", ["h1"], ["h2"]),  # part of the convolution
        helper.make_node("Conv", ["h2", "v", "c"], ["h3"]),
        helper.make_node("Conv", ["h3", "t", "c"], ["h4"]),  # its kernel is trained
        helper.make_node("Add", ["h3", "h4"], ["h5"]),
        helper.make_node("Identity", ["h5"], ["out"]),
    ]
    graph = serialized(nodes, sizes, {"out": [2, 8, 4, 4]})
    plan = plan_run(graph, frozen=("w", "v", "b", "c"))
    operators = [step.operator for step in plan.steps]
    assert operators == ["BlockedConv", "BlockedConv", "ReorderOutput", "Conv", "Add"]
    blocks = 4 * 2 * 4 * 4 * 16  # bytes of a block of 16 channels at 4x4 positions of 2 examples
    assert list(plan.sizes.values()) == [2 * blocks, blocks, blocks // 2, blocks // 2, blocks // 2]
    usual = [step.operator for step in plan_run(graph).steps]
    assert usual == ["Mul", "Conv", "Relu", "Conv", "Conv", "Add"]


def test_arena_grows_in_regions_and_counts_touched_pages() -> None:
    arena = Arena()
    first = arena.take(100_000)
    assert (first.size, arena.touched_bytes) == (100_096, 25 * 4096)
    arena.give(first)
    assert arena.take(90_000).offset == 0  # what was freed joined the rest of the region
    assert arena.touched_bytes == 25 * 4096
    large = arena.take(3 * MIB)
    assert (large.region, large.size) == (1, 4 * MIB)  # no half is left over: not split
    assert arena.touched_bytes == 25 * 4096 + 3 * MIB


def test_arena_takes_the_smallest_piece_that_fits() -> None:
    arena = Arena()
    pieces = [arena.take(size) for size in (1024, 256, 512, 256)]
    arena.give(pieces[0])
    arena.give(pieces[2])
    assert arena.take(300).offset == pieces[2].offset
    assert arena.take(300).offset == pieces[0].offset


def files(folder: Path, model: str, scheme: Scheme, batch: int) -> tuple[Artifact, tuple[str, str]]:
    recipe = RECIPES[model]
    artifact, params = build(model, recipe.input_shape, recipe.outputs, batch=batch, scheme=scheme, seed=3)
    paths = folder / "net.flm", folder / "net.model.cbor"
    paths[0].write_bytes(artifact.data)
    paths[1].write_bytes(wire.to_bytes(params))
    return artifact, (str(paths[0]), str(paths[1]))


def measured_mib(paths: tuple[str, str], backend: str) -> float:
    """VmHWM of a process that does nothing but train."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("LD_PRELOAD", None)
    probe = [sys.executable, str(ROOT / "tests/support/memory_probe.py"), *paths, backend]
    done = subprocess.run(probe, env=environment, capture_output=True, text=True, check=True, timeout=300)
    return int(done.stdout) / 1024


def check_prediction(folder: Path, model: str, scheme: Scheme, backend: str, *, batch: int = 32) -> None:
    artifact, paths = files(folder, model, scheme, batch)
    predicted = peak_memory(artifact, backend=backend).total_bytes / MIB
    assert predicted == pytest.approx(measured_mib(paths, backend), rel=TOLERANCE)


@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
@pytest.mark.parametrize("model", MODELS)
def test_predicted_peak_is_within_a_tenth_of_a_process(tmp_path: Path, model: str, backend: str) -> None:
    check_prediction(tmp_path, model, Scheme.INT8, backend, batch=8)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("model", MODELS)
def test_predicted_peak_of_full_batches(tmp_path: Path, model: str, scheme: Scheme, backend: str) -> None:
    check_prediction(tmp_path, model, scheme, backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
@pytest.mark.parametrize(
    ("model", "choice"),
    [("dscnn", "last:4"), ("lenet", "last:1"), ("cnn1d", "last:1"), ("mobilenetv2", "last:1"), ("dscnn", "biases")],
)
def test_predicted_peak_with_a_frozen_start(tmp_path: Path, model: str, choice: str, backend: str) -> None:
    made = imported(model, input_shape=None, class_count=None, seed=0)
    forward = with_trainable(made, choice)
    artifact = build_artifact("net", forward, batch=16, scheme=Scheme.INT8)
    paths = tmp_path / "net.flm", tmp_path / "net.model.cbor"
    paths[0].write_bytes(artifact.data)
    paths[1].write_bytes(wire.to_bytes(to_params(forward.tensors, made.arrays)))
    predicted = peak_memory(artifact, backend=backend).total_bytes / MIB
    assert predicted == pytest.approx(measured_mib((str(paths[0]), str(paths[1])), backend), rel=TOLERANCE)


def test_signed_artifact_counts_what_checks_it(tmp_path: Path) -> None:
    unsigned, paths = files(tmp_path, "mlp", Scheme.INT8, 8)
    artifact = unsigned.signed(SoftwareSigner(Ed25519PrivateKey.generate()))
    Path(paths[0]).write_bytes(artifact.data)
    predicted = peak_memory(artifact, backend="numpy").total_bytes
    assert predicted > peak_memory(unsigned, backend="numpy").total_bytes + 5 * MIB
    assert predicted / MIB == pytest.approx(measured_mib(paths, "numpy"), rel=TOLERANCE)


def test_backend_whose_memory_is_not_modelled_is_refused(tmp_path: Path) -> None:
    artifact, _ = files(tmp_path, "mlp", Scheme.INT8, 8)
    with pytest.raises(TrainingError, match="memory is modelled for onnxruntime, numpy"):
        peak_memory(artifact, backend="torch")
