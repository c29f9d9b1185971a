"""Memory of the engine in a process of its own: peak while LeNet trains, and what is left after ``release``."""

import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.authoring.zoo import build
from edge_sdk.protocol import codec
from edge_sdk.training.artifact import Artifact

PEAK_MIB_MAX = 80
IDLE_AFTER_MIB_MAX = 60

PROGRAM = """
import sys
import numpy as np
from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import ModelParams, ModelTensor
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.dataset import load_dataset
from edge_sdk.training.trainer import Trainer
from pathlib import Path

def mib(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024

folder = Path(sys.argv[1])
artifact = Artifact.load((folder / "a.flm").read_bytes())
rows = codec.decode((folder / "params").read_bytes(), bytes_max=1 << 20)
fields = ("name", "shape", "exponent", "channel_axis", "values", "scale_m", "scale_k")
params = ModelParams(tensors=tuple(
    ModelTensor(**dict(zip(fields, row)) | {"shape": tuple(row[1])}) for row in rows))
trainer = Trainer(artifact, backend=sys.argv[2])
trainer.load(params)
data = load_dataset(folder, input_shape=(1, 28, 28), class_count=10)
trainer.train(data, steps=20, lr=0.1, rng=np.random.default_rng(0))
trainer.evaluate(params, data.features(slice(0, 256)), data.y[:256])
trainer.release()
assert "onnx" not in sys.modules and "coordinator" not in sys.modules
print(mib("VmHWM"), mib("VmRSS"))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="skipped: no /proc")
@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
def test_lenet_trains_within_its_memory(tmp_path: Path, backend: str) -> None:
    import numpy as np

    artifact, params = build("lenet", (1, 28, 28), 10, batch=32, seed=0)
    assert isinstance(artifact, Artifact)
    (tmp_path / "a.flm").write_bytes(artifact.data)
    rows = [[t.name, list(t.shape), t.exponent, t.channel_axis, t.values, t.scale_m, t.scale_k] for t in params.tensors]
    (tmp_path / "params").write_bytes(codec.encode(rows))
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (3000, 1, 28, 28), dtype=np.uint8))
    np.save(tmp_path / "y.npy", rng.integers(0, 10, 3000))
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), backend],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        timeout=60,
    )
    peak_mib, idle_after_mib = map(float, run.stdout.split())
    assert peak_mib <= PEAK_MIB_MAX
    assert idle_after_mib <= IDLE_AFTER_MIB_MAX
