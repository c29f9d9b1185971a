"""What a device takes up again after a restart under another key."""

from __future__ import annotations

import secrets
from contextlib import closing
from pathlib import Path

import pytest

from edge_sdk.adapters.keys import create_key
from edge_sdk.adapters.outbox import NewUpdate
from edge_sdk.device.config import DeviceConfig
from edge_sdk.device.parts import open_parts
from edge_sdk.device.restore import restored
from edge_sdk.protocol.cose import sign
from edge_sdk.protocol.digest import update_digest
from edge_sdk.protocol.messages import Algorithm, Domain
from tests.support.device_process import DeviceProcess, make_model
from tests.support.fake_miners import Keys, make_genesis


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_an_update_knows_whether_its_key_is_still_the_one(tmp_path: Path, algorithm: Algorithm) -> None:
    artifact, params = make_model()
    device = DeviceProcess(
        tmp_path / "d1", make_genesis(Keys(), artifact_digest=artifact.digest, params=params), broker_port=1
    )
    key_file = device.folder / "key.pem"
    key_file.unlink()
    create_key(key_file, algorithm)
    parts = open_parts(DeviceConfig.load(device.config))
    envelope = sign(
        b"manifest", signer=parts.signer, domain=Domain.UPDATE, chain_id=parts.genesis.chain_id, sender="d1"
    )
    with closing(parts.record), closing(parts.outbox) as outbox:
        outbox.store(
            NewUpdate(
                digest=update_digest(envelope),
                seq=outbox.next_seq,
                base_version=0,
                expiry_height=100,
                envelope=envelope,
                blob=secrets.token_bytes(8),
                created_s=parts.clock.time_s(),
                residual=b"",
            )
        )
        assert [update.is_of_old_key for update in restored(parts, now_ms=0).updates] == [False]

    key_file.unlink()
    create_key(key_file, algorithm)
    parts = open_parts(DeviceConfig.load(device.config))
    with closing(parts.record), closing(parts.outbox):
        assert [update.is_of_old_key for update in restored(parts, now_ms=0).updates] == [True]
