"""device.toml: the example, the defaults, and what is refused."""

from pathlib import Path

import pytest

from edge_sdk.cli import main
from edge_sdk.config import example
from edge_sdk.device.config import BACKENDS, SCHEMA, DeviceConfig
from edge_sdk.errors import ConfigError
from edge_sdk.training.backends import BACKEND_NAMES

EXAMPLE = Path(__file__).parents[2] / "examples" / "device.toml"
MINIMAL = '[device]\nid = "d1"\ntask = "digits"\ndata = "data.npz"\n[[broker]]\nhost = "127.0.0.1"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "device.toml"
    path.write_text(text)
    return path


def test_example_names_every_key_with_its_default(tmp_path: Path) -> None:
    shown = [line for line in example(SCHEMA).splitlines() if line.startswith("# ") and " = " in line]
    text = EXAMPLE.read_text()
    assert len(shown) > 20
    for line in shown:
        assert line in text
    assert DeviceConfig.load(EXAMPLE).device_id == "device-01"
    # With every default written out the meaning is the same.
    opened = "\n".join(
        line.removeprefix("# ")
        if line.startswith("# ") and line.split(" = ")[0].count(" ") == 1 and " = " in line
        else line
        for line in text.splitlines()
    )
    one = DeviceConfig.load(write(tmp_path, opened))
    other = DeviceConfig.load(write(tmp_path, text))
    assert one == other


def test_defaults(tmp_path: Path) -> None:
    config = DeviceConfig.load(write(tmp_path, MINIMAL))
    assert config.work_dir == tmp_path / "."
    assert config.key_file == tmp_path / "key.pem"
    assert config.backend == "onnxruntime"
    assert config.steps is None
    assert config.brokers[0].port == 1883
    assert config.byzantine == ""


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("d1", "D 1"), "[device] id = 'D 1': expected a name"),
        (("digits", "../x"), "[device] task = '../x': expected a name"),
        (("[device]", "[training]\nsteps = 0\n[device]"), "[training] steps = 0: expected an integer (1..1000000)"),
        (("[device]", '[trust]\ngenesis_digest = "xy"\n[device]'), "expected 64 hexadecimal digits"),
        (("[device]", '[miners]\nurls = ["ftp://x"]\n[device]'), "[miners] urls = 'ftp://x': expected URLs"),
        (("[device]", '[behaviour]\nbyzantine = "evil"\n[device]'), "byzantine = 'evil': expected one of ''"),
        (("[device]", "[governor]\ntemperature_resume_c = 90.0\n[device]"), "expected at most temperature_max_c"),
        (("[[broker]]", '[[brokers]]\nhost = "x"\n[[broker]]'), "expected one of the sections"),
    ],
)
def test_mistakes(tmp_path: Path, change: tuple[str, str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, MINIMAL.replace(*change))
    with pytest.raises(ConfigError) as caught:
        DeviceConfig.load(path)
    assert line in str(caught.value)
    assert str(path) in str(caught.value)
    assert main(["status", "--config", str(path)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1


def test_run_without_identity_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, MINIMAL)
    assert main(["run", "--config", str(path)]) == 2
    assert "genesis_file" in capsys.readouterr().err


def test_every_backend_may_be_chosen() -> None:
    assert set(BACKENDS) == set(BACKEND_NAMES)
