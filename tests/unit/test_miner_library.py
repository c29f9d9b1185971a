"""Blobs and models: trusted by digest and root alone, whoever gave them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from coordinator.ledger.blobs import BlobStore
from coordinator.ledger.store import LedgerStore
from coordinator.library import Library
from coordinator.merging import MergedModel
from coordinator.peers import Peers
from coordinator.serving.service import HttpService
from coordinator.upload_form import blob_bytes_max, upload_check
from edge_sdk.errors import LedgerError
from edge_sdk.protocol import wire
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import Digest, MinerId
from edge_sdk.protocol.messages import Codec, Reason
from edge_sdk.protocol.model import model_root
from edge_sdk.training.codecs.reading import UpdateForm
from tests.support.chain import Names, toy_payload

PEER = MinerId("miner-1")
BLOB = bytes(range(200)) * 50
DIGEST = Digest(hashlib.sha256(BLOB).digest())

Answer = Callable[[Request], Awaitable[Response]]


def answering(body: bytes, *, status: int = 200) -> Answer:
    async def answer(_request: Request) -> Response:
        return Response(body, status_code=status)

    return answer


async def endless(_request: Request) -> Response:
    async def pieces() -> object:
        for _ in range(10_000):
            yield b"x" * 65_536
            await asyncio.sleep(0)  # lets the server see that nobody listens any more

    return StreamingResponse(pieces())  # type: ignore[arg-type]


def with_peer(blob: Answer, test: Callable[[Peers], Awaitable[None]], *, model: Answer | None = None) -> None:
    """Run a test against one peer that answers as given."""
    routes = [
        Route("/v1/blobs/sha256/{digest}", blob),
        Route("/v1/models/{version}", model or answering(b"", status=404)),
    ]

    async def scenario() -> None:
        service = HttpService(Starlette(routes=routes))
        await service.start()
        peers = Peers({PEER: f"http://127.0.0.1:{service.port}"})
        try:
            await test(peers)
        finally:
            await peers.close()
            await service.stop()

    asyncio.run(scenario())


def library(tmp_path: Path, names: Names, peers: Peers) -> tuple[Library, BlobStore, LedgerStore]:
    store = LedgerStore.open(tmp_path / "ledger.sqlite3", genesis=names.genesis, miner_id=names.miners[0])
    blobs = BlobStore(tmp_path / "blobs")
    return Library(names.genesis, blobs, store, peers), blobs, store


def test_a_peers_blob_is_taken_by_its_digest() -> None:
    async def test(peers: Peers) -> None:
        assert await peers.fetch(DIGEST, bytes_expected=len(BLOB)) == BLOB

    with_peer(answering(BLOB), test)


@pytest.mark.parametrize(
    "answer",
    [
        answering(BLOB[:-1]),
        answering(BLOB + b"x"),
        answering(bytes(len(BLOB))),
        answering(BLOB, status=500),
        endless,
    ],
    ids=["short", "long", "other", "error", "endless"],
)
def test_a_wrong_answer_is_no_blob(answer: Answer) -> None:
    async def test(peers: Peers) -> None:
        assert await peers.fetch(DIGEST, bytes_expected=len(BLOB)) is None

    with_peer(answer, test)


def test_a_dead_peer_is_passed_over() -> None:
    async def test(peers: Peers) -> None:
        both = Peers({MinerId("dead"): "http://127.0.0.1:9", **peers._urls})
        assert await both.fetch(DIGEST, bytes_expected=len(BLOB), preferred=(MinerId("dead"), PEER)) == BLOB
        await both.close()

    with_peer(answering(BLOB), test)


def test_a_rotten_blob_is_fetched_again(tmp_path: Path) -> None:
    async def test(peers: Peers) -> None:
        shelf, blobs, store = library(tmp_path, Names(), peers)
        blobs.put(BLOB)
        blobs.path(DIGEST).write_bytes(b"rot")
        assert shelf.held(DIGEST) is None
        assert await shelf.blob(DIGEST, len(BLOB)) == BLOB
        assert shelf.held(DIGEST) == BLOB
        store.close()

    with_peer(answering(BLOB), test)


@pytest.mark.parametrize("is_true", [True, False])
def test_a_missing_model_is_taken_if_its_root_is_certified(tmp_path: Path, *, is_true: bool) -> None:
    names = Names()
    changed = replace(names.model.tensors[1], values=bytes(8))
    served = names.model if is_true else replace(names.model, tensors=(names.model.tensors[0], changed))
    blob = wire.to_bytes(served)
    document = json.dumps({"model_digest": sha256(blob).hex(), "model_bytes": len(blob)}).encode()

    async def test(peers: Peers) -> None:
        shelf, _, store = library(tmp_path, names, peers)
        found = await shelf.params(3, model_root(names.model))
        assert found == (names.model if is_true else None)
        assert (store.model(3) is not None) is is_true
        store.close()

    with_peer(answering(blob), test, model=answering(document))


@pytest.mark.parametrize(
    "document", [b"", b"[]", b'{"model_digest": "zz"}', b'{"model_digest": "00", "model_bytes": 1}']
)
def test_nonsense_is_no_model(tmp_path: Path, document: bytes) -> None:
    async def test(peers: Peers) -> None:
        assert await peers.model_offers(3) == []

    with_peer(answering(b""), test, model=answering(document))


def test_an_own_model_with_another_root_gives_way(tmp_path: Path) -> None:
    names = Names()
    wrong = replace(names.model, tensors=(names.model.tensors[0], replace(names.model.tensors[1], values=bytes(8))))
    blob = wire.to_bytes(names.model)
    document = json.dumps({"model_digest": sha256(blob).hex(), "model_bytes": len(blob)}).encode()

    async def test(peers: Peers) -> None:
        shelf, _, store = library(tmp_path, names, peers)
        shelf.add_merged(1, MergedModel(params=wrong, blob=wire.to_bytes(wrong), root=model_root(wrong)))
        assert await shelf.params(1, model_root(names.model)) == names.model
        row = store.model(1)
        assert row is not None
        assert row.model_root == model_root(names.model)
        store.close()

    with_peer(answering(blob), test, model=answering(document))


def test_only_models_and_the_artifact_are_public(tmp_path: Path) -> None:
    async def test(peers: Peers) -> None:
        names = Names()
        shelf, blobs, store = library(tmp_path, names, peers)
        model_blob = wire.to_bytes(names.model)
        assert shelf.add_genesis_model(model_blob) == names.model
        blobs.put(BLOB)
        blobs.put(b"artifact")
        assert shelf.public(sha256(model_blob)) == model_blob
        assert shelf.public(names.genesis.artifact_digest) == b"artifact"
        assert shelf.public(DIGEST) is None  # an update is between its device and the miners
        store.close()

    with_peer(answering(b""), test)


def test_genesis_names_its_model(tmp_path: Path) -> None:
    async def test(peers: Peers) -> None:
        names = Names()
        shelf, _, store = library(tmp_path, names, peers)
        with pytest.raises(LedgerError, match="version 0"):
            shelf.add_genesis_model(wire.to_bytes(names.model) + b"x")
        store.close()

    with_peer(answering(b""), test)


def test_form_of_an_upload() -> None:
    names = Names()
    form = UpdateForm.of_task(names.genesis.params)
    check = upload_check(names.model, form)
    payload = toy_payload(1)
    blob = wire.to_bytes(payload)
    manifest = names.manifest("device-1", 0)
    assert check(manifest, blob) is Reason.NONE
    assert len(blob) <= blob_bytes_max(names.model, form)
    assert check(manifest, blob[:-1]) is Reason.MALFORMED
    assert check(replace(manifest, codec=Codec.INT16_DENSE), blob) is Reason.CODEC
    assert check(manifest, wire.to_bytes(replace(payload, tensors=payload.tensors[::-1]))) is Reason.SHAPE
    coarse = replace(payload.tensors[0], exponent=29)
    assert check(manifest, wire.to_bytes(replace(payload, tensors=(coarse, payload.tensors[1])))) is Reason.EXPONENT
