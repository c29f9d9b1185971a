"""``python -m tests.support.add_flatbuffers NAME.flm ...``: LiteRT's flatbuffer into artifacts, with tensorflow."""

import sys
from pathlib import Path

from coordinator.flatbuffers import with_flatbuffer
from edge_sdk.training.artifact import Artifact

for file in map(Path, sys.argv[1:]):
    file.write_bytes(with_flatbuffer(Artifact.load(file.read_bytes())).data)
