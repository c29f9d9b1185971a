"""Wheels become environments, and nothing outside of them is touched; locks and health between two processes."""

import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_sdk.adapters.health_file import HealthFile, read_health
from edge_sdk.adapters.quiet import TRAINING, TrainingLock, quiet_time
from edge_sdk.errors import StoreError, UpgradeRefusedError
from edge_sdk.upgrade.environments import COMMITTED, CURRENT, NOT_COMPILED, Environments
from edge_sdk.upgrade.wheel import Places, unpack
from tests.support.software import pack_wheel

MIB = 2**20
METADATA = {"probe-1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: probe\nVersion: 1\n"}
ENTRY = b"[console_scripts]\nprobe = probe.main:run\n"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    prefix = tmp_path / "env"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").symlink_to(sys.executable)
    (prefix / "site").mkdir()
    return Places(prefix, prefix / "site")


def test_built_environment_runs_its_script(tmp_path: Path) -> None:
    wheel = pack_wheel(
        tmp_path / "wheels",
        "probe",
        "1",
        {
            **METADATA,
            "probe/__init__.py": b"",
            "probe/main.py": b"import sys\n\n\ndef run():\n    print('runs in', sys.prefix)\n    return 7\n",
            "probe-1.dist-info/entry_points.txt": ENTRY,
            "probe-1.data/purelib/more.py": b"",
            "probe-1.data/data/share/probe.txt": b"text",
        },
    )
    environments = Environments(tmp_path / "flchain")
    environments.folder.mkdir()
    environments.build("a", [wheel], b"marker", bytes_max=MIB)
    done = subprocess.run([environments.path("a") / "bin" / "probe"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, f"runs in {environments.path('a')}\n")
    assert environments.is_complete("a", b"marker")
    assert not environments.is_complete("a", b"another")
    assert (environments.path("a") / "share" / "probe.txt").read_text() == "text"
    assert list(environments.path("a").glob("lib/*/site-packages/probe/__pycache__/main.*.pyc"))


def test_what_a_device_imports_is_compiled() -> None:
    """The device may not write where its code lies: it would compile the rest again at each start."""
    script = (
        "import sys, edge_sdk.entry, edge_sdk.upgrade.probe as p; p._import_everything()\n"
        "print(*(m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    files = done.stdout.splitlines()
    assert any("/numpy/lib/" in file for file in files)
    assert any("/edge_sdk/training/" in file for file in files)
    assert [file for file in files if NOT_COMPILED.search(file)] == []
    assert NOT_COMPILED.search("/opt/flchain/a/lib/python3.13/site-packages/numpy/ma/core.py")


def test_files_are_where_pip_puts_them(tmp_path: Path) -> None:
    info = "probe-1.dist-info"
    files = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: probe\nVersion: 1\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": b"[console_scripts]\nprobe = probe.main:Program.run\n[other]\na = b:c\n",
        "probe/main.py": b"class Program:\n    @staticmethod\n    def run():\n        print('entry')\n",
        "probe-1.data/purelib/pure.py": b"1\n",
        "probe-1.data/platlib/plat.py": b"2\n",
        "probe-1.data/scripts/probe-script": b"#!python\nprint('script')\n",
        "probe-1.data/data/share/probe/text.txt": b"text",
    }
    wheel = pack_wheel(tmp_path, "probe", "1", files)
    environments = Environments(tmp_path)
    environments.build("a", [wheel], b"marker", bytes_max=MIB)
    environments.build("b", [], b"marker", bytes_max=MIB)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--prefix"]
    subprocess.run([*command, str(tmp_path / "b"), str(wheel)], check=True, capture_output=True)
    written_by_pip = {"INSTALLER", "REQUESTED", "direct_url.json"}

    def content(slot: str) -> dict[str, bytes | None]:
        root = tmp_path / slot
        found = [path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        return {
            str(path.relative_to(root)): None
            if path.parent.name == "bin" or path.name == "RECORD"
            else path.read_bytes()
            for path in found
            if path.name not in {*written_by_pip, "pyvenv.cfg"}
        }

    assert content("a") == content("b")
    for name, said in (("probe", "entry\n"), ("probe-script", "script\n")):
        done = subprocess.run([tmp_path / "a" / "bin" / name], capture_output=True, text=True, check=True)
        assert done.stdout == said


def test_links_move_and_the_free_environment_is_neither_s(tmp_path: Path) -> None:
    environments = Environments(tmp_path)
    (tmp_path / "a" / "bin").mkdir(parents=True)
    (tmp_path / "a" / "bin" / "python").touch()
    environments.point(CURRENT, "a")
    assert environments.running() == "a"
    assert environments.target(COMMITTED) == "a"  # a board that was installed before there was this link
    assert environments.free() == "b"
    environments.point(CURRENT, "b")
    assert (environments.target(CURRENT), environments.target(COMMITTED), environments.free()) == ("b", "a", "c")


@pytest.mark.parametrize(
    "name",
    ["../outside.py", "/etc/outside", "a/../../outside", "a\\..\\b", "probe-1.data/outside", "probe-1.data/x/y"],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, places: Places, name: str) -> None:
    wheel = pack_wheel(tmp_path, "probe", "1", {name: b"x"})
    with pytest.raises(UpgradeRefusedError):
        unpack(wheel, places, bytes_max=MIB)
    assert not (tmp_path / "outside.py").exists()


def test_links_in_a_wheel_and_over_the_interpreter_are_refused(tmp_path: Path, places: Places) -> None:
    link = zipfile.ZipInfo("probe/link")
    link.external_attr = 0o120777 << 16
    wheel = tmp_path / "link-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UpgradeRefusedError, match="not a plain file"):
        unpack(wheel, places, bytes_max=MIB)
    interpreter = Path(sys.executable).read_bytes()[:100]
    for files in (
        {"probe-1.data/scripts/python": b"#!/bin/sh\n"},
        {"probe-1.dist-info/entry_points.txt": b"[console_scripts]\npython = a:b\n"},
    ):
        with pytest.raises(UpgradeRefusedError, match="replace a link"):
            unpack(pack_wheel(tmp_path, "probe", "1", files), places, bytes_max=MIB)
    assert Path(sys.executable).read_bytes()[:100] == interpreter


@pytest.mark.parametrize(
    "entry", [b"[console_scripts]\nx = a b\n", b"[console_scripts]\n../x = a:b\n", b"x\n", b"[console_scripts]\nx=a\n"]
)
def test_bad_entry_points_are_refused(tmp_path: Path, places: Places, entry: bytes) -> None:
    wheel = pack_wheel(tmp_path, "probe", "1", {"probe-1.dist-info/entry_points.txt": entry})
    with pytest.raises(UpgradeRefusedError):
        unpack(wheel, places, bytes_max=MIB)


def test_bomb_and_damage_are_refused(tmp_path: Path, places: Places) -> None:
    wheel = pack_wheel(tmp_path, "probe", "1", {"probe.py": bytes(4 * MIB)})
    assert wheel.stat().st_size < MIB / 16
    with pytest.raises(UpgradeRefusedError, match="unpack to more"):
        unpack(wheel, places, bytes_max=MIB)
    wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(UpgradeRefusedError):
        unpack(wheel, places, bytes_max=8 * MIB)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_takes_what_memory_it_likes_is_refused(tmp_path: Path, places: Places, method: int) -> None:
    wheel = tmp_path / "probe-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", method) as archive:
        archive.writestr("probe.py", b"")
    with pytest.raises(UpgradeRefusedError, match=f"compressed by method {method}"):
        unpack(wheel, places, bytes_max=MIB)


def test_name_that_is_no_text_is_refused(tmp_path: Path, places: Places) -> None:
    wheel = pack_wheel(tmp_path, "probe", "1", {"caf\u00e9.py": b""})
    wheel.write_bytes(wheel.read_bytes().replace("\u00e9".encode(), b"\xff\xff"))
    with pytest.raises(UpgradeRefusedError):
        unpack(wheel, places, bytes_max=MIB)


def test_build_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    environments = Environments(tmp_path)
    bad = pack_wheel(tmp_path / "wheels", "probe", "1", {"../x": b""})
    with pytest.raises(UpgradeRefusedError):
        environments.build("a", [bad], b"marker", bytes_max=MIB)
    assert not environments.is_complete("a", b"marker")
    good = pack_wheel(tmp_path / "wheels", "probe", "1", {"probe.py": b""})
    environments.build("a", [good], b"marker", bytes_max=MIB)
    assert environments.is_complete("a", b"marker")


@pytest.mark.parametrize("error", [StoreError, UpgradeRefusedError])
def test_half_an_environment_gives_its_room_back(tmp_path: Path, error: type[Exception]) -> None:
    """Otherwise a disk that became full while it was built stays full for the device until the next pass."""
    environments = Environments(tmp_path / "flchain")
    environments.folder.mkdir()
    good = pack_wheel(tmp_path / "good", "probe", "1", {"a": b""})
    bad = tmp_path / "gone.whl" if error is StoreError else pack_wheel(tmp_path, "probe", "1", {"../b": b""})
    with pytest.raises(error):
        environments.build("a", [good, bad], b"marker", bytes_max=MIB)
    assert list(environments.folder.iterdir()) == []


@pytest.mark.parametrize(
    "files", [{"a": b"", "a/b": b""}, {"a/b": b"", "a": b""}, {"x" * 300: b""}], ids=["below a file", "folder", "long"]
)
def test_names_that_no_disk_takes_are_the_wheel_s_fault(
    tmp_path: Path, places: Places, files: dict[str, bytes]
) -> None:
    """Refused, and so counted against the release; a full disk would be asked again."""
    with pytest.raises(UpgradeRefusedError):
        unpack(pack_wheel(tmp_path, "probe", "1", files), places, bytes_max=MIB)


def test_upgrade_waits_for_the_job_and_the_next_job_for_the_upgrade(tmp_path: Path) -> None:
    lock, stopping = TrainingLock(tmp_path), threading.Event()
    with lock.held(stopping) as is_held:
        assert is_held
        with quiet_time(tmp_path, wait_s=0) as is_quiet:
            assert not is_quiet
    with quiet_time(tmp_path, wait_s=0) as is_quiet:
        assert is_quiet
        stopping.set()
        with TrainingLock(tmp_path).held(stopping) as is_held:
            assert not is_held  # asked to stop while an upgrade goes on: no job, no wait
    with lock.held(stopping) as is_held:
        assert is_held


def test_board_without_lock_files_is_quiet(tmp_path: Path) -> None:
    with quiet_time(tmp_path, wait_s=0) as is_quiet:
        assert is_quiet
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/etc/passwd"), os.mkfifo])
def test_lock_file_that_is_something_else_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / TRAINING)
    with pytest.raises(StoreError), quiet_time(tmp_path, wait_s=0):
        pass


def test_health_is_that_of_a_living_process_only(tmp_path: Path) -> None:
    assert read_health(tmp_path) is None
    file = HealthFile(tmp_path)
    file.write(connected=False)
    file.write(connected=True)
    file.write(connected=False)
    health = read_health(tmp_path)
    assert health is not None
    assert (health.pid, health.prefix, health.sessions, health.connected) == (os.getpid(), Path(sys.prefix), 1, False)
    path = tmp_path / "health.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"start_ticks": document["start_ticks"] + 1}))
    assert read_health(tmp_path) is None  # the same number, another process
    path.unlink()
    path.symlink_to("/proc/self/environ")
    assert read_health(tmp_path) is None


def test_full_disk_costs_the_word_not_the_device(tmp_path: Path) -> None:
    HealthFile(tmp_path / "gone").write(connected=True)  # logs, and does not raise
    assert list(tmp_path.iterdir()) == []
    assert read_health(tmp_path / "gone") is None
