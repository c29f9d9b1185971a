"""What holds for every tensor: scales cover their channel, codecs lose nothing, checkpoints and residuals come back."""

from fractions import Fraction

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sdk.protocol.limits import MODEL_VALUE_MAX
from edge_sdk.protocol.messages import Codec, ModelParams, ModelTensor
from edge_sdk.training.codecs.dense import TYPES
from edge_sdk.training.delta import decode_aligned, decode_floats, encode_delta, pack_residual, unpack_residual
from edge_sdk.training.network import Role, TensorSpec
from edge_sdk.training.quantize import channel_scales, scale_values

SPECS = (
    TensorSpec(name="w", shape=(3, 4), role=Role.WEIGHT, channel_axis=1, exponent=-24),
    TensorSpec(name="b", shape=(4,), role=Role.BIAS, channel_axis=-1, exponent=-20),
)


def arrays(magnitude: float) -> st.SearchStrategy[dict[str, npt.NDArray[np.float32]]]:
    elements = st.floats(-magnitude, magnitude, width=32)
    return st.fixed_dictionaries({s.name: hnp.arrays(np.float32, s.shape, elements=elements) for s in SPECS})


def zeros() -> ModelParams:
    return ModelParams(
        tensors=tuple(
            ModelTensor(
                name=s.name,
                shape=s.shape,
                exponent=s.exponent,
                channel_axis=s.channel_axis,
                values=bytes(4 * s.size),
                scale_m=b"",
                scale_k=b"",
            )
            for s in SPECS
        )
    )


@given(
    values=hnp.arrays(
        np.int32,
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=5),
        elements=st.integers(-MODEL_VALUE_MAX, MODEL_VALUE_MAX) | st.integers(-300, 300),
    ),
    exponent=st.integers(-40, -16),
    data=st.data(),
)
def test_scale_is_the_smallest_that_covers_its_channel(
    values: npt.NDArray[np.int32], exponent: int, data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, values.ndim - 1))
    m, k = channel_scales(values, exponent, axis)
    magnitudes = [max(abs(int(v)) for v in np.moveaxis(values, axis, 0)[c].ravel()) for c in range(values.shape[axis])]
    floor = max(Fraction(max(magnitudes) // 16), Fraction(1, 64) / Fraction(2) ** exponent)
    for magnitude, mantissa, shift in zip(magnitudes, m.tolist(), k.tolist(), strict=True):
        target = max(Fraction(magnitude), floor) * Fraction(2) ** exponent * Fraction(5, 4) / 127
        scale = Fraction(mantissa, 2**shift)
        below = Fraction(mantissa - 1, 2**shift) if mantissa > 128 else Fraction(255, 2 ** (shift + 1))
        assert 128 <= mantissa <= 255
        assert below < target <= scale
    assert [Fraction(float(s)) for s in scale_values(m.tobytes(), k.tobytes())] == [
        Fraction(a, 2**b) for a, b in zip(m.tolist(), k.tolist(), strict=True)
    ]


@given(delta=arrays(8.0), residual=arrays(1.0), codec=st.sampled_from(sorted(TYPES)))
def test_what_is_not_sent_is_kept_exactly(
    delta: dict[str, npt.NDArray[np.float32]], residual: dict[str, npt.NDArray[np.float32]], codec: Codec
) -> None:
    encoded = encode_delta(delta, residual, SPECS, clip_norm=1e9, codec=codec)
    sent = decode_floats(encoded.payload, zeros())
    aligned = decode_aligned(encoded.payload, zeros())
    for spec in SPECS:
        total = (delta[spec.name] + residual[spec.name]).astype(np.float64)
        np.testing.assert_array_equal(sent[spec.name].astype(np.float64) + encoded.residual[spec.name], total)
        np.testing.assert_array_equal(np.ldexp(aligned[spec.name].astype(np.float64), spec.exponent), sent[spec.name])
        exponent = next(t.exponent for t in encoded.payload.tensors if t.name == spec.name)
        assert np.abs(encoded.residual[spec.name]).max() <= 2.0 ** (exponent - 1)
        assert exponent >= spec.exponent


@given(delta=arrays(8.0), clip_norm=st.floats(0.01, 4.0))
def test_what_is_sent_stays_within_the_norm_bound(delta: dict[str, npt.NDArray[np.float32]], clip_norm: float) -> None:
    encoded = encode_delta(delta, None, SPECS, clip_norm=clip_norm, codec=Codec.INT8_DENSE)
    sent = decode_floats(encoded.payload, zeros())
    assert sum(float((value.astype(np.float64) ** 2).sum()) for value in sent.values()) <= clip_norm**2 * (1 + 1e-12)


@given(residual=arrays(2.0))
def test_residual_comes_back(residual: dict[str, npt.NDArray[np.float32]]) -> None:
    restored = unpack_residual(pack_residual(residual, SPECS), SPECS)
    assert all((restored[name] == residual[name]).all() for name in residual)
