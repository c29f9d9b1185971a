"""The operator's commands: keys, refusals before anything is written, and what ``show`` says."""

import json
import threading
from pathlib import Path

import pytest

from coordinator.cli import main
from coordinator.upgrades.repository import Repository, alone
from coordinator.upgrades.staging import published_release
from tests.support.software import MACHINE, PYTHON, Publisher, RangeServer, pack_wheel

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


def test_requirement_with_a_url_is_not_fetched(
    publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """pip would, in spite of --no-index, and would run the build of what it finds there."""
    (tmp_path / "elsewhere").mkdir()
    server = RangeServer(tmp_path / "elsewhere")
    with server.running():
        folder = wheels(tmp_path / "wheels", needs=f"evil @ {server.url}/evil-1.tar.gz")
        assert add(publisher, folder) == 2
    assert "wheels come from the folder only" in capsys.readouterr().err
    assert server.requests == []


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


def without(publisher: Publisher, tmp_path: Path, *roles: str) -> Path:
    """Take keys of some roles away, into a folder of their own."""
    offline = tmp_path / "offline"
    offline.mkdir()
    for role in roles:
        for path in publisher.keys.glob(f"{role}-*.pem"):
            path.rename(offline / path.name)
    return offline


def versions(publisher: Publisher) -> dict[str, int]:
    repository = Repository(publisher.path)
    documents = (repository.root, repository.targets, repository.snapshot, repository.timestamp)
    return {metadata.signed.type: metadata.signed.version for metadata in documents}


def test_signatures_are_renewed_without_the_key_of_targets(publisher: Publisher, tmp_path: Path) -> None:
    """What says which software runs is signed by hand, not by the machine that renews every week."""
    offline = without(publisher, tmp_path, "root", "targets")
    assert publish(publisher) == 0
    assert versions(publisher) == {"root": 1, "targets": 1, "snapshot": 2, "timestamp": 2}
    rotate = ["upgrade", "rotate", str(publisher.path), "--role", "timestamp", "--keys", str(publisher.keys)]
    assert main([*rotate, "--keys", str(offline)]) == 0
    assert versions(publisher) == {"root": 2, "targets": 2, "snapshot": 3, "timestamp": 3}
    folder = wheels(tmp_path / "wheels")
    assert add(publisher, folder) == 0
    assert publish(publisher, "--percent", "1") == 2
    assert publish(publisher, "--percent", "1", "--keys", str(offline)) == 0
    assert publish(publisher) == 0
    assert versions(publisher) == {"root": 2, "targets": 3, "snapshot": 5, "timestamp": 5}


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_rotation_that_could_not_sign_the_rest_writes_no_root(
    publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str], role: str
) -> None:
    """Boards would believe the new root and then nothing else."""
    other = "timestamp" if role == "snapshot" else "snapshot"
    without(publisher, tmp_path, other)
    before = sorted(publisher.path.rglob("*")), sorted(publisher.keys.iterdir())
    assert main(["upgrade", "rotate", str(publisher.path), "--role", role, "--keys", str(publisher.keys)]) == 2
    assert f"keys of role {other}" in capsys.readouterr().err
    assert (sorted(publisher.path.rglob("*")), sorted(publisher.keys.iterdir())) == before


def test_commands_wait_for_each_other(publisher: Publisher) -> None:
    """Two documents of one version: boards that saw the one refuse the other."""
    statuses: list[int] = []
    second = threading.Thread(target=lambda: statuses.append(publish(publisher)))
    with alone(publisher.path):
        second.start()
        second.join(0.3)
        assert statuses == []
        assert versions(publisher)["timestamp"] == 1
    second.join(60)
    assert statuses == [0]
    assert versions(publisher)["timestamp"] == 2


def test_keys_below_the_repository_are_refused(publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    keys = publisher.path / "keys"
    publisher.keys.rename(keys)
    assert main(["upgrade", "publish", str(publisher.path), "--keys", str(keys)]) == 2
    assert "which is served" in capsys.readouterr().err
    elsewhere = publisher.path.with_name("another")
    assert main(["upgrade", "init", str(elsewhere), "--keys", str(elsewhere / "keys")]) == 2
    assert not elsewhere.exists()


def test_release_is_published_once_even_if_its_note_was_left(publisher: Publisher, tmp_path: Path) -> None:
    """The power went before the note of what is staged was removed; the next renewal is none of a new release."""
    assert add(publisher, wheels(tmp_path / "wheels")) == 0
    note = publisher.path / "staged.json"
    kept = note.read_bytes()
    assert publish(publisher, "--percent", "5") == 0
    note.write_bytes(kept)
    assert publish(publisher) == 0
    assert not note.exists()
    release = published_release(Repository(publisher.path))
    assert release is not None
    assert (release.number, release.percent) == (1, 5)


@pytest.mark.parametrize(("option", "role"), [("--days-root", "root"), ("--days-targets", "targets")])
def test_document_that_ends_soon_is_spoken_of_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, role: str
) -> None:
    path, keys = tmp_path / "repository", tmp_path / "keys"
    assert main(["upgrade", "init", str(path), "--keys", str(keys), option, "13"]) == 0
    (keys / "targets-1.pem").unlink()
    capsys.readouterr()
    assert main(["upgrade", "publish", str(path), "--keys", str(keys)]) == 0
    assert capsys.readouterr().err.startswith(f"flchain upgrade: {role} expires in 1")  # 12 or 13: a second passes


def test_wheel_that_changed_after_it_was_added_is_refused(
    publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(publisher, wheels(tmp_path / "wheels")) == 0
    wheel = next((publisher.path / "targets").glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes() + b"x")
    assert publish(publisher, "--percent", "1") == 1
    assert "is not the wheel that was added" in capsys.readouterr().err
