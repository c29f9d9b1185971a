"""``flchain model pull`` against miners that serve and miners that lie, over a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator import cli
from coordinator.serving.http import create_app
from coordinator.serving.metrics import MinerMetrics
from coordinator.serving.service import HttpService
from coordinator.setup import build_genesis, default_params
from edge_sdk.protocol import certificate, cose, wire
from edge_sdk.protocol.digest import miner_set_hash, sha256
from edge_sdk.protocol.ids import MinerId
from edge_sdk.protocol.messages import (
    Certificate,
    CertificateStatement,
    Domain,
    Genesis,
    MinerRecord,
    ModelParams,
    ModelTensor,
)
from edge_sdk.protocol.model import model_root
from tests.support.serving import CHAIN, TASK, FakeView, Log

SIGNERS = {MinerId(f"m{index}"): cose.SoftwareSigner(Ed25519PrivateKey.generate()) for index in range(4)}


def params_of(value: int) -> ModelParams:
    values = value.to_bytes(4, "little", signed=True)
    tensor = ModelTensor(name="b", shape=(1,), exponent=-24, channel_axis=-1, values=values, scale_m=b"", scale_k=b"")
    return ModelParams(tensors=(tensor,))


GENESIS: Genesis = build_genesis(
    chain_id=CHAIN,
    task=TASK,
    created_s=1,
    miners=[
        MinerRecord(miner_id=name, key=signer.public_key, power=1, organisation=name)
        for name, signer in SIGNERS.items()
    ],
    registrar=SIGNERS[MinerId("m0")].public_key,
    params=default_params(batch=8),
    artifact=b"artifact",
    model=params_of(0),
)


def certify(params: ModelParams, *, signers: int) -> bytes:
    statement = CertificateStatement(
        chain_id=CHAIN,
        task=TASK,
        version=1,
        height=9,
        block_index=1,
        block_hash=sha256(b"block"),
        model_root=model_root(params),
        miner_set_hash=miner_set_hash(GENESIS.miners),
        expiry_s=4_000_000_000,
    )
    votes = {}
    for name in list(SIGNERS)[:signers]:
        envelope = cose.sign(
            wire.to_bytes(statement),
            signer=SIGNERS[name],
            domain=Domain.CERTIFICATE,
            chain_id=CHAIN,
            sender=name,
        )
        votes[name] = cose.peek(envelope).signature
    found: Certificate = certificate.assemble(statement, votes)
    return wire.to_bytes(found)


@pytest.fixture
def view(tmp_path: Path) -> FakeView:
    folder = tmp_path / "blobs"
    folder.mkdir()
    (tmp_path / "genesis.cbor").write_bytes(wire.to_bytes(GENESIS))
    view = FakeView(folder)
    view.add_model(wire.to_bytes(params_of(0)))
    view.add_model(wire.to_bytes(params_of(7)))
    view.models[1] = replace(view.models[1], certificate=certify(params_of(7), signers=3))
    return view


@pytest.fixture
def url(view: FakeView) -> Iterator[str]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    service = HttpService(create_app(view, Log(), MinerMetrics()))
    asyncio.run_coroutine_threadsafe(service.start(), loop).result(5)
    yield f"http://{service.host}:{service.port}"
    asyncio.run_coroutine_threadsafe(service.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def pull(url: str, tmp_path: Path, *more: str) -> int:
    out = str(tmp_path / "out")
    return cli.main(["model", "pull", "--miner", url, "--genesis", str(tmp_path / "genesis.cbor"), "-o", out, *more])


def test_certified_model_is_pulled_and_verifies_offline(url: str, tmp_path: Path) -> None:
    assert pull(url, tmp_path) == 0
    file = tmp_path / "out" / "model-v1.cbor"
    assert wire.from_bytes(ModelParams, file.read_bytes()) == params_of(7)
    assert cli.main(["model", "verify", str(file), "--genesis", str(tmp_path / "genesis.cbor")]) == 0
    assert pull(url, tmp_path, "--version", "0") == 0


def test_certificate_below_the_quorum(url: str, view: FakeView, tmp_path: Path) -> None:
    view.models[1] = replace(view.models[1], certificate=certify(params_of(7), signers=2))
    assert pull(url, tmp_path) == 1


def test_certificate_of_another_model(url: str, view: FakeView, tmp_path: Path) -> None:
    view.models[1] = replace(view.models[1], certificate=certify(params_of(8), signers=4))
    assert pull(url, tmp_path) == 1


def test_missing_certificate(url: str, view: FakeView, tmp_path: Path) -> None:
    view.models[1] = replace(view.models[1], certificate=None)
    assert pull(url, tmp_path) == 1


@pytest.mark.parametrize("content", [b"", b"short", bytes(1_000_000)])
def test_blob_that_is_not_its_name(url: str, view: FakeView, tmp_path: Path, content: bytes) -> None:
    (view.blob_dir / view.latest().model_digest.hex()).write_bytes(content)
    assert pull(url, tmp_path) == 1


def test_length_beyond_the_bound_is_not_fetched(url: str, view: FakeView, tmp_path: Path) -> None:
    view.models[1] = replace(view.models[1], model_bytes=2**40)
    assert pull(url, tmp_path) == 1


@pytest.fixture(autouse=True)
def nothing_unverified_is_kept(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "pulled" not in request.node.name:
        assert not (tmp_path / "out").exists()


def test_nobody_there(view: FakeView, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pull("http://127.0.0.1:9", tmp_path) == 1
    assert capsys.readouterr().err.count("\n") == 1
