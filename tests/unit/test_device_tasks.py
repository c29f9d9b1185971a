"""A job whose artifact the disk does not give back: a failure with words, or a fetch, never the end of the process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from edge_sdk.device.config import DeviceConfig
from edge_sdk.device.job import PinnedBase
from edge_sdk.device.parts import Parts, open_parts
from edge_sdk.device.tasks import Tasks
from edge_sdk.errors import TransportError
from edge_sdk.participant import events as e
from edge_sdk.protocol.ids import Digest
from tests.support.device_process import DeviceProcess, make_model
from tests.support.fake_miners import Keys, make_genesis


class Given:
    """Downloads that bring these bytes, or nothing."""

    def __init__(self, data: bytes | None) -> None:
        self.data = data

    def fetch(self, urls: Sequence[str], digest: Digest, size: int, path: Path) -> int:
        if self.data is None:
            raise TransportError("nobody answers")
        path.write_bytes(self.data)
        return len(self.data)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    artifact, params = make_model()
    genesis = make_genesis(Keys(), artifact_digest=artifact.digest, params=params)
    genesis = replace(genesis, artifact_bytes=len(artifact.data))
    opened = open_parts(DeviceConfig.load(DeviceProcess(tmp_path / "d1", genesis, broker_port=1).config))
    with closing(opened.record), closing(opened.outbox):
        yield opened


def train(parts: Parts, data: bytes | None) -> e.Event | None:
    base = PinnedBase(version=0, root=parts.genesis.model_root)
    return Tasks(parts, Given(data)).train(base)  # type: ignore[arg-type]


def test_what_cannot_be_read_nor_replaced_fails_the_job(parts: Parts) -> None:
    parts.config.artifact_file.mkdir()
    event = train(parts, make_model()[0].data)
    assert isinstance(event, e.TrainingFailed)
    assert "artifact.flm: cannot be written" in event.why


def test_what_is_not_to_be_had_fails_the_job(parts: Parts) -> None:
    event = train(parts, None)
    assert isinstance(event, e.TrainingFailed)
    assert "was not to be had: nobody answers" in event.why
