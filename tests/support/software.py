"""Releases of the client for the upgrade tests: real wheels, a real repository, a server that can break off."""

from __future__ import annotations

import base64
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tuf.api.metadata import TargetFile

from coordinator.upgrades.keys import KeyRing, new_key_folder
from coordinator.upgrades.repository import Repository, Times
from coordinator.upgrades.staging import publish, published_release, stage
from coordinator.upgrades.wheels import SetFolder
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.upgrade.metadata import RoleName
from edge_sdk.upgrade.release import TARGET_NAME

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MACHINE = platform.machine()
Edits = Mapping[str, Callable[[str], str]]


def build_client(folder: Path, version: str) -> Path:
    """The wheel of this very client, by pip, under another version; it brings no dependencies."""
    source = folder / "source"
    for package in ("edge_sdk", "firmware_profiles"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    setup = (ROOT / "setup.cfg").read_text()
    (source / "setup.cfg").write_text(re.sub(r"\ninstall_requires =\n(?:    .*\n)+", "\n", setup))
    init = source / "edge_sdk" / "__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', init.read_text()))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(folder), str(source)], check=True, capture_output=True)
    shutil.rmtree(source)
    return next(folder.glob("edge_flchain-*.whl"))


def changed_client(wheel: Path, folder: Path, version: str, edits: Edits) -> Path:
    """The same wheel under another version, with some modules edited; it is a whole wheel again."""
    old = wheel.name.split("-")[1]
    files = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith("/RECORD"):
                files[name.replace(f"edge_flchain-{old}", f"edge_flchain-{version}")] = archive.read(name)
    metadata = f"edge_flchain-{version}.dist-info/METADATA"
    files[metadata] = files[metadata].replace(f"\nVersion: {old}\n".encode(), f"\nVersion: {version}\n".encode())
    init = "edge_sdk/__init__.py"
    files[init] = re.sub(rb'__version__ = ".*"', f'__version__ = "{version}"'.encode(), files[init])
    for name, edit in edits.items():
        before = files[name].decode()
        files[name] = edit(before).encode()
        assert files[name].decode() != before, f"the edit of {name} changes nothing"
    return pack_wheel(folder, "edge_flchain", version, files)


def bridge_wheel(folder: Path) -> Path:
    """Stands for the dependencies: a path file that leads to those of the environment which runs the tests."""
    info = "zz_bridge-1.0.dist-info"
    return pack_wheel(
        folder,
        "zz_bridge",
        "1.0",
        {
            "zz_bridge.pth": f"{sysconfig.get_path('purelib')}\n".encode(),
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: zz-bridge\nVersion: 1.0\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        },
    )


def pack_wheel(folder: Path, name: str, version: str, files: Mapping[str, bytes]) -> Path:
    """Write a wheel with its RECORD."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    record = f"{name}-{version}.dist-info/RECORD"
    lines = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in files.items():
            archive.writestr(entry, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{entry},sha256={digest},{len(data)}")
        archive.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
    return path


class Publisher:
    """An operator with a repository and its keys."""

    def __init__(self, folder: Path, *, now_s: int | None = None) -> None:
        self.now_s = SystemClock().time_s() if now_s is None else now_s
        self.keys = folder / "keys"
        self.path = folder / "repository"
        ring = new_key_folder(self.keys)
        Repository.create(self.path, ring, self.times, root_keys=2, root_threshold=2)

    @property
    def times(self) -> Times:
        return Times(self.now_s)

    @property
    def anchor(self) -> Path:
        return self.path / "metadata" / "1.root.json"

    def release(self, wheels: Path, *, percent: int = 100) -> int:
        """Add and publish the wheels of a folder; the release's number."""
        stage(Repository(self.path), (SetFolder(PYTHON, MACHINE, wheels),), boards=())
        published = publish(Repository(self.path), KeyRing([self.keys]), self.times, percent=percent)
        assert published is not None
        return published.number

    def publish(self, *, percent: int | None = None) -> None:
        publish(Repository(self.path), KeyRing([self.keys]), self.times, percent=percent)

    def rotate_all(self) -> None:
        """Replace every key."""
        for role in RoleName:
            Repository(self.path).rotate(KeyRing([self.keys]), self.times, role)

    def renumber(self, number: int) -> None:
        """Sign the published release under another number, as no command of ours does."""
        repository = Repository(self.path)
        release = published_release(repository)
        assert release is not None
        data = replace(release, number=number).encoded()
        info = TargetFile.from_data(TARGET_NAME, data, ["sha256"])
        (repository.targets_dir / f"{info.hashes['sha256']}.{TARGET_NAME}").write_bytes(data)
        targets = {**repository.targets.signed.targets, TARGET_NAME: info}
        repository.publish(KeyRing([self.keys]), self.times, targets)


class RangeServer:
    """Serves a folder as a common web server does, with ranges; may break off after some bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.break_after_bytes: int | None = None
        self.is_silent = False
        self.missing_status = 404
        self.before_answer: Callable[[str], None] | None = None
        self.requests: list[tuple[str, str | None]] = []
        """Path and Range header."""
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[RangeServer]:
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                header = self.headers.get("Range")
                outer.requests.append((self.path, header))
                if outer.before_answer is not None:
                    outer.before_answer(self.path)
                if outer.is_silent:
                    self.close_connection = True
                    return
                path = outer.folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(outer.missing_status)
                    return
                data = path.read_bytes()
                start = int(header.removeprefix("bytes=").rstrip("-")) if header else 0
                self.send_response(206 if header else 200)
                if header:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                body = data[start:]
                limit = outer.break_after_bytes
                self.wfile.write(body if limit is None else body[:limit])
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_address[1]}"
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
            thread.start()
            yield self
            server.shutdown()
            thread.join()
