"""The folder that a board starts with: it loads as it is, holds one secret, and is never written over."""

from pathlib import Path

import pytest

from coordinator.cli import main
from edge_sdk.device.config import DeviceConfig


@pytest.fixture(scope="module")
def registrar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of the registrar's miner of a founded fleet."""
    fleet = tmp_path_factory.mktemp("founded") / "fleet"
    assert main(["miner", "init", "--host", "edge.example", str(fleet)]) == 0
    return fleet / "miners" / "m0" / "miner.toml"


def test_the_board_finds_registrar_broker_and_miners_without_any_editing(registrar: Path, tmp_path: Path) -> None:
    folder = tmp_path / "board-01"
    assert main(["registry", "claim", "board-01", "--folder", str(folder), "--config", str(registrar)]) == 0
    config = DeviceConfig.load(folder / "device.toml")
    assert config.device_id == "board-01"
    assert config.enrolment_url == "https://edge.example:8443"
    assert [(broker.host, broker.port) for broker in config.brokers] == [("edge.example", 8883)]
    assert len(config.miner_urls) == 4
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
    assert len((folder / "claim.txt").read_text().strip()) >= 32


def test_an_existing_folder_stays_as_it_is_and_no_claim_is_made(
    registrar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "board-02").mkdir()
    arguments = ["registry", "claim", "board-02", "--folder", str(tmp_path / "board-02"), "--config", str(registrar)]
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["registry", "list", "--config", str(registrar)]) == 0
    assert "board-02" not in capsys.readouterr().out
