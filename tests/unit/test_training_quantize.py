"""Scales worked out by hand, the two views of a model, and models that must be refused."""

from dataclasses import replace

import numpy as np
import pytest

from coordinator.authoring.zoo import build
from edge_sdk.errors import QuantizationError
from edge_sdk.protocol.limits import MODEL_VALUE_MAX
from edge_sdk.protocol.messages import ModelParams
from edge_sdk.training.quantize import channel_scales, check_params, dequantize, integers, round_to_int8, scale_values

ARTIFACT, PARAMS = build("mlp", (8,), 3, batch=4, seed=0)
SPECS = ARTIFACT.network.tensors

# magnitude, exponent -> m, k with m * 2**-k the smallest >= magnitude * 2**exponent * 5 / (4 * 127)
VECTORS = [
    (1 << 24, -24, 162, 14),  # 1.0: 0.0098425 * 2**14 = 161.26
    (1 << 23, -24, 162, 15),  # 0.5
    (101_600 << 10, -26, 250, 14),  # 1.55029 * 5 / 508 = 250 * 2**-14 exactly: nothing is rounded up
    ((101_600 << 10) + 1, -26, 251, 14),  # one unit more
    (MODEL_VALUE_MAX, -16, 162, 0),  # the largest value of all: k is never negative
    (0, -24, 162, 20),  # a tensor of zeros gets the range 2**-6
]


@pytest.mark.parametrize(("magnitude", "exponent", "m", "k"), VECTORS)
def test_scale_vectors(magnitude: int, exponent: int, m: int, k: int) -> None:
    values = np.array([[magnitude, -(magnitude // 2)]], np.int32)
    found_m, found_k = channel_scales(values, exponent, 0)
    assert (int(found_m[0]), int(found_k[0])) == (m, k)


def test_channel_of_zeros_gets_a_sixteenth_of_the_range() -> None:
    values = np.array([[0, 1 << 24], [0, -5]], np.int32)
    m, k = channel_scales(values, -24, 1)
    scales = scale_values(m.tobytes(), k.tobytes())
    assert scales[0] == scales[1] / 16


def test_scale_beyond_the_grid_is_refused() -> None:
    with pytest.raises(QuantizationError, match="outside of the grid"):
        channel_scales(np.array([[MODEL_VALUE_MAX]], np.int32), -10, 0)


def test_dequantize_is_q_times_two_to_the_exponent() -> None:
    tensor = PARAMS.tensors[0]
    expected = integers(tensor).astype(np.float64) * 2.0**tensor.exponent
    np.testing.assert_allclose(dequantize(PARAMS)[tensor.name], expected, rtol=1e-7)


def test_int8_rounding_stays_within_half_a_step() -> None:
    exact, rounded = dequantize(PARAMS), round_to_int8(PARAMS)
    for tensor, spec in zip(PARAMS.tensors, SPECS, strict=True):
        if spec.channel_axis < 0:
            np.testing.assert_array_equal(rounded[spec.name], exact[spec.name])
            continue
        steps = scale_values(tensor.scale_m, tensor.scale_k)  # Gemm: channels are the last axis
        assert (np.abs(rounded[spec.name] - exact[spec.name]) <= steps * 0.5001).all()
        assert (np.abs(np.rint(rounded[spec.name] / steps)) <= 127).all()


def spoil(index: int, **changes: object) -> ModelParams:
    tensors = list(PARAMS.tensors)
    tensors[index] = replace(tensors[index], **changes)  # type: ignore[arg-type]
    return ModelParams(tensors=tuple(tensors))


REFUSED = {
    "order": ModelParams(tensors=PARAMS.tensors[::-1]),
    "missing": ModelParams(tensors=PARAMS.tensors[:-1]),
    "shape": spoil(0, shape=(128, 8)),
    "exponent": spoil(0, exponent=-23),
    "axis": spoil(0, channel_axis=0),
    "short values": spoil(0, values=PARAMS.tensors[0].values[:-4]),
    "short scales": spoil(0, scale_m=PARAMS.tensors[0].scale_m[:-1]),
    "scales of a bias": spoil(1, scale_m=b"\x80"),
    "zero scale": spoil(0, scale_m=bytes(128)),
    "tiny scale": spoil(0, scale_k=b"\xff" * 128),
    "value": spoil(1, values=(MODEL_VALUE_MAX + 1).to_bytes(4, "little") + PARAMS.tensors[1].values[4:]),
    "lowest value": spoil(1, values=b"\x00\x00\x00\x80" + PARAMS.tensors[1].values[4:]),
}


@pytest.mark.parametrize("params", REFUSED.values(), ids=REFUSED)
def test_model_that_does_not_fit_is_refused(params: ModelParams) -> None:
    check_params(PARAMS, SPECS)
    with pytest.raises(QuantizationError):
        check_params(params, SPECS)
