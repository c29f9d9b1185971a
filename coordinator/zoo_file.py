"""``python -m coordinator.zoo_file NAME FOLDER``: a model of the zoo as NAME.flm and NAME.model.cbor.

For measurements of boards, in its usual shape; a fleet's own artifact comes from ``flchain model build``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge_sdk.errors import EdgeFLError
from edge_sdk.protocol import wire

BATCH: Final = 32
SEED: Final = 0
SHAPES: Final = {"mlp": ((64,), 10), "lenet": ((1, 28, 28), 10), "cnn1d": ((6, 128), 6)}
"""Input and classes: the digits of scikit-learn, images of MNIST's size, windows of a motion sensor."""


def main(argv: Sequence[str]) -> int:
    """Write both files; 0 when they are there."""
    if len(argv) != 2 or argv[0] not in SHAPES:
        print(f"expected NAME FOLDER, with NAME one of {', '.join(SHAPES)}", file=sys.stderr)  # noqa: T201
        return 2
    name, folder = argv[0], Path(argv[1])
    try:
        from coordinator.authoring import zoo

        shape, classes = SHAPES[name]
        artifact, params = zoo.build(name, shape, classes, batch=BATCH, seed=SEED)
        (folder / f"{name}.flm").write_bytes(artifact.data)
        (folder / f"{name}.model.cbor").write_bytes(wire.to_bytes(params))
    except ModuleNotFoundError as error:
        print(f"package {error.name!r} is not installed: pip install 'edge-flchain[authoring]'", file=sys.stderr)  # noqa: T201
        return 2
    except (EdgeFLError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
