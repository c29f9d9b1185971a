"""What an artifact must survive: a round trip, and every way in which a file can be wrong."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from coordinator.authoring.zoo import build
from edge_sdk.errors import DecodeError
from edge_sdk.protocol import codec
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.network import Scheme

ARTIFACT, _ = build("lenet", (1, 8, 8), 10, batch=8, seed=0)
FIELDS: Any = codec.decode(ARTIFACT.data, bytes_max=ARTIFACT_BYTES_MAX)


def test_load_gives_back_what_was_packed() -> None:
    loaded = Artifact.load(ARTIFACT.data, digest=ARTIFACT.digest)
    assert loaded == ARTIFACT
    assert loaded.digest == hashlib.sha256(ARTIFACT.data).digest()
    assert loaded.scheme is Scheme.INT8
    assert loaded.state_kind == "q8.8"
    assert loaded.train_inputs[:6] == ("x", "y", "sample_weight", "lr", "conv0_weight.state", "conv0_weight.scale")
    assert loaded.train_outputs[-1] == "loss"


def test_same_recipe_gives_the_same_bytes() -> None:
    again, _ = build("lenet", (1, 8, 8), 10, batch=8, seed=1)
    assert again.data == ARTIFACT.data


def test_wrong_digest_is_refused() -> None:
    with pytest.raises(DecodeError, match="digest"):
        Artifact.load(ARTIFACT.data, digest=Digest(bytes(32)))


@pytest.mark.parametrize("cut", [0, 1, 100, len(ARTIFACT.data) - 1])
def test_truncated_file_is_refused(cut: int) -> None:
    with pytest.raises(DecodeError):
        Artifact.load(ARTIFACT.data[:cut])


def test_huge_file_is_refused_before_it_is_hashed() -> None:
    with pytest.raises(DecodeError, match="at most"):
        Artifact.load(bytes(ARTIFACT_BYTES_MAX + 1))


def swap(*path: int, to: object) -> Callable[[Any], None]:
    """Replace the field at a path of keys and indices."""

    def change(fields: Any) -> None:
        place = fields
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return change


# Manifest fields: 1 format, 2 name, 3 input shape, 4 classes, 5 batch, 6 scheme, 7 opset, 8 IR, 9 tensors, 10 nodes.
REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "graph of another hash": (swap(2, to=ARTIFACT.train_onnx + b"\0"), "hash of the training-step graph"),
    "evaluation graph of another hash": (swap(3, to=b""), "hash of the evaluation graph"),
    "graph is text": (swap(2, to="graph"), "expected bytes"),
    "missing part": (lambda fields: fields.pop(3), "keys 1..3"),
    "manifest is a list": (swap(1, to=[]), "keys 1..12"),
    "format": (swap(1, 1, to=2), "format"),
    "name": (swap(1, 2, to=""), "name"),
    "long name": (swap(1, 2, to="x" * 49), "name"),
    "input shape": (swap(1, 3, to=[1, 8]), "CONV"),
    "huge input": (swap(1, 3, to=[1, 65_536, 65_536]), "elements"),
    "zero axis": (swap(1, 3, to=[1, 0, 8]), "shape"),
    "class count": (swap(1, 4, to=11), "one column per class"),
    "one class": (swap(1, 4, to=1), "class count"),
    "batch": (swap(1, 5, to=0), "batch"),
    "huge batch": (swap(1, 5, to=1 << 40), "batch"),
    "scheme": (swap(1, 6, to=9), "Scheme"),
    "boolean": (swap(1, 4, to=True), "expected an integer"),
    "opset": (swap(1, 7, to=19), "opset"),
    "IR": (swap(1, 8, to=10), "IR"),
    "no tensors": (swap(1, 9, to=[]), "tensors"),
    "row of a tensor": (swap(1, 9, 0, to=["w"]), "5 fields"),
    "tensor name": (swap(1, 9, 0, 0, to="../w"), "tensor name"),
    "tensor defined twice": (swap(1, 9, 0, 0, to="conv0_bias"), "twice"),
    "gigabyte tensor": (swap(1, 9, 0, 1, to=[65_536, 65_536]), "parameters"),
    "weight shape": (swap(1, 9, 0, 1, to=[6, 2, 3, 3]), "does not fit"),
    "role": (swap(1, 9, 0, 2, to=2), "channel axis"),
    "exponent": (swap(1, 9, 0, 4, to=0), "exponent"),
    "no nodes": (swap(1, 10, to=[]), "nodes"),
    "operator": (swap(1, 10, 0, 0, to=99), "Op"),
    "unknown value": (swap(1, 10, 1, 1, to=["h9"]), "first input"),
    "unknown tensor": (swap(1, 10, 0, 1, to=["x", "conv0_weight", "conv9_bias"]), "unknown"),
    "kernel": (swap(1, 10, 0, 3, to=[5, 5]), "does not fit"),
    "stride": (swap(1, 10, 0, 4, to=[0, 1]), "do not fit"),
    "padding": (swap(1, 10, 0, 5, to=[9, 9]), "do not fit"),
    "value named twice": (swap(1, 10, 1, 2, to="h0"), "not a new name"),
    "loss in the middle": (swap(1, 10, 1, 0, to=6), "last node"),
    "mark of a frozen tensor": (lambda fields: fields[1][9][0].append(1), "mark"),
    "extras of a node": (lambda fields: fields[1][10][1].append({9: 1}), "keys out of 1..6"),
    "empty extras": (lambda fields: fields[1][10][1].append({}), "keys out of 1..6"),
    "groups": (lambda fields: fields[1][10][0].append({2: 4}), "groups"),
    "no groups": (lambda fields: fields[1][10][0].append({2: 0}), "groups"),
    "groups of no convolution": (lambda fields: fields[1][10][1].append({2: 2}), "groups"),
    "huge dilation": (lambda fields: fields[1][10][0].append({1: [1 << 40, 1]}), "do not fit"),
    "no dilation": (lambda fields: fields[1][10][0].append({1: [0, 1]}), "do not fit"),
    "constants of odd length": (lambda fields: fields[1][10][1].append({5: b"\0\0\0"}), "constants"),
    "constants without use": (lambda fields: fields[1][10][1].append({5: bytes(4)}), "constants"),
    "smoothing": (lambda fields: fields[1][10][-1].append({5: b"\0\0\x80\x3f"}), "share"),
    "smoothing is not a number": (lambda fields: fields[1][10][-1].append({5: b"\0\0\xc0\x7f"}), "finite"),
    "no loss": (lambda fields: fields[1][10].pop(), "last node"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_file_is_refused_with_its_reason(change: Callable[[Any], None], message: str) -> None:
    fields: Any = codec.decode(ARTIFACT.data, bytes_max=ARTIFACT_BYTES_MAX)
    change(fields)
    with pytest.raises(DecodeError, match=message):
        Artifact.load(codec.encode(fields))


def test_no_parameters_are_inside() -> None:
    assert len(ARTIFACT.data) < 12_000
    assert len(build("lenet", (1, 28, 28), 10, batch=32, seed=0)[0].data) <= 20_000
    assert FIELDS[1][5] == ARTIFACT.batch
