import subprocess
import sys
from types import ModuleType

import pytest

from edge_sdk import __version__, entry


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Every command-line module replaced by recorders: the dispatch alone is under test."""
    seen: list[tuple[str, list[str]]] = []

    for name, status in (("edge_sdk.cli", 3), ("coordinator.cli", 4), ("firmware_profiles.cli", 4)):
        module = ModuleType(name)

        def run(argv: list[str], *, name: str = name, status: int = status) -> int:
            seen.append((name, argv))
            return status

        module.main = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def test_device_gets_the_arguments_after_its_name(calls: list[tuple[str, list[str]]]) -> None:
    assert entry.main(["device", "run", "--config", "a.toml"]) == 3
    assert calls == [("edge_sdk.cli", ["run", "--config", "a.toml"])]


@pytest.mark.parametrize("name", [name for name in entry.COMMANDS if name != "device"])
def test_other_modules_get_all_arguments(calls: list[tuple[str, list[str]]], name: str) -> None:
    assert entry.main([name, "--x"]) == 4
    assert calls == [(entry.COMMANDS[name].module, [name, "--x"])]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in entry.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--version"]) == 0
    assert capsys.readouterr().out == f"flchain {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["mine"], ["--verbose"], [""]])
def test_unknown_command_is_a_usage_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "demo" in captured.err


def test_missing_package_names_the_extra(
    calls: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'starlette.routing'", name="starlette.routing")

    monkeypatch.setattr(sys.modules["coordinator.cli"], "main", run)
    assert entry.main(["miner", "run"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "edge-flchain[miner]" in error


def test_missing_module_of_our_own_is_not_hidden(
    calls: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(argv: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'coordinator.gone'", name="coordinator.gone")

    monkeypatch.setattr(sys.modules["coordinator.cli"], "main", run)
    with pytest.raises(ModuleNotFoundError):
        entry.main(["demo"])


def test_every_extra_exists() -> None:
    from importlib.metadata import metadata

    declared = set(metadata("edge-flchain").get_all("Provides-Extra") or [])
    assert set(entry.EXTRA_OF_MODULE.values()) <= declared


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from edge_sdk.entry import main; main(['--help']);"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & "
        "{'numpy', 'onnxruntime', 'paho', 'cryptography', 'cbor2', 'coordinator', 'argparse'}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
