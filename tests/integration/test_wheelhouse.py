"""``flchain image wheelhouse``: what a board needs, gathered on another machine and proven to install offline."""

import subprocess
import sys
from pathlib import Path

import pytest

from firmware_profiles import cli
from firmware_profiles.errors import FirmwareError, UsageError
from firmware_profiles.image.wheel_download import SYSTEMS, prove_offline, wheel_platforms
from firmware_profiles.profile import board_ids, load_profile
from tests.integration.test_image_install import client_wheel

DEPENDENCIES = {"numpy", "onnxruntime", "paho_mqtt", "cryptography", "cbor2"}


def names(folder: Path) -> set[str]:
    return {path.name.partition("-")[0].lower() for path in folder.iterdir()}


def gather(folder: Path, board: str, *words: str) -> int:
    return cli.main(["image", "wheelhouse", "--profile", board, "-o", str(folder), *words])


@pytest.mark.parametrize("python", ["3.10", "3.8", "3.6", "3.14"])
def test_pythons_that_no_supported_system_has(tmp_path: Path, python: str, capsys: pytest.CaptureFixture[str]) -> None:
    """JetPack 4 to 6 bring 3.6, 3.8 and 3.10: too old for the client."""
    assert gather(tmp_path / "wheels", "jetson-xavier-nx", "--python", python) == 2
    assert "3.11 or newer" in capsys.readouterr().err
    assert not (tmp_path / "wheels").exists()


def test_python_of_a_jetson_must_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gather(tmp_path / "wheels", "jetson-nano") == 2
    assert "give --python" in capsys.readouterr().err


def test_folder_must_be_new(tmp_path: Path) -> None:
    (tmp_path / "old.whl").touch()
    assert gather(tmp_path, "rpi-5") == 2


def test_tags_fit_the_oldest_system_with_that_python() -> None:
    """Python 3.11 is Debian's with glibc 2.36 and Ubuntu 22.04's with 2.35: wheels must run on both."""
    tags = wheel_platforms("3.11", "aarch64")
    assert tags[0] == "manylinux_2_35_aarch64"
    assert tags[-2:] == ("manylinux_2_17_aarch64", "manylinux2014_aarch64")
    assert wheel_platforms("3.13", "x86_64")[0] == "manylinux_2_41_x86_64"
    with pytest.raises(UsageError):
        wheel_platforms("2.7", "aarch64")


def test_every_profile_that_names_a_python_is_supported() -> None:
    known = {system.python for system in SYSTEMS}
    for board in board_ids():
        python = load_profile(board).image.python
        assert python is None or python in known, board


def test_resolution_is_really_offline(tmp_path: Path) -> None:
    """A client without dependencies resolves from the folder; one with a dependency that is not there does not."""
    client_wheel(tmp_path)
    prove_offline(tmp_path, python="3.13", architecture="aarch64")
    (tmp_path / "edge_flchain-0.1-py3-none-any.whl").unlink()
    with pytest.raises(FirmwareError, match="edge-flchain"):
        prove_offline(tmp_path, python="3.13", architecture="aarch64")


CASES = [
    ("rpi-zero-2w", "3.13"),
    ("rpi-4b", "3.11"),
    ("jetson-orin-nano", "3.11"),
    ("arm64-generic", "3.12"),
    ("x86-64-generic", "3.13"),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("board", "python"), CASES)
def test_wheelhouse_of_a_board(tmp_path: Path, board: str, python: str) -> None:
    folder = tmp_path / "wheels"
    assert gather(folder, board, "--python", python) == 0
    assert DEPENDENCIES | {"edge_flchain"} <= names(folder)
    assert len(names(folder)) == 11, "the client and its ten distributions"
    # One wheel less, and the proof fails: it does not look anywhere else.
    next(folder.glob("cbor2-*.whl")).unlink()
    with pytest.raises(FirmwareError, match="cbor2"):
        prove_offline(folder, python=python, architecture=load_profile(board).image.architecture)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wheelhouse_of_this_machine_installs_and_runs(tmp_path: Path) -> None:
    """The same way for this interpreter, installed for real: nothing but the folder is asked."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder, place = tmp_path / "wheels", tmp_path / "venv"
    assert gather(folder, "x86-64-generic", "--python", python) == 0
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    install = ["install", "--quiet", "--isolated", "--no-index", "--find-links", str(folder), "edge-flchain"]
    subprocess.run([place / "bin" / "pip", *install], check=True, env={"PATH": "/usr/bin:/bin"})
    done = subprocess.run([place / "bin" / "flchain", "boards", "list"], check=True, capture_output=True, text=True)
    assert "rpi-5" in done.stdout
