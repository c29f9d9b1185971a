"""The client against engines that answer badly; good answers are tested with the real engine."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.ordering.limits import RPC_RESPONSE_BYTES_MAX
from coordinator.ordering.rpc import OrderedLogClient, Submission
from edge_sdk.errors import ConfigError, DecodeError, RemoteProtocolError, TransportError
from edge_sdk.protocol.limits import TX_BYTES_MAX


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fl-") as name:
        yield Path(name) / "rpc"


def submit(path: Path, body: bytes, *, status: int = 200) -> Submission:
    """Submit to an engine that gives this answer."""

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
        writer.close()

    async def scenario() -> Submission:
        server = await asyncio.start_unix_server(accepted, path)
        try:
            async with OrderedLogClient(f"unix:{path}", timeout_s=2) as client:
                return await client.submit(b"tx")
        finally:
            server.close()

    return asyncio.run(scenario())


def result(**values: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": values}).encode()


def error(data: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "data": data}}).encode()


def test_answers_of_cometbft_are_understood(path: Path) -> None:
    accepted = submit(path, result(code=0, data="", log="", codespace="", hash="AB"))
    assert (accepted.code, accepted.is_known) == (0, False)
    path.unlink(missing_ok=True)
    refused = submit(path, result(code=12, log="x" * 1_000))
    assert (refused.code, len(refused.info)) == (12, 256)
    path.unlink(missing_ok=True)
    known = submit(path, error("tx already exists in cache"), status=500)
    assert (known.code, known.is_known) == (0, True)


@pytest.mark.parametrize("data", ["mempool is full: number of txs 5000 (max: 5000)", "m0 is down", None, {}])
def test_no_room_or_no_miner_is_worth_a_retry(path: Path, data: object) -> None:
    with pytest.raises(TransportError):
        submit(path, error(data))


def test_overload_is_worth_a_retry(path: Path) -> None:
    with pytest.raises(TransportError, match="503"):
        submit(path, b"Service Unavailable", status=503)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        result(),
        result(code="0", log=""),
        result(code=True, log=""),
        result(code=0, log=None),
        b'{"result": 1}',
        b'{"result": ' + b"9" * 5_000 + b"}",
    ],
)
def test_what_is_no_answer_is_the_peers_fault(path: Path, body: bytes) -> None:
    with pytest.raises(DecodeError):
        submit(path, body)


def test_an_endless_answer_is_cut(path: Path) -> None:
    with pytest.raises(RemoteProtocolError, match="larger"):
        submit(path, b" " * (RPC_RESPONSE_BYTES_MAX + 1))


def test_nobody_there_is_a_transport_error(path: Path) -> None:
    async def scenario() -> None:
        async with OrderedLogClient(f"unix:{path}") as client:
            with pytest.raises(TransportError):
                await client.height()
            for tx in (b"", bytes(TX_BYTES_MAX + 1)):
                with pytest.raises(ValueError, match="transaction of"):
                    await client.submit(tx)

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["", "unix:", "/path", "tcp://host:1", "file:///x"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        OrderedLogClient(url)
