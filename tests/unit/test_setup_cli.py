import io
import json
import logging
import stat
from pathlib import Path

import pytest

from coordinator import cli
from coordinator.genesis_file import load_genesis
from coordinator.json_log import JsonLines
from coordinator.ledger.store import LedgerStore
from edge_sdk.protocol import wire
from edge_sdk.protocol.ids import MinerId
from edge_sdk.protocol.messages import Codec, ModelParams

MINERS = "m0,m1"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fl") / "d"
    assert cli.main(["miner", "init", str(root), "--miners", MINERS, "--chain", "c1"]) == 0
    return root


def config_of(deployment: Path) -> list[str]:
    return ["--config", str(deployment / "miners" / "m0" / "miner.toml")]


def test_init_names_the_next_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "d"
    assert cli.main(["miner", "init", str(root), "--miners", "m0"]) == 0
    text = capsys.readouterr().out
    for step in ("mosquitto -c", "flchain sequencer run", "flchain miner run", "flchain registry claim"):
        assert step in text
    assert "PRIVATE" not in text
    assert cli.main(["miner", "init", str(root)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not empty" in error


@pytest.mark.parametrize(
    "options",
    [
        ["--miners", "M0"],
        ["--miners", ""],
        ["--chain", "a/b"],
        ["--http-port", "0"],
        ["--http-port", "70000"],
        ["--host", "a b"],
        ["--tau", "nan"],
        ["--block-size", "-1"],
    ],
)
def test_wrong_options_are_usage_errors(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["miner", "init", str(tmp_path / "d"), *options])
    assert caught.value.code == 2
    assert not (tmp_path / "d").exists()


def test_the_codec_stands_in_genesis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "d"
    assert cli.main(["miner", "init", str(root), "--miners", "m0", "--codec", "output"]) == 0
    params = load_genesis(root / "genesis.cbor").params
    assert (params.codec, params.carried) == (Codec.INT8_OUTPUT, (4, 5))
    assert cli.main(["miner", "init", str(tmp_path / "e"), "--codec", "topk"]) == 2
    assert "--codec topk: expected int8, int16, topk:FRACTION" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_two_miners_of_one_name_leave_nothing_behind(tmp_path: Path) -> None:
    assert cli.main(["miner", "init", str(tmp_path / "d"), "--miners", "m0,m0"]) == 2
    assert not (tmp_path / "d").exists()


def test_claim_is_in_its_file_only(deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "claim"
    arguments = ["registry", "claim", "board-01", "--ttl", "72h", "--out", str(out), *config_of(deployment)]
    assert cli.main(arguments) == 0
    token = out.read_text().strip()
    assert len(token) >= 43
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert cli.main(["registry", "list", "--json", *config_of(deployment)]) == 0
    captured = capsys.readouterr()
    assert token not in captured.out + captured.err
    assert "board-01" in captured.out
    assert cli.main(arguments) == 2, "a claim is never overwritten"


@pytest.mark.parametrize("ttl", ["0h", "31d", "72", "h", "-1h", "9999999d"])
def test_life_of_a_claim(deployment: Path, tmp_path: Path, ttl: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["registry", "claim", "d1", f"--ttl={ttl}", "--out", str(tmp_path / "c"), *config_of(deployment)])
    assert caught.value.code == 2


def test_revoking_a_stranger_and_asking_the_wrong_miner(deployment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["registry", "revoke", "stranger", *config_of(deployment)]) == 2
    other = str(deployment / "miners" / "m1" / "miner.toml")
    assert cli.main(["registry", "list", "--config", other]) == 2
    assert "registrar" in capsys.readouterr().err


def test_model_of_genesis_verifies(deployment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, genesis = deployment / "miners" / "m0" / "model.cbor", str(deployment / "genesis.cbor")
    assert cli.main(["model", "verify", str(model), "--genesis", genesis]) == 0
    assert "version 0" in capsys.readouterr().out
    assert cli.main(["model", "verify", str(model), "--genesis", genesis, "--anchor", "00" * 32]) == 2
    assert cli.main(["model", "inspect", str(model)]) == 0
    assert cli.main(["model", "inspect", str(model.with_name("artifact.flm"))]) == 0


def test_changed_model_is_refused_in_one_line(
    deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genesis = str(deployment / "genesis.cbor")
    blob = bytearray((deployment / "miners" / "m0" / "model.cbor").read_bytes())
    params = wire.from_bytes(ModelParams, bytes(blob))
    place = bytes(blob).index(params.tensors[0].values)
    blob[place] ^= 1
    for name, data in (("flipped", bytes(blob)), ("cut", bytes(blob[:-1])), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
        assert cli.main(["model", "verify", str(tmp_path / name), "--genesis", genesis]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert name in error


def test_missing_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = str(tmp_path / "nothing")
    for arguments in (
        ["model", "inspect", nothing],
        ["model", "verify", nothing, "--genesis", nothing],
        ["ledger", "show", nothing],
        ["ledger", "verify", nothing],
        ["miner", "run", "--config", nothing],
        ["sequencer", "run", "--config", nothing],
        ["registry", "list", "--config", nothing],
    ):
        assert cli.main(arguments) in {1, 2}, arguments
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1, captured.err
        assert "Traceback" not in captured.err


def test_log_lines_stay_single_and_bounded() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    record = logging.makeLogRecord(
        {"msg": 'two\nlines "quoted"', "levelname": "WARNING", "device": "d1\n{}", "size": 3, "blob": "x" * 9_999}
    )
    handler.emit(record)
    (line,) = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert (fields["message"], fields["device"], fields["size"]) == ('two\nlines "quoted"', "d1\n{}", 3)
    assert len(fields["blob"]) == 2_000


def test_new_ledger_shows_and_takes_only_its_own_anchor(
    deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genesis = load_genesis(deployment / "genesis.cbor")
    LedgerStore.open(tmp_path / "ledger.sqlite3", genesis=genesis, miner_id=MinerId("m0")).close()
    assert cli.main(["ledger", "show", str(tmp_path)]) == 0
    assert "ledger of m0, height 0" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["ledger", "show", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert cli.main(["ledger", "verify", str(tmp_path), "--anchor", "00" * 32]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "height 0" in error


def test_command_that_does_not_exist_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
