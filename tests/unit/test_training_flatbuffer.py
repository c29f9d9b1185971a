"""The flatbuffer inside an artifact: under its hash, its digest and its signature like the graphs."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from coordinator.authoring.zoo import build
from edge_sdk.errors import DecodeError
from edge_sdk.protocol import codec
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.network import Scheme

PLAIN, _ = build("mlp", (4,), 2, batch=4, scheme=Scheme.FP32, seed=0)
WITH = PLAIN.with_flatbuffer(b"program")


def test_it_is_carried_and_changes_nothing_else() -> None:
    again = Artifact.load(WITH.data)
    assert again.litert == b"program"
    assert not PLAIN.litert
    assert (again.network, again.train_onnx, again.rule) == (PLAIN.network, PLAIN.train_onnx, PLAIN.rule)
    assert again.digest != PLAIN.digest


def _other_program(top: Any) -> None:
    top[4] = b"another"


def _no_hash(top: Any) -> None:
    del top[1][14]


def _no_program(top: Any) -> None:
    del top[4]


def _empty(top: Any) -> None:
    top[4], top[1][14] = b"", hashlib.sha256(b"").digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_program, "hash of the flatbuffer does not match"),
        (_no_hash, "without a hash"),
        (_no_program, "without a flatbuffer"),
        (_empty, "without a"),
    ],
)
def test_what_does_not_fit_is_refused(change: Callable[[Any], None], message: str) -> None:
    top = codec.decode(WITH.data, bytes_max=1 << 20)
    change(top)
    with pytest.raises(DecodeError, match=message):
        Artifact.load(codec.encode(top))
