"""What a board downloads, and what an idle device process holds in memory."""

import hashlib
import json
import shutil
import subprocess
import sys
import venv
from importlib.metadata import requires
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
DISTRIBUTIONS: Final = {
    "cbor2",
    "cffi",  # cryptography
    "cryptography",
    "flatbuffers",  # onnxruntime
    "numpy",
    "onnxruntime",
    "packaging",  # onnxruntime
    "paho-mqtt",
    "protobuf",  # onnxruntime
    "pycparser",  # cffi
}
INSTALLED_BYTES_MAX: Final = 200_000_000
IDLE_RSS_MIB_MAX: Final = 45
# Start-up of a whole interpreter with the device; boards are five to ten times slower than the machines that test.
IMPORT_S_MAX: Final = 1.5
NEVER_IDLE: Final = (
    "numpy",
    "onnxruntime",
    "torch",
    "grpc",
    "google",
    "coordinator",
    "onnx",
    "httpx",
    "starlette",
    "rich",
)

# Imports what a device process holds while it waits for work, and says what that cost.
PROBE: Final = """
import json, sys, time
start_s = time.perf_counter()
import edge_sdk.cli, edge_sdk.device
import_s = time.perf_counter() - start_s
with open("/proc/self/status") as status:
    rss_kib = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
print(json.dumps({
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "file": edge_sdk.device.__file__,
    "rss_mib": rss_kib / 1024,
    "import_s": import_s,
}))
"""

# Everything in site-packages but the installer: name, size of its files.
INVENTORY: Final = """
import json
from importlib.metadata import distributions
print(json.dumps({
    d.name.lower().replace("_", "-"): sum(f.locate().stat().st_size for f in d.files or () if f.locate().is_file())
    for d in distributions() if d.name.lower() not in {"pip", "setuptools", "wheel"}
}))
"""


def run_probe(python: Path, code: str, folder: Path) -> dict[str, object]:
    """Run code that prints one JSON object, away from the source tree."""
    done = subprocess.run([python, "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The idle device in this environment, where every extra is installed and could be imported by mistake."""
    folder = tmp_path_factory.mktemp("idle")
    run_probe(Path(sys.executable), PROBE, folder)  # writes the bytecode, as an installed board has it
    return run_probe(Path(sys.executable), PROBE, folder)


@pytest.mark.parametrize("name", NEVER_IDLE)
def test_idle_device_never_loads(idle: dict[str, object], name: str) -> None:
    modules = idle["modules"]
    assert isinstance(modules, list)
    assert "edge_sdk" in modules
    assert name not in modules


def test_idle_memory(idle: dict[str, object]) -> None:
    assert isinstance(idle["rss_mib"], float)
    assert 5 < idle["rss_mib"] <= IDLE_RSS_MIB_MAX


def test_import_time(idle: dict[str, object]) -> None:
    assert isinstance(idle["import_s"], float)
    assert idle["import_s"] <= IMPORT_S_MAX


@pytest.fixture(scope="module")
def board_python(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """Interpreter of a clean environment with our wheel and what it requires, no extras.

    The environment is kept between runs for the same requirements; the wheel is built and installed anew.
    """
    source = tmp_path_factory.mktemp("source")
    for name in ("edge_sdk", "coordinator", "firmware_profiles"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", source / "dist", source], check=True)
    (wheel,) = (source / "dist").glob("*.whl")

    base = [line for line in requires("edge-flchain") or [] if "extra ==" not in line]
    key = hashlib.sha256("\n".join([sys.version, *sorted(base)]).encode()).hexdigest()[:16]
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("device-install") / key
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, symlinks=True, with_pip=False)
    subprocess.run([*pip, "--python", python, "install", wheel], check=True)
    subprocess.run([*pip, "--python", python, "install", "--force-reinstall", "--no-deps", wheel], check=True)
    return python


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_board_installs_ten_distributions(board_python: Path, tmp_path: Path) -> None:
    sizes = run_probe(board_python, INVENTORY, tmp_path)
    assert set(sizes) - {"edge-flchain"} == DISTRIBUTIONS
    total_bytes = sum(size for size in sizes.values() if isinstance(size, int))
    assert 10_000_000 < total_bytes < INSTALLED_BYTES_MAX


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_installed_device_starts_without_extras(board_python: Path, tmp_path: Path) -> None:
    answer = run_probe(board_python, PROBE, tmp_path)
    assert str(answer["file"]).startswith(str(board_python.parents[1]))
    assert isinstance(answer["rss_mib"], float)
    assert answer["rss_mib"] <= IDLE_RSS_MIB_MAX


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_edge_server_commands_name_the_missing_extra(board_python: Path, tmp_path: Path) -> None:
    flchain = str(board_python.with_name("flchain"))
    done = subprocess.run([flchain, "demo", "--quick"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'edge-flchain[" in done.stderr
