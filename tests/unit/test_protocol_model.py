"""The model root and the bounds between tensors."""

from dataclasses import replace

import pytest

from edge_sdk.errors import DecodeError
from edge_sdk.protocol import merkle
from edge_sdk.protocol.codec import encode
from edge_sdk.protocol.limits import MODEL_VALUE_MAX
from edge_sdk.protocol.messages import ModelParams, ModelTensor, Reason
from edge_sdk.protocol.model import check_params, model_root
from tools.vector_examples import params

MODEL = params()
WEIGHT = MODEL.tensors[0]


def with_weight(weight: ModelTensor) -> ModelParams:
    return replace(MODEL, tensors=(weight, *MODEL.tensors[1:]))


def test_root_is_a_tree_over_the_encoded_tensors() -> None:
    leaf = encode({1: "b", 2: [1], 3: -3, 4: -1, 5: b"\1\0\0\0", 6: b"", 7: b""})
    bias = ModelTensor(name="b", shape=(1,), exponent=-3, channel_axis=-1, values=b"\1\0\0\0", scale_m=b"", scale_k=b"")
    assert model_root(ModelParams(tensors=(bias,))) == merkle.root([leaf])
    assert model_root(ModelParams(tensors=(bias, bias))) == merkle.root([leaf, leaf])


@pytest.mark.parametrize(
    "weight",
    [
        replace(WEIGHT, name="other"),
        replace(WEIGHT, shape=(2, 3, 1)),
        replace(WEIGHT, exponent=-15),
        replace(WEIGHT, values=WEIGHT.values[:-1] + b"\x3f"),
        replace(WEIGHT, scale_m=b"\x81\xfe"),
        replace(WEIGHT, scale_k=b"\x0e\x08"),
    ],
)
def test_root_covers_every_part(weight: ModelTensor) -> None:
    assert model_root(with_weight(weight)) != model_root(MODEL)


def test_root_covers_the_order() -> None:
    assert model_root(replace(MODEL, tensors=MODEL.tensors[::-1])) != model_root(MODEL)


@pytest.mark.parametrize("value", [MODEL_VALUE_MAX, -MODEL_VALUE_MAX])
def test_largest_values_pass(value: int) -> None:
    check_params(with_weight(replace(WEIGHT, values=value.to_bytes(4, "little", signed=True) * 6)))


@pytest.mark.parametrize("value", [MODEL_VALUE_MAX + 1, -MODEL_VALUE_MAX - 1, -(1 << 31)])
def test_values_beyond_are_refused(value: int) -> None:
    values = bytes(20) + value.to_bytes(4, "little", signed=True)
    with pytest.raises(DecodeError) as caught:
        check_params(with_weight(replace(WEIGHT, values=values)))
    assert caught.value.reason is Reason.OUT_OF_BOUNDS


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(DecodeError) as caught:
        check_params(ModelParams(tensors=(WEIGHT, WEIGHT)))
    assert caught.value.reason is Reason.SHAPE


def test_contradicting_parts_are_refused() -> None:
    with pytest.raises(DecodeError) as caught:
        check_params(with_weight(replace(WEIGHT, values=b"")))
    assert caught.value.reason is Reason.SHAPE


def test_too_many_parameters_are_refused() -> None:
    half = 2 * 1024 * 1024
    tensors = tuple(
        ModelTensor(
            name=f"w{i}", shape=(half,), exponent=0, channel_axis=-1, values=bytes(4 * half), scale_m=b"", scale_k=b""
        )
        for i in range(3)
    )
    with pytest.raises(DecodeError, match="parameters"):
        check_params(ModelParams(tensors=tensors))
