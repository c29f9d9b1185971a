"""The training backends by name, each imported when it is chosen.

A name may say a device: ``onnxruntime`` is ``onnxruntime:cpu``; ``onnxruntime:cuda`` and ``onnxruntime:tensorrt`` are
the GPU of a Jetson. What was asked for and is not there is an error, never a silent fallback: a board that trains ten
times slower than planned should say so.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, NamedTuple

from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType

    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.backend import Backend


class _Place(NamedTuple):
    """Where a backend's class is, and the devices that it can be asked for."""

    module: str
    name: str
    package: str
    """What to install."""
    devices: tuple[str, ...] = ()


BACKENDS: Final = {
    "onnxruntime": _Place("edge_sdk.training.onnx_backend", "OnnxBackend", "onnxruntime", ("cpu", "cuda", "tensorrt")),
    "numpy": _Place("edge_sdk.training.numpy_backend", "NumpyBackend", "numpy"),
    "litert": _Place("edge_sdk.training.litert_backend", "LitertBackend", "edge-flchain[litert]"),
    "torch": _Place("edge_sdk.training.torch_backend", "TorchBackend", "edge-flchain[torch]", ("cpu", "cuda")),
}
BACKEND_NAMES: Final = tuple(
    name for kind, place in BACKENDS.items() for name in (kind, *(f"{kind}:{device}" for device in place.devices))
)
"""Everything that ``load_backend`` takes."""


def load_backend(name: str, artifact: Artifact) -> Backend:
    """Import a backend and give it the artifact.

    Raises:
        ConfigError: unknown name, its package is not installed, or it does not find the device.
    """
    module, device = _import(name)
    backend_class = getattr(module, BACKENDS[name.partition(":")[0]].name)
    backend: Backend = backend_class(artifact, device=device) if device else backend_class(artifact)
    return backend


def describe_backend(name: str) -> str:
    """What runs it here: the package and its version.

    Raises:
        ConfigError: as ``load_backend``.
    """
    module, device = _import(name)
    if device:
        module.check_device(device)
    return str(module.RUNTIME)


def _import(name: str) -> tuple[ModuleType, str]:
    """The module of a backend, and the device that the name says."""
    if name not in BACKEND_NAMES:
        raise ConfigError(f"backend {name!r}: expected one of {', '.join(BACKEND_NAMES)}")
    kind, _, device = name.partition(":")
    place = BACKENDS[kind]
    try:
        return importlib.import_module(place.module), device
    except ImportError as error:
        raise ConfigError(f"backend {name!r} cannot be loaded: {error}; pip install '{place.package}'") from error
