"""Importing forward ONNX models: forms of other exporters, and everything that is refused."""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from coordinator import onnx_files
from coordinator.authoring.builder import build_artifact
from coordinator.authoring.import_onnx import Imported
from coordinator.authoring.onnx_refusals import ALTERNATIVES
from coordinator.authoring.trainable import with_trainable
from coordinator.onnx_files import import_file
from edge_sdk.errors import TrainingError
from edge_sdk.training.network import Op, Scheme
from edge_sdk.training.numpy_backend import NumpyBackend
from edge_sdk.training.onnx_backend import OnnxBackend
from edge_sdk.training.quantize import dequantize, to_params

RNG = np.random.default_rng(11)
FLOAT = TensorProto.FLOAT


def floats(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Any],
    *,
    shape: Sequence[Any] = ("n", 2, 6, 6),
    outputs: Sequence[Any] = ("out",),
    opset: int = 17,
    kind: int = FLOAT,
) -> Path:
    """A model file with the input ``in``."""
    tensors = [w if isinstance(w, TensorProto) else numpy_helper.from_array(w, name) for name, w in weights.items()]
    graph = helper.make_graph(
        list(nodes),
        "forward",
        [helper.make_tensor_value_info("in", kind, list(shape))],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        tensors,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    return path


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=f"the_{output}", **attributes)


def gemm_on(value: str, width: int) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """A classifier behind ``value``."""
    nodes = [node("Flatten", value, "flat"), node("Gemm", "flat head.weight head.bias", "out", transB=1)]
    return nodes, {"head.weight": floats(3, width), "head.bias": floats(3)}


def check_same(
    path: Path, imported: Imported, *, shape: tuple[int, ...], tail: Callable[[Any], Any] = lambda z: z
) -> None:
    """Both backends compute what the runtime computes of the file."""
    artifact = build_artifact("imported", with_trainable(imported, "all"), batch=2, scheme=Scheme.FP32)
    x = RNG.normal(size=(2, *shape)).astype(np.float32)
    expected = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"]).run(None, {"in": x})
    params = dequantize(to_params(artifact.network.tensors, imported.arrays))
    for backend in (OnnxBackend(artifact), NumpyBackend(artifact)):
        np.testing.assert_allclose(tail(backend.logits(x, params)), expected[-1], rtol=1e-4, atol=1e-5)


def test_channels_last_forms_of_tf2onnx(tmp_path: Path) -> None:
    """Transpose in front, uneven automatic padding, a bias as Add, Squeeze of the pooled axes."""
    nodes = [
        node("Transpose", "in", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t conv/kernel", "c", auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[3, 3]),
        node("Add", "c bias", "cb"),
        node("Clip", "cb low high", "r"),
        node("Pad", "r pads", "p"),
        node("Conv", "p depthwise", "d", group=4, strides=[2, 2]),
        node("GlobalAveragePool", "d", "g"),
        node("Squeeze", "g axes", "s"),
        node("MatMul", "s dense/kernel", "m"),
        node("Add", "m dense/bias", "out"),
    ]
    weights = {
        "conv/kernel": floats(4, 2, 3, 3),
        "bias": floats(1, 4, 1, 1),
        "low": np.float32(0),
        "high": np.float32(6),
        "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
        "depthwise": floats(4, 1, 3, 3),
        "axes": np.array([2, 3]),
        "dense/kernel": floats(4, 3),
        "dense/bias": floats(3),
    }
    path = write(tmp_path / "tf.onnx", nodes, weights, shape=("n", 7, 8, 2))
    imported = import_file(path, loss="mse")
    check_same(path, imported, shape=(7, 8, 2))
    assert [spec.name for spec in imported.network.tensors] == [
        "conv_weight",
        "conv_bias",
        "depthwise_weight",
        "depthwise_bias",
        "dense_weight",
        "dense_bias",
    ]
    assert imported.fixed == {"depthwise_bias"}  # the exporter had none


def test_frozen_normalization_and_arithmetic(tmp_path: Path) -> None:
    nodes = [
        node("Sub", "in mean", "a"),
        node("Div", "a deviation", "b"),
        node("BatchNormalization", "b gamma beta mu var", "n", epsilon=0.01),
        node("Relu", "n", "r"),
        node("Sub", "one r", "q"),
        node("Neg", "q", "v"),
    ]
    head, weights = gemm_on("v", 72)
    weights |= {
        "mean": floats(2, 1, 1),
        "deviation": np.array([2.0], np.float32),
        "gamma": floats(2),
        "beta": floats(2),
        "mu": floats(2),
        "var": np.abs(floats(2)),
        "one": np.float32(1),
    }
    path = write(tmp_path / "m.onnx", [*nodes, *head], weights)
    imported = import_file(path, loss="mse")
    check_same(path, imported, shape=(2, 6, 6))
    network = with_trainable(imported, "all")
    assert {s.name for s in network.tensors if s.is_trainable} == {"head_weight", "head_bias"}
    named = with_trainable(imported, "affine0_scale,head")
    assert {s.name for s in named.tensors if s.is_trainable} == {"affine0_scale", "head_weight", "head_bias"}


def test_layer_that_others_read_keeps_its_output(tmp_path: Path) -> None:
    """The scale behind a layer must not go into it when the sum reads the layer, not even through an Identity."""
    nodes = [
        node("Conv", "in w b", "c"),
        node("Identity", "c", "i"),
        node("Mul", "i two", "m"),
        node("Add", "m c", "s"),
    ]
    head, weights = gemm_on("s", 4 * 36)
    path = write(
        tmp_path / "m.onnx",
        [*nodes, *head],
        weights | {"w": floats(4, 2, 1, 1), "b": floats(4), "two": floats(4, 1, 1)},
    )
    check_same(path, import_file(path, loss="mse"), shape=(2, 6, 6))


def test_shape_arithmetic_is_folded(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "in", "shape"),
        node("Gather", "shape zero", "n"),
        node("Unsqueeze", "n axis", "row"),
        node("Concat", "row rest", "target", axis=0),
        node("Reshape", "in target", "flat0"),
        node("Constant", "", "scale", value=numpy_helper.from_array(np.array(0.5, np.float32))),
        node("Mul", "flat0 scale", "scaled"),
    ]
    head, weights = gemm_on("scaled", 72)
    weights |= {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}
    path = write(tmp_path / "m.onnx", [*nodes, *head], weights)
    check_same(path, import_file(path, loss="mse"), shape=(2, 6, 6))


@pytest.mark.parametrize(("loss", "tail"), [("ce", "Softmax"), ("ce", "LogSoftmax"), ("bce", "Sigmoid")])
def test_end_that_belongs_to_the_loss_is_left_out(loss: str, tail: str, tmp_path: Path) -> None:
    head, weights = gemm_on("in", 72)
    path = write(tmp_path / "m.onnx", [*head, node(tail, "out", "p")], weights, outputs=("p",))
    imported = import_file(path, loss=loss, smoothing=0.1 if loss == "ce" else 0.0)
    assert [n.op for n in imported.network.nodes][:2] == [Op.FLATTEN, Op.GEMM]
    assert tail in imported.notes[0]
    assert imported.network.nodes[-1].constants == ((0.1,) if loss == "ce" else ())


def test_linear_classifier_of_two_classes(tmp_path: Path) -> None:
    """As skl2onnx writes it: rows -w and w, logistic; here the softmax of halves gives the same probabilities."""
    w = floats(5)
    classifier = helper.make_node(
        "LinearClassifier",
        ["in"],
        ["label", "p"],
        domain="ai.onnx.ml",
        classlabels_ints=[0, 1],
        coefficients=[*-w, *w],
        intercepts=[-0.3, 0.3],
        post_transform="LOGISTIC",
        multi_class=1,
    )
    normalizer = helper.make_node("Normalizer", ["p"], ["out"], domain="ai.onnx.ml", norm="L1")
    path = write(tmp_path / "m.onnx", [classifier, normalizer], {}, shape=("n", 5))
    imported = import_file(path, loss="ce")
    check_same(path, imported, shape=(5,), tail=lambda z: np.exp(z) / np.exp(z).sum(axis=1, keepdims=True))


# --- choices of what is trained ---


@pytest.fixture
def three_layers(tmp_path: Path) -> Imported:
    nodes = [
        node("Conv", "in stem.weight stem.bias", "a"),
        node("Conv", "a body.weight", "b", pads=[1, 1, 1, 1]),
        node("Relu", "b", "r"),
    ]
    head, weights = gemm_on("r", 4 * 36)
    weights |= {"stem.weight": floats(4, 2, 1, 1), "stem.bias": floats(4), "body.weight": floats(4, 4, 3, 3)}
    return import_file(write(tmp_path / "m.onnx", [*nodes, *head], weights), loss="ce")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("all", {"stem_weight", "stem_bias", "body_weight", "head_weight", "head_bias"}),
        ("last:1", {"head_weight", "head_bias"}),
        ("last:2", {"body_weight", "head_weight", "head_bias"}),
        ("biases", {"stem_bias", "head_bias"}),
        ("body_bias,head", {"body_bias", "head_weight", "head_bias"}),
    ],
)
def test_choice_of_trained_tensors(three_layers: Imported, choice: str, expected: set[str]) -> None:
    network = with_trainable(three_layers, choice)
    assert {spec.name for spec in network.tensors if spec.is_trainable} == expected
    artifact = build_artifact("chosen", network, batch=4, scheme=Scheme.INT8)
    assert {name.removesuffix(".next") for name in artifact.train_outputs[:-1]} == expected
    # A gradient through the first convolution would need the transposed one of the second.
    assert (b"ConvTranspose" in artifact.train_onnx) == ("stem_bias" in expected)


@pytest.mark.parametrize("choice", ["last:0", "last:4", "", "heed", "stem_weight,,head", "last:-1"])
def test_wrong_choice_is_named(three_layers: Imported, choice: str) -> None:
    with pytest.raises(TrainingError, match="trainable"):
        with_trainable(three_layers, choice)


# --- what is refused ---


def simple(*nodes: onnx.NodeProto, **weights: Any) -> Callable[[Path], Path]:
    return lambda path: write(path, nodes, weights)


def raw(data: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return make


def external(location: str, **entries: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[3, 72], data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": location} | entries).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


FLAT = node("Flatten", "in", "f")
HEAD = node("Gemm", "f w", "out", transB=1)
HUGE = TensorProto(name="w", data_type=FLOAT, dims=[1 << 20, 1 << 10], raw_data=b"1234")
SHORT = TensorProto(name="w", data_type=FLOAT, dims=[3, 72], raw_data=b"1234")
NEGATIVE = TensorProto(name="w", data_type=FLOAT, dims=[-3, 72])
TEXT = TensorProto(name="w", data_type=TensorProto.STRING, dims=[1])
NOT_A_NUMBER = np.where(np.arange(216).reshape(3, 72) == 100, np.float32("nan"), floats(3, 72))
NORMALIZED = {name: np.ones(2, np.float32) for name in ("g", "b", "m", "v")}

REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "not ONNX": (raw(b"\xff\xfe"), "not an ONNX model"),
    "missing file": (lambda path: path, "No such file"),
    "empty file": (raw(b""), "not an ONNX model"),
    "dynamic axis": (
        lambda path: write(path, [FLAT, HEAD], {"w": floats(3, 72)}, shape=("n", 2, "height", 6)),
        "axis 2 is dynamic \\('height'\\): export the model with a fixed size",
    ),
    "no shape": (lambda path: write(path, [FLAT, HEAD], {"w": floats(3, 72)}, shape=("n",)), "axes"),
    "integer input": (
        lambda path: write(path, [FLAT, HEAD], {"w": floats(3, 72)}, kind=TensorProto.INT64),
        "expected float32 features",
    ),
    "huge input": (
        lambda path: write(path, [FLAT, HEAD], {"w": floats(3, 72)}, shape=("n", 1 << 40)),
        "an example has more than",
    ),
    "huge value": (
        simple(
            node("Conv", "in w", "c", dilations=[1 << 40] * 2, pads=[1 << 40] * 4),
            node("Neg", "c", "out"),
            w=floats(2, 2, 2, 2),
        ),
        "the_c.*has more than",
    ),
    "missing input": (simple(node("Conv", "in", "out")), "the_out.*not a valid node"),
    "attribute of another type": (simple(node("LeakyRelu", "in", "out", alpha="x")), "the_out.*not a valid node"),
    "old opset": (lambda path: write(path, [FLAT, HEAD], {"w": floats(3, 72)}, opset=7), "opset 7"),
    "two outputs": (
        lambda path: write(path, [FLAT, HEAD], {"w": floats(3, 72)}, outputs=("f", "out")),
        "exactly one of floats",
    ),
    "foreign domain": (
        simple(helper.make_node("FusedConv", ["in"], ["out"], name="fused", domain="com.microsoft")),
        "'fused'.*com.microsoft",
    ),
    "control flow": (
        simple(node("If", "in", "out")),
        "node the_out \\(If\\): operator If is not supported: control flow.*tracing".replace("the_out", "'?the_out'?"),
    ),
    "recurrent layer": (simple(node("LSTM", "in", "out")), "LSTM.*Conv over time"),
    "unknown operator": (simple(node("Det", "in", "out")), "Det is not supported"),
    "softmax inside": (simple(node("Softmax", "in", "s"), node("Relu", "s", "out")), "only at the end"),
    "training mode": (
        simple(node("BatchNormalization", "in g b m v", "out", training_mode=1), **NORMALIZED),
        "the_out.*training mode.*eval",
    ),
    "negative variance": (
        simple(node("BatchNormalization", "in g b m v", "out"), **NORMALIZED | {"v": np.array([1, -1], np.float32)}),
        "negative: channel 1",
    ),
    "not a number": (simple(FLAT, HEAD, w=NOT_A_NUMBER), "tensor 'w': element 100 is nan"),
    "infinite": (simple(FLAT, HEAD, w=floats(3, 72) * np.float32("inf")), "tensor 'w': element 0 is"),
    "gigabyte tensor": (simple(FLAT, HEAD, w=HUGE), "tensor 'w'.*more than"),
    "short data": (simple(FLAT, HEAD, w=SHORT), "length 4 does not fit"),
    "negative size": (simple(FLAT, HEAD, w=NEGATIVE), "tensor 'w'"),
    "text": (simple(FLAT, HEAD, w=TEXT), "STRING"),
    "external in the parent": (simple(FLAT, HEAD, w=external("../w.bin")), "not a file in the folder"),
    "external absolute": (simple(FLAT, HEAD, w=external("/etc/hostname")), "not a file in the folder"),
    "external through a link": (simple(FLAT, HEAD, w=external("link.bin")), "not a file in the folder"),
    "external with a null byte": (simple(FLAT, HEAD, w=external("w\0.bin")), "null byte"),
    "external without a place": (simple(FLAT, HEAD, w=external("")), "not a file in the folder"),
    "external too short": (simple(FLAT, HEAD, w=external("short.bin")), "do not fit"),
    "external offset": (simple(FLAT, HEAD, w=external("whole.bin", offset="-4")), "do not fit"),
    "external length": (simple(FLAT, HEAD, w=external("whole.bin", length="99999999999")), "do not fit"),
    "external number": (simple(FLAT, HEAD, w=external("whole.bin", offset="x")), "external data"),
    "constant bomb": (
        simple(
            node("ConstantOfShape", "sizes", "zeros"),
            node("Flatten", "in", "f"),
            node("Gemm", "f zeros", "out"),
            sizes=np.array([72, 1 << 40]),
        ),
        "elements, at most",
    ),
    "shared weight": (
        simple(node("Conv", "in w", "a"), node("Conv", "a w", "c"), node("Flatten", "c", "out"), w=floats(2, 2, 1, 1)),
        "shared",
    ),
    "three spatial axes": (
        lambda path: write(path, [node("Conv", "in w", "out")], {"w": floats(2, 2, 1, 1, 1)}, shape=("n", 2, 3, 3, 3)),
        "1 or 2 spatial axes",
    ),
    "weight of another width": (simple(FLAT, HEAD, w=floats(3, 71)), "the_out.*does not fit"),
    "overlapping windows": (
        simple(node("MaxPool", "in", "out", kernel_shape=[3, 3], strides=[2, 2])),
        "overlap.*AveragePool",
    ),
    "cut window": (
        simple(node("AveragePool", "in", "out", kernel_shape=[4, 4], strides=[4, 4], ceil_mode=1)),
        "ceil_mode",
    ),
    "batch in the shape": (simple(node("Reshape", "in s", "out"), s=np.array([-1, 36])), "mixes or splits examples"),
    "batch fixed in the shape": (simple(node("Reshape", "in s", "out"), s=np.array([7, 72])), "stay the batch"),
    "batch transposed": (simple(node("Transpose", "in", "out", perm=[1, 0, 2, 3])), "batch axis has to stay first"),
    "constant over positions": (simple(node("Add", "in c", "out"), c=floats(6, 6)), "not one number per channel"),
    "division by a value": (simple(node("Div", "c in", "out"), c=np.float32(1)), "division by values"),
    "difference of values": (simple(node("Relu", "in", "r"), node("Sub", "in r", "out")), "Sub of two values"),
    "padding without convolution": (
        simple(node("Pad", "in p", "q"), node("Relu", "q", "out"), p=np.array([0, 0, 1, 1, 0, 0, 1, 1])),
        "only before Conv",
    ),
    "padding by reflection": (
        simple(node("Pad", "in p", "out", mode="reflect"), p=np.array([0, 0, 1, 1, 0, 0, 1, 1])),
        "not one of zeros",
    ),
    "output of images": (simple(node("Conv", "in w", "out"), w=floats(3, 2, 1, 1)), "expected one row of classes"),
    "no layer": (simple(node("Flatten", "in", "out")), "tensor"),
    "too large values": (simple(FLAT, HEAD, w=floats(3, 72) * np.float32(1e9)), "head|gemm|f.*at most 4096|at most"),
    "unsorted nodes": (simple(HEAD, FLAT, w=floats(3, 72)), "no node before"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_model_is_refused_with_node_and_reason(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(4 * 216))
    (folder / "whole.bin").write_bytes(bytes(4 * 216))
    (folder / "short.bin").write_bytes(bytes(4 * 215))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    path = make(folder / "model.onnx")
    with pytest.raises(TrainingError, match=message) as caught:
        build_artifact("x", with_trainable(import_file(path, loss="ce"), "all"), batch=2, scheme=Scheme.FP32)
    assert str(caught.value).startswith(f"{path}: ") or "tensor" in message


@settings(max_examples=100)
@given(data=st.data())
def test_damaged_file_is_refused_or_read_but_never_crashes(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = REFUSED["huge value"][0](Path(folder) / "m.onnx")
        damaged = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(damaged)
        with contextlib.suppress(TrainingError):
            import_file(path, loss="ce")


def test_external_data_in_the_folder_is_read(tmp_path: Path) -> None:
    weight = floats(3, 72)
    (tmp_path / "w.bin").write_bytes(b"1234" + weight.tobytes())
    path = write(tmp_path / "m.onnx", [FLAT, HEAD], {"w": external("w.bin", offset="4")})
    np.testing.assert_array_equal(next(iter(import_file(path, loss="ce").arrays.values())), weight.T)


def test_large_file_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "FILE_BYTES_MAX", 100)
    (tmp_path / "m.onnx").write_bytes(bytes(101))
    with pytest.raises(TrainingError, match="more than 100 bytes"):
        import_file(tmp_path / "m.onnx", loss="ce")


def test_large_weights_get_a_coarser_grid(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [FLAT, HEAD], {"w": np.full((3, 72), 1000, np.float32)})
    spec = import_file(path, loss="ce").network.tensors[0]
    assert spec.exponent == -18  # 4 * 1000 <= 2**30 * 2**-18


def test_every_alternative_names_no_supported_operator() -> None:
    from coordinator.authoring.import_onnx import _HANDLERS

    assert not set(ALTERNATIVES) & set(_HANDLERS)


@pytest.mark.parametrize(("loss", "smoothing"), [("mae", 0.0), ("mse", 0.1), ("ce", 1.0), ("ce", -0.1)])
def test_wrong_loss_is_refused(loss: str, smoothing: float, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [FLAT, HEAD], {"w": floats(3, 72)})
    with pytest.raises(TrainingError, match=r"loss|smoothing|share"):
        import_file(path, loss=loss, smoothing=smoothing)
