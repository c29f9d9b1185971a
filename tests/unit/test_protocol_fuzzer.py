"""The fuzzer finds what is planted, repeats by seed, and a short run is part of every check."""

import numpy as np
import pytest

from edge_sdk.errors import DecodeError
from edge_sdk.protocol import codec
from tools import fuzz_decode
from tools.vector_examples import update_envelope


def test_a_short_run_finds_nothing() -> None:
    count, accepted = fuzz_decode.run(seconds=0.5, seed=1)
    assert count > 20
    assert accepted["codec"] > 0


def test_one_seed_draws_the_same_inputs() -> None:
    corpus = fuzz_decode.load_corpus()
    first, second = np.random.default_rng(7), np.random.default_rng(7)
    inputs = [fuzz_decode.mutate(first, corpus) for _ in range(50)]
    assert inputs == [fuzz_decode.mutate(second, corpus) for _ in range(50)]
    assert len(set(inputs)) > 25


def test_a_true_envelope_is_accepted() -> None:
    assert fuzz_decode.check_input(update_envelope()) == ["envelope", "signed envelope"]


def test_a_reader_that_lets_trailing_bytes_pass_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lax(data: bytes, *, bytes_max: int) -> object:
        return codec.decode(data.rstrip(b"\xff"), bytes_max=bytes_max)

    monkeypatch.setattr(fuzz_decode, "decode", lax)
    with pytest.raises(fuzz_decode.OracleError, match="codec"):
        fuzz_decode.check_input(b"\x00\xff")


def test_a_refusal_without_a_reason_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(data: bytes, *, bytes_max: int) -> object:
        raise DecodeError("no")

    monkeypatch.setattr(fuzz_decode, "decode", silent)
    with pytest.raises(fuzz_decode.OracleError, match="without a reason"):
        fuzz_decode.check_input(b"\x00")


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz_decode.main(["--input", "01"]) == 0
    assert capsys.readouterr().out == "accepted by: codec\n"
