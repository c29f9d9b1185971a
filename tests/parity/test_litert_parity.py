"""LiteRT on the same batches: flatbuffers written by tensorflow, run by ai_edge_litert and by tflite_runtime 2.14.

Both live in environments of their own, which ``make test-full`` makes.
"""

from pathlib import Path

import pytest

from edge_sdk.training.artifact import Artifact
from edge_sdk.training.network import Scheme
from tests.support.other_environments import LITERT, TFLITE, require_environment, run_python
from tests.support.parity_cases import CASES, TOLERANCES, Case, assert_near_file, recorded, write_cases

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
FLOATS = [case for case in CASES if case.scheme is Scheme.FP32]
RUNTIMES = {"ai_edge_litert": LITERT, "tflite_runtime": TFLITE}
PROGRAM_BYTES_MAX = 128 * 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts with flatbuffers, and the recorded steps of each case."""
    require_environment(LITERT, "tensorflow")
    folder = tmp_path_factory.mktemp("litert")
    write_cases(folder, FLOATS)
    run_python(LITERT, "-m", "tests.support.add_flatbuffers", *(folder / f"{case}.flm" for case in FLOATS))
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_steps_are_the_same(folder: Path, tmp_path: Path, runtime: str) -> None:
    require_environment(RUNTIMES[runtime], runtime)
    run_python(RUNTIMES[runtime], "-m", "tests.support.backend_replay", "litert", folder, tmp_path, *map(str, FLOATS))
    for case in FLOATS:
        assert_near_file(tmp_path / f"{case}.npz", case, TOLERANCES["litert"])


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
