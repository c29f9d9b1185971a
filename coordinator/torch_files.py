"""``module.py:Net``: a torch module out of a person's own file, which is run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sdk.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from coordinator.authoring.import_onnx import Imported


def import_torch(place: str, *, input_shape: tuple[int, ...], loss: str, smoothing: float = 0.0) -> Imported:
    """Load a torch module, export its forward pass, import that.

    Args:
        place: ``FILE.py:NAME``; NAME is a module, or a class or function that makes one without arguments.
        input_shape: Shape of one example.
        loss: As ``import_onnx``.
        smoothing: As ``import_onnx``.

    Raises:
        ConfigError: torch is not installed, or the place does not name a module.
        TrainingError: the module cannot be exported or imported; the text begins with the place.
    """
    try:
        from coordinator.authoring.from_torch import export_forward
    except ImportError as error:
        raise ConfigError(f"--from-torch {place}: {error}; pip install 'edge-flchain[torch]'") from error
    from coordinator.authoring.import_onnx import import_onnx

    module = load_module(place)
    try:
        return import_onnx(export_forward(module, input_shape), loss=loss, smoothing=smoothing)
    except TrainingError as error:
        raise TrainingError(f"--from-torch {place}: {error}") from error


def load_module(place: str) -> Any:
    """The ``torch.nn.Module`` that a place names.

    Raises:
        ConfigError: the file does not exist or does not run, or the name is no module.
    """
    import torch

    file, _, name = place.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not name.isidentifier():
        raise ConfigError(f"--from-torch {place}: expected FILE.py:NAME")
    if not path.is_file():
        raise ConfigError(f"--from-torch {place}: {path} does not exist")
    found = getattr(_run_file(path, place), name, None)
    if found is None:
        raise ConfigError(f"--from-torch {place}: {path} defines no {name}")
    if isinstance(found, torch.nn.Module):
        return found
    try:
        made = found()
    except Exception as error:  # a person's own code
        raise ConfigError(f"--from-torch {place}: {name}() fails: {type(error).__name__}: {error}") from error
    if not isinstance(made, torch.nn.Module):
        raise ConfigError(f"--from-torch {place}: {name} is no torch.nn.Module, nor does it make one")
    return made


def _run_file(path: Path, place: str) -> Any:
    """Run a file as a module; its own folder is on the path while it runs, as with ``python FILE.py``."""
    spec = importlib.util.spec_from_file_location(f"flchain_from_torch_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a person's own code
        raise ConfigError(f"--from-torch {place}: {path} fails: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module
