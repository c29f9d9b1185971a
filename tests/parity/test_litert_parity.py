"""LiteRT on the same batches: flatbuffers written by tensorflow, run by ai_edge_litert and by tflite_runtime 2.14.

Both live in environments of their own, which ``make test-full`` makes.
"""

from pathlib import Path

import numpy as np
import pytest

from edge_sdk.training.artifact import Artifact
from edge_sdk.training.network import Scheme
from tests.support.backend_replay import evaluate, pack, read_answers
from tests.support.other_environments import LITERT, TFLITE, require_environment, run_python
from tests.support.parity_cases import CASES, TOLERANCES, Case, assert_near, recorded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
FLOATS = [case for case in CASES if case.scheme is Scheme.FP32]
RUNTIMES = {"ai_edge_litert": LITERT, "tflite_runtime": TFLITE}
PROGRAM_BYTES_MAX = 128 * 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts with flatbuffers, and the recorded steps of each case."""
    require_environment(LITERT, "tensorflow")
    folder = tmp_path_factory.mktemp("litert")
    for case in FLOATS:
        known = recorded(case)
        (folder / f"{case}.flm").write_bytes(known.artifact.data)
        np.savez(folder / f"{case}.npz", **pack(known.inputs, known.params))
    run_python(LITERT, "-m", "tests.support.add_flatbuffers", *(folder / f"{case}.flm" for case in FLOATS))
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("case", FLOATS, ids=str)
def test_a_step_is_the_same(folder: Path, runtime: str, case: Case) -> None:
    require_environment(RUNTIMES[runtime], runtime)
    out = folder / f"{case}-{runtime}.npz"
    module = "tests.support.backend_replay"
    run_python(RUNTIMES[runtime], "-m", module, folder / f"{case}.flm", folder / f"{case}.npz", "litert", out)
    answers, logits = read_answers(out)
    known, tolerance = recorded(case), TOLERANCES["litert"]
    assert_near(answers, known, tolerance)
    expected = evaluate(known.artifact, known.inputs, known.params, "numpy")
    bound = tolerance.floats * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("case", FLOATS, ids=str)
def test_a_flatbuffer_holds_no_parameters(folder: Path, case: Case) -> None:
    artifact = Artifact.load((folder / f"{case}.flm").read_bytes())
    assert 1_000 < len(artifact.litert) < PROGRAM_BYTES_MAX
    assert artifact.train_onnx == recorded(case).artifact.train_onnx


def test_int8_is_refused_with_the_reason(folder: Path) -> None:
    known = recorded(Case("mlp", Scheme.INT8))
    file = folder / "int8.flm"
    file.write_bytes(known.artifact.data)
    program = (
        "import sys; from coordinator.flatbuffers import with_flatbuffer; "
        "from edge_sdk.errors import TrainingError; from edge_sdk.training.artifact import Artifact\n"
        "try: with_flatbuffer(Artifact.load(open(sys.argv[1], 'rb').read()))\n"
        "except TrainingError as error: print(error)\n"
    )
    assert "state q8.8" in run_python(LITERT, "-c", program, file)


def test_the_same_artifact_gives_the_same_flatbuffer(folder: Path, tmp_path: Path) -> None:
    case = FLOATS[0]
    again = tmp_path / "again.flm"
    again.write_bytes(recorded(case).artifact.data)
    run_python(LITERT, "-m", "tests.support.add_flatbuffers", again)
    assert Artifact.load(again.read_bytes()).litert == Artifact.load((folder / f"{case}.flm").read_bytes()).litert
