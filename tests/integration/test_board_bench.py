"""Parts of the board test that need no emulation: its shell on a real sh, its cache, the board's share of the data."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tools.board_test.__main__ import main
from tools.board_test.cache import VARIABLE, cached
from tools.board_test.data import write_digits, write_share
from tools.board_test.shell import BoardError, Shell


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell as the board's: plain sh that reads commands from a stream."""
    path = tmp_path / "shell.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        client = Shell(path)
        client.send("")
        far, _ = server.accept()
        with far, subprocess.Popen(["sh"], stdin=far.fileno(), stdout=far.fileno(), stderr=far.fileno()) as process:
            yield client
            process.kill()
            client.close()


def test_output_and_status(shell: Shell) -> None:
    assert shell.run("echo out; echo err >&2") == "out\nerr\n"
    assert shell.try_run("printf 'no newline'; exit 7") == (7, "no newline")
    assert shell.run("cat") == "", "a command must not eat the next one"
    with pytest.raises(BoardError, match="exit status 1"):
        shell.run("false")


def test_answer_of_an_abandoned_command_is_not_taken_for_the_next(shell: Shell) -> None:
    with pytest.raises(BoardError, match="not done in time"):
        shell.try_run("sleep 0.3; echo late", timeout_s=0.1)
    assert shell.run("echo mine") == "mine\n"


def test_until_repeats_and_gives_up(shell: Shell, tmp_path: Path) -> None:
    counter = tmp_path / "count"
    once_more = f"echo x >> {counter}; test $(wc -l < {counter}) -ge 2 && echo done"
    assert shell.until(once_more, "two lines", timeout_s=60.0) == "done\n"
    with pytest.raises(BoardError, match="the impossible"):
        shell.until("false", "the impossible", timeout_s=0.0)


def test_cache_keeps_complete_results_of_one_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))

    def cut_off(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("thing", "recipe 1", cut_off)
    first = cached("thing", "recipe 1", lambda folder: (folder / "whole").touch())
    assert [path.name for path in first.iterdir()] == ["whole"]
    assert cached("thing", "recipe 1", cut_off) == first
    second = cached("thing", "recipe 2", lambda folder: (folder / "whole").touch())
    assert list(tmp_path.iterdir()) == [second]


def test_board_gets_what_the_miners_do_not_hold(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits.npz")
    with np.load(tmp_path / "digits.npz") as digits:
        x, y = digits["x"], digits["y"]
    assert x.shape[1:] == (1, 28, 28)
    assert x[0, 0, 2:26:3, 2:26:3].shape == (8, 8)
    np.savez(tmp_path / "fold.npz", x=x[:100], y=y[:100])
    left = write_share(tmp_path / "digits.npz", [tmp_path / "fold.npz"], tmp_path / "data.npz")
    with np.load(tmp_path / "data.npz") as share:
        assert len(share["x"]) == left <= len(x) - 100
        held = {row.tobytes() for row in x[:100]}
        assert not any(row.tobytes() in held for row in share["x"])


def test_going_on_needs_the_files_of_an_earlier_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--from", "ledger"], ["--keep", str(tmp_path), "--from", "ledger"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "--keep" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
