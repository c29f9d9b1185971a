"""From a vendor image to a flashed card, with our own commands; and the wheels that go onto it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Final

from tools.board_test.cache import cached
from tools.board_test.edge import flchain
from tools.board_test.vendor import PARTITION_START, PYTHON, run

ROOT: Final = Path(__file__).resolve().parents[2]
PROFILE: Final = "arm64-generic"
PLATFORMS: Final = (
    *(f"manylinux_2_{glibc}_aarch64" for glibc in (17, 24, 26, 27, 28, 31, 34)),
    "manylinux2014_aarch64",
)
"""Debian 13 has glibc 2.41, so wheels for all of these run there."""


def requirements() -> tuple[str, ...]:
    """What the device's base install asks for."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser["options"]["install_requires"].splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def wheelhouse() -> Path:
    """Wheels of the device's dependencies for the board's Python, from the cache or the package index."""
    needed = requirements()

    def download(folder: Path) -> None:
        pip(
            *("download", "--dest", str(folder), "--only-binary=:all:", "--python-version", PYTHON),
            *("--implementation", "cp", "--abi", f"cp{PYTHON.replace('.', '')}", "--abi", "abi3", "--abi", "none"),
            *(word for platform in PLATFORMS for word in ("--platform", platform)),
            *needed,
        )

    return cached("wheelhouse", repr((needed, PYTHON, PLATFORMS)), download)


def client_wheel(folder: Path, version: str | None = None, *, breakage: str = "") -> Path:
    """Build the client's wheel from a copy of this tree.

    Args:
        folder: Where the wheel goes.
        version: Another version than the tree's.
        breakage: Python statements that the device's command runs first: a release that must not stay.
    """
    source = folder / f"source-{version or 'tree'}"
    names = ("edge_sdk", "coordinator", "firmware_profiles", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
    for name in names:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            source.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place, source / name)
    if version is not None:
        facade = source / "edge_sdk" / "__init__.py"
        text, count = re.subn(r'__version__ = "[^"]+"', f'__version__ = "{version}"', facade.read_text("utf-8"))
        assert count == 1, facade
        facade.write_text(text, encoding="utf-8")
    if breakage:
        command = source / "edge_sdk" / "device" / "app.py"
        command.write_text(f"{command.read_text('utf-8')}\n\n{breakage}\n", encoding="utf-8")
    out = folder / f"wheel-{version or 'tree'}"
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source))
    (wheel,) = out.glob("edge_flchain-*.whl")
    shutil.rmtree(source)
    return wheel


def make_card(vendor: Path, board_folder: Path, wheels: Path, upgrade: Path, card: Path) -> dict[str, str]:
    """Inspect, customise, write and verify; what each command said.

    Args:
        vendor: The vendor's image.
        board_folder: As ``flchain registry claim`` writes it; its claim moves into the image.
        wheels: The wheelhouse with the client's wheel.
        upgrade: Its upgrade.toml, the trust anchor beside it.
        card: New file that plays the card.
    """
    image = card.with_name("customised.img")
    for old in (image, image.with_name(f"{image.name}.json"), card):
        old.unlink(missing_ok=True)
    said = {"inspect": flchain("image", "inspect", str(vendor))}
    said["customise"] = flchain(
        *("image", "customise", str(vendor), "--profile", PROFILE, "--wheelhouse", str(wheels), "--quiet"),
        *("--device-config", str(board_folder / "device.toml"), "--claim-token", str(board_folder / "claim.txt")),
        *("--upgrade-config", str(upgrade), "-o", str(image)),
    )
    written = ("flash", "write", str(image), "--to", str(card), "--profile", PROFILE, "--quiet")
    said["dry run"] = flchain(*written, "--dry-run")
    said["write"] = flchain(*written)
    said["verify"] = flchain("flash", "verify", str(image), str(card), "--quiet")
    image.unlink()
    check_card(card)
    return said


def check_card(card: Path) -> None:
    """Replay the journal and check the root file system, as the next boot would.

    Raises:
        RuntimeError: it is damaged.
    """
    path = f"{card}?offset={PARTITION_START}"
    run("e2fsck", "-f", "-n", path)


def read_from_card(card: Path, names: tuple[str, ...], folder: Path) -> None:
    """Copy files out of the root file system of a card whose board is off."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        run("debugfs", "-R", f"dump -p {name} {folder / Path(name).name}", f"{card}?offset={PARTITION_START}")


def pip(*arguments: str) -> None:
    """Run this environment's pip, which must succeed.

    Raises:
        RuntimeError: it failed, with its own words.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pip {arguments[0]}: {done.stderr.strip()[-2000:]}")
