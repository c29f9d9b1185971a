"""What an image file should be: a digest that came with it, and the boards that it is for.

Beside ``NAME.img`` may lie ``NAME.img.sha256`` (as sha256sum writes it) and ``NAME.img.json`` (as ``flchain image
customise`` writes it). Whoever can replace the image can replace these too: they find damage, not forgery. Against
forgery give ``--sha256`` from a source that you trust.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware_profiles.errors import ImageRefusal, ImageRefusedError

MANIFEST_BYTES_MAX: Final = 64 * 1024
_HEX: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Expectation:
    """Digests that must hold, by where they come from, and the boards named by a manifest."""

    digests: tuple[tuple[str, str], ...]
    compatible: tuple[str, ...] | None


def load_expectation(image: Path, *, sha256: str | None) -> Expectation:
    """Collect what is known of an image.

    Args:
        image: The image file.
        sha256: Digest from the command line.

    Raises:
        ImageRefusedError: nothing vouches for the image, or a file beside it is malformed.
    """
    digests: list[tuple[str, str]] = []
    compatible: tuple[str, ...] | None = None
    if sha256 is not None:
        digests.append(("--sha256", _digest(sha256.lower(), "--sha256")))
    sums = image.with_name(f"{image.name}.sha256")
    if sums.exists():
        digests.append((str(sums), _sum(sums, image.name)))
    manifest = image.with_name(f"{image.name}.json")
    if manifest.exists():
        digest, compatible = _manifest(manifest)
        digests.append((str(manifest), digest))
    if not digests:
        raise ImageRefusedError(
            ImageRefusal.NO_CHECKSUM, f"{image}: nothing vouches for it: give --sha256, or put {sums.name} beside it"
        )
    return Expectation(tuple(digests), compatible)


def check_digests(expectation: Expectation, *, content: str, file: str) -> None:
    """Compare digests: one given may be of the file as it lies there, or of the unpacked content.

    Raises:
        ImageRefusedError: one of them is neither.
    """
    for origin, digest in expectation.digests:
        if digest not in {content, file}:
            raise ImageRefusedError(
                ImageRefusal.WRONG_CHECKSUM, f"{origin} says {digest}; the content has {content}, the file {file}"
            )


def check_board(expectation: Expectation, profile: str) -> None:
    """Refuse an image that is not declared to be for a board.

    Raises:
        ImageRefusedError: other boards are named, or none.
    """
    if expectation.compatible is None:
        raise ImageRefusedError(ImageRefusal.WRONG_BOARD, f"no manifest says that the image is for {profile}")
    if profile not in expectation.compatible:
        named = ", ".join(expectation.compatible) or "no board"
        raise ImageRefusedError(ImageRefusal.WRONG_BOARD, f"the image is for {named}, not for {profile}")


def manifest_text(*, sha256: str, size_bytes: int, compatible: tuple[str, ...], init_format: str) -> str:
    """Manifest of a customised image."""
    content = {
        "format": 1,
        "sha256": sha256,
        "size_bytes": size_bytes,
        "compatible": list(compatible),
        "init_format": init_format,
    }
    return json.dumps(content, indent=2) + "\n"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MANIFEST_BYTES_MAX + 1)
        if len(data) > MANIFEST_BYTES_MAX:
            raise ImageRefusedError(ImageRefusal.BAD_MANIFEST, f"{path}: longer than {MANIFEST_BYTES_MAX} bytes")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageRefusedError(ImageRefusal.BAD_MANIFEST, f"{path}: {error}") from error


def _digest(text: str, origin: str) -> str:
    if not _HEX.fullmatch(text):
        raise ImageRefusedError(ImageRefusal.NO_CHECKSUM, f"{origin}: expected 64 hexadecimal digits")
    return text


def _sum(path: Path, name: str) -> str:
    """Digest in a sha256sum file: a bare one, or that of the line with the image's name."""
    for line in _read(path).splitlines():
        digest, _, rest = line.strip().partition(" ")
        if rest.strip().lstrip("*").rpartition("/")[2] in {"", name}:
            return _digest(digest.lower(), str(path))
    raise ImageRefusedError(ImageRefusal.BAD_MANIFEST, f"{path}: has no line for {name}")


def _manifest(path: Path) -> tuple[str, tuple[str, ...]]:
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ImageRefusedError(ImageRefusal.BAD_MANIFEST, f"{path}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != 1:
        raise ImageRefusedError(ImageRefusal.BAD_MANIFEST, f"{path}: expected format 1")
    boards = content.get("compatible")
    if not isinstance(boards, list) or not all(isinstance(board, str) for board in boards):
        raise ImageRefusedError(ImageRefusal.BAD_MANIFEST, f"{path}: compatible: expected a list of board names")
    return _digest(str(content.get("sha256")), str(path)), tuple(boards)
