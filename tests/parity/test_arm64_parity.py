"""The parity suite on arm64 under emulation: numpy and two builds of onnxruntime, against this machine's numpy.

A float32 sum is rounded in another order there, so int8 steps may differ as between backends. The processor is that of
a Raspberry Pi 4 (Cortex-A72) for what has to run on it: numpy, and the runtime's own wheel. Debian 13's onnxruntime
1.21 stops with an illegal instruction there, and runs on the Cortex-A76 of a Raspberry Pi 5.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from edge_sdk.training.network import Scheme
from tests.support.arm64 import require_arm64, run_arm64
from tests.support.backend_replay import read_answers
from tests.support.parity_cases import (
    CASES,
    TOLERANCES,
    USUAL,
    USUAL_SHARE,
    assert_near_file,
    is_near,
    recorded,
    write_cases,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Setting(NamedTuple):
    """A backend on a processor."""

    backend: str
    cpu: str
    with_wheel: bool = False


SETTINGS = {
    "numpy": Setting("numpy", "cortex-a72"),
    "onnxruntime-wheel": Setting("onnxruntime", "cortex-a72", with_wheel=True),
    "onnxruntime-debian": Setting("onnxruntime", "cortex-a76"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_are_the_same_on_arm64(tmp_path: Path, name: str) -> None:
    root, setting = require_arm64(), SETTINGS[name]
    write_cases(tmp_path, CASES)
    out = tmp_path / "out"
    out.mkdir()
    module: list[str | Path] = ["-m", "tests.support.backend_replay", setting.backend, tmp_path, out]
    run_arm64(root, *module, *map(str, CASES), cpu=setting.cpu, with_wheel=setting.with_wheel)
    near = []
    for case in CASES:
        assert_near_file(out / f"{case}.npz", case, TOLERANCES["onnxruntime"])
        if case.scheme is not Scheme.FP32:
            known = recorded(case)
            steps = zip(read_answers(out / f"{case}.npz")[0], known.answers, known.inputs, strict=True)
            near += [not is_near(answer, expected, given, USUAL) for answer, expected, given in steps]
    assert np.mean(near) >= USUAL_SHARE
