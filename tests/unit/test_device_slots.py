"""A/B model slots: what counts as installed, after any interruption."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge_sdk.adapters.slots import Slots
from edge_sdk.device.restore import installed
from edge_sdk.errors import DecodeError
from edge_sdk.participant.events import Model
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.messages import ModelParams, ModelTensor
from edge_sdk.protocol.model import model_root
from edge_sdk.protocol.wire import to_bytes


def params(value: int) -> ModelParams:
    tensor = ModelTensor(
        name="b",
        shape=(3,),
        exponent=-20,
        channel_axis=-1,
        values=value.to_bytes(4, "little") * 3,
        scale_m=b"",
        scale_k=b"",
    )
    return ModelParams(tensors=(tensor,))


def stage(slots: Slots, version: int) -> Model:
    model, blob = params(version), to_bytes(params(version))
    slots.part().write_bytes(blob)
    slots.switch(slots.stage(version, model_root(model), sha256(blob)))
    return Model(version, model_root(model))


def test_switches_between_two_slots(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    assert slots.current() is None
    assert installed(slots) is None
    names = []
    for version in (1, 2, 3):
        model = stage(slots, version)
        current = slots.current()
        assert current is not None
        assert installed(slots) == model
        assert slots.read(current) == params(version)
        names.append(current.slot)
    assert names[0] != names[1] != names[2] == names[0]


def test_wrong_root_is_deleted_and_the_old_model_stays(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    first = stage(slots, 1)
    blob = to_bytes(params(2))
    slots.part().write_bytes(blob)
    with pytest.raises(DecodeError, match="model root"):
        slots.stage(2, Digest(b"\0" * 32), sha256(blob))
    assert not slots.part().exists()
    assert installed(slots) == first


def test_tampered_slot_rolls_back(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    first = stage(slots, 1)
    stage(slots, 2)
    current = slots.current()
    assert current is not None
    path = tmp_path / current.slot / "model.cbor"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert slots.current() is None
    assert installed(slots) == first
    assert installed(Slots(tmp_path)) == first


def test_false_info_does_not_count(tmp_path: Path) -> None:
    """A blob with its digest, but under another root than certified."""
    slots = Slots(tmp_path)
    first = stage(slots, 1)
    stage(slots, 2)
    current = slots.current()
    assert current is not None
    from edge_sdk.protocol import codec

    lie = replace(current, root=Digest(b"\7" * 32))
    (tmp_path / current.slot / "info.cbor").write_bytes(codec.encode({1: 2, 2: lie.root, 3: lie.blob_digest}))
    assert installed(slots) == first


@pytest.mark.parametrize(
    ("failpoint", "version"), [("device.mid_stage", 1), ("device.before_switch", 1), ("device.after_switch", 2)]
)
def test_power_cut(tmp_path: Path, failpoint: str, version: int) -> None:
    stage(Slots(tmp_path), 1)
    code = (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('unit_slots', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "from pathlib import Path\n"
        f"module.stage(module.Slots(Path({str(tmp_path)!r})), 2)\n"
    )
    environment = os.environ | {"FLCHAIN_FAILPOINT": failpoint, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    found = installed(Slots(tmp_path))
    assert found is not None
    assert found.version == version
