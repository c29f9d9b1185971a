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


def requirements() -> tuple[str, ...]:
    """What the device's base install asks for."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser["options"]["install_requires"].splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def wheelhouse(client: Path) -> Path:
    """Folder with the wheels of the client's dependencies for the board, from the cache or made by our command."""

    def download(folder: Path) -> None:
        made = folder / "made"
        flchain("image", "wheelhouse", "--profile", PROFILE, "--client", str(client), "--output", str(made))
        for wheel in made.iterdir():
            if not wheel.name.startswith("edge_flchain-"):
                wheel.rename(folder / wheel.name)
        shutil.rmtree(made)

    return cached("wheelhouse", repr((requirements(), PYTHON)), download)


def client_wheel(folder: Path, version: str | None = None, *, breakage: str = "") -> Path:
    """Build the client's wheel from a copy of this tree.

    Args:
        folder: Where the wheel goes.
        version: Another version than the tree's.
        breakage: Python statements that the device's command runs first: a release that must not stay.
    """
    source = folder / f"source-{version or 'tree'}"
    shutil.rmtree(source, ignore_errors=True)
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
