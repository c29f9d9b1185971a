"""Every backend on the same batches: one step from the same state, against the numpy backend."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edge_sdk.training.network import Scheme
from edge_sdk.training.numpy_backend import exact_product, quantize_dynamic
from tests.support.backend_replay import evaluate, pack, replay, unpack
from tests.support.parity_cases import (
    CASES,
    TOLERANCES,
    USUAL,
    USUAL_SHARE,
    Case,
    Tolerance,
    assert_near,
    is_near,
    recorded,
)

HERE = ["onnxruntime", pytest.param("torch", marks=pytest.mark.torch)]
EXACT = Tolerance(0.0, 0.0, 0, 0.0)
README = Path(__file__).resolve().parents[2] / "edge_sdk" / "training" / "README.md"


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_is_the_same(backend: str, case: Case) -> None:
    known = recorded(case)
    assert_near(replay(known.artifact, known.inputs, backend), known, TOLERANCES[backend])


@pytest.mark.parametrize("backend", HERE)
def test_most_int8_steps_are_the_same_to_the_last_bits(backend: str) -> None:
    near = []
    for known in (recorded(case) for case in CASES if case.scheme is not Scheme.FP32):
        found = replay(known.artifact, known.inputs, backend)
        steps = zip(found, known.answers, known.inputs, strict=True)
        near += [not is_near(answer, expected, given, USUAL) for answer, expected, given in steps]
    assert np.mean(near) >= USUAL_SHARE


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("case", [case for case in CASES if case.scheme is Scheme.FP32], ids=str)
def test_an_evaluation_is_the_same(backend: str, case: Case) -> None:
    known = recorded(case)
    expected = evaluate(known.artifact, known.inputs, known.params, "numpy")
    found = evaluate(known.artifact, known.inputs, known.params, backend)
    bound = TOLERANCES[backend].floats * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("inner", [1, 255, 784, 3000])
def test_int8_products_are_bit_equal(inner: int) -> None:
    """Quantizing an activation and multiplying it: the runtime's integers, and ours held in float32."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["xq", "w", "zero"], ["product"]),
    ]
    kinds = {"x": TensorProto.FLOAT, "w": TensorProto.INT8, "product": TensorProto.INT32, "scale": TensorProto.FLOAT}
    ports = {name: helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()}
    graph = helper.make_graph(nodes, "product", [ports["x"], ports["w"]], [ports["product"], ports["scale"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(inner)
    for low, high in ((-1.0, 1.0), (0.0, 9.0), (-3e-4, 1e-5), (0.0, 0.0)):
        x = rng.uniform(low, high, (5, inner)).astype(np.float32)
        w = rng.integers(-128, 128, (inner, 7)).astype(np.int8)
        w[:, 0] = 127  # the largest sums
        product, scale = session.run(("product", "scale"), {"x": x, "w": w})
        ours = quantize_dynamic(x)
        assert scale == ours.scale
        np.testing.assert_array_equal(exact_product(ours.centred, w.astype(np.float32)), product.astype(np.float32))


def test_recorded_steps_survive_a_file(tmp_path: Path) -> None:
    known = recorded(Case("image", Scheme.INT8_SR))
    np.savez(tmp_path / "steps.npz", **pack(known.inputs, known.params))
    with np.load(tmp_path / "steps.npz") as file:
        inputs, params = unpack(dict(file))
    assert params.keys() == known.params.keys()
    assert_near(replay(known.artifact, inputs, "numpy"), known, EXACT)


def test_the_readme_says_the_same_tolerances() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|", README.read_text(), re.MULTILINE)
    found = {name: tuple(cells) for name, *cells in rows}
    for name, tolerance in TOLERANCES.items():
        cells = (f"{tolerance.floats:.0e}", f"{tolerance.biases:.0%}", f"{tolerance.units}", f"{tolerance.share:.0%}")
        assert found[name] == (cells if tolerance.units else (cells[0], "-", "-", "-"))
