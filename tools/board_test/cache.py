"""Where the slow pieces stay between runs: outside the tree, one folder per recipe."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

VARIABLE: Final = "FLCHAIN_CACHE"


def cache_root() -> Path:
    """``$FLCHAIN_CACHE``, else ``~/.cache/edge-flchain``."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "edge-flchain"


def cached(name: str, recipe: str, make: Callable[[Path], None]) -> Path:
    """Return the folder ``name`` of this recipe, made on first use.

    The folder gets its name only when it is complete, so an interrupted run leaves nothing that looks like a result.

    Args:
        name: What it holds; older recipes of the same name are removed.
        recipe: Everything that the result depends on, as text.
        make: Fills an empty folder.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        make(partial)
        for old in root.glob(f"{name}-*"):
            if old != partial:
                shutil.rmtree(old)
        partial.rename(folder)
    return folder
