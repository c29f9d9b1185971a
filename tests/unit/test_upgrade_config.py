"""``flchain device upgrade``: a wrong setting is named by file and key, status 2; nothing is made before."""

from pathlib import Path

import pytest

from edge_sdk.cli import main

GOOD = '[upgrade]\nurls = ["http://miner:8080/v1/software"]\nenvironments = "opt"\nstate_dir = "state"\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[upgrade]\n", "urls = nothing"),
        ("[upgrade]\nurls = []\n", "urls = []"),
        ('[upgrade]\nurls = ["ftp://x"]\n', "'ftp://x': expected URLs"),
        (GOOD + "surprise = 1\n", "surprise"),
        (GOOD.replace('"opt"', '"a folder"'), "letters, digits"),
        (GOOD.replace('"opt"', f'"/{"x" * 100}"'), "at most 90"),
        (GOOD + '[service]\nstop = ["true"]\n', "expected stop, start and state"),
        (GOOD + "[trial]\nhealthy_s = 600\nlimit_s = 600\n", "limit_s = 600: expected more than healthy_s"),
        (GOOD + "[trial]\nhealthy_s = 0\n", "healthy_s = 0"),
        (GOOD, "device.toml"),
    ],
)
def test_wrong_setting_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, why: str) -> None:
    path = tmp_path / "upgrade.toml"
    path.write_text(text)
    assert main(["upgrade", "--config", str(path), "--status"]) == 2
    assert why in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_second_updater_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    path = tmp_path / "upgrade.toml"
    path.write_text(GOOD)
    (tmp_path / "state").mkdir()
    with (tmp_path / "state" / "updater.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["upgrade", "--config", str(path)]) == 1
    assert "another updater is at work" in capsys.readouterr().err
