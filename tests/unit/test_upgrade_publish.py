"""The operator's commands: keys, refusals before anything is written, and what ``show`` says."""

import json
from pathlib import Path

import pytest

from coordinator.cli import main
from tests.support.software import MACHINE, PYTHON, Publisher, pack_wheel

OUTBOX = "edge_sdk/adapters/outbox.py"


def wheels(
    folder: Path, *, version: str = "0.2.0", needs: str = "", outbox: bytes = b"SCHEMA_VERSION: int = 1\n"
) -> Path:
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    metadata = f"Metadata-Version: 2.1\nName: edge-flchain\nVersion: {version}\n{requires}".encode()
    info = f"edge_flchain-{version}.dist-info"
    wheel = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    pack_wheel(folder, "edge_flchain", version, {f"{info}/METADATA": metadata, f"{info}/WHEEL": wheel, OUTBOX: outbox})
    return folder


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path)


def add(publisher: Publisher, folder: Path, *options: str) -> int:
    return main(["upgrade", "add", str(publisher.path), "--set", f"{PYTHON}:{MACHINE}={folder}", *options])


def publish(publisher: Publisher, *options: str) -> int:
    return main(["upgrade", "publish", str(publisher.path), "--keys", str(publisher.keys), *options])


def test_release_from_the_command_line(
    publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(publisher, wheels(tmp_path / "wheels"), "--board", "rpi-5") == 0
    assert publish(publisher, "--percent", "10") == 0
    assert publish(publisher, "--percent", "25") == 0
    capsys.readouterr()
    assert main(["upgrade", "show", str(publisher.path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["staged"] is None
    assert (shown["published"]["release"], shown["published"]["percent"]) == (1, 25)
    assert shown["published"]["boards"] == ["rpi-5"]
    assert [(role["role"], role["threshold"]) for role in shown["roles"]] == [
        ("root", 2),
        ("targets", 1),
        ("snapshot", 1),
        ("timestamp", 1),
    ]
    assert main(["upgrade", "rotate", str(publisher.path), "--keys", str(publisher.keys), "--role", "snapshot"]) == 0
    assert add(publisher, wheels(tmp_path / "next", version="0.3.0")) == 0
    assert publish(publisher, "--percent", "0") == 0
    assert main(["upgrade", "show", str(publisher.path)]) == 0
    assert "release 2: client 0.3.0, 0 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("needs", "outbox", "why"),
    [
        ("no-such-distribution-of-ours", b"SCHEMA_VERSION: int = 1\n", "not complete"),
        ("", b"", "no constant SCHEMA_VERSION"),
        ("", b"def (", "not a wheel of the client"),
    ],
)
def test_set_that_could_not_run_is_refused(
    publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str], needs: str, outbox: bytes, why: str
) -> None:
    assert add(publisher, wheels(tmp_path / "wheels", needs=needs, outbox=outbox)) == 2
    assert why in capsys.readouterr().err
    assert not (publisher.path / "staged.json").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["publish", "REPO", "--keys", "KEYS", "--percent", "5"], "nothing is published"),
        (["publish", "REPO", "--keys", "KEYS", "--percent", "101"], "expected 0..100"),
        (["publish", "REPO", "--keys", "KEYS", "--days-timestamp", "0"], "--days-timestamp 0"),
        (["publish", "REPO", "--keys", "EMPTY"], "missing"),
        (["publish", "REPO", "--keys", "NOWHERE"], "expected a folder of keys"),
        (["publish", "EMPTY", "--keys", "KEYS"], "no repository of software"),
        (["rotate", "REPO", "--keys", "EMPTY", "--role", "root"], "keys of role root"),
        (["init", "REPO", "--keys", "EMPTY"], "expected an empty folder"),
        (["init", "NOWHERE", "--keys", "KEYS"], "without keys"),
        (["init", "NOWHERE", "--keys", "EMPTY", "--root-keys", "1", "--root-threshold", "2"], "threshold <= keys"),
        (["add", "REPO", "--set", "3.13=EMPTY"], "expected PYTHON:ARCH=FOLDER"),
        (["add", "REPO", "--set", "3.13:aarch64=EMPTY"], "has no wheel of the client"),
        (["add", "REPO", "--set", "3.13:aarch64=EMPTY", "--board", "toaster"], "--board toaster"),
    ],
)
def test_mistake_is_named_and_changes_nothing(
    publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {
        "REPO": str(publisher.path),
        "KEYS": str(publisher.keys),
        "EMPTY": str(tmp_path / "empty"),
        "NOWHERE": str(tmp_path / "nowhere"),
    }
    before = sorted(publisher.path.rglob("*")), sorted(publisher.keys.iterdir())
    for name, path in places.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    assert main(["upgrade", *arguments]) == 2
    assert why in capsys.readouterr().err
    assert (sorted(publisher.path.rglob("*")), sorted(publisher.keys.iterdir())) == before


def test_key_that_others_may_read_is_refused(publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.stat().st_mode & 0o777 for path in publisher.keys.iterdir()} == {0o600}
    (publisher.keys / "timestamp-1.pem").chmod(0o640)
    assert publish(publisher) == 1
    assert "chmod 600" in capsys.readouterr().err


def test_root_keys_are_not_needed_to_publish(publisher: Publisher, tmp_path: Path) -> None:
    offline = tmp_path / "offline"
    offline.mkdir()
    for path in publisher.keys.glob("root-*.pem"):
        path.rename(offline / path.name)
    assert publish(publisher) == 0
    rotate = ["upgrade", "rotate", str(publisher.path), "--role", "targets", "--keys", str(publisher.keys)]
    assert main(rotate) == 2
    assert main([*rotate, "--keys", str(offline)]) == 0
    assert publish(publisher) == 0


def test_wheel_that_changed_after_it_was_added_is_refused(
    publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(publisher, wheels(tmp_path / "wheels")) == 0
    wheel = next((publisher.path / "targets").glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes() + b"x")
    assert publish(publisher, "--percent", "1") == 1
    assert "is not the wheel that was added" in capsys.readouterr().err
