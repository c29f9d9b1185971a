"""The socket protocol from both sides: our server under raw frames, our connection against bad applications."""

from __future__ import annotations

import asyncio
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from coordinator.ordering import abci_pb2 as abci
from coordinator.ordering import abci_server
from coordinator.ordering.abci_server import AbciHandler, decode_genesis, encode_genesis, serve_abci
from coordinator.ordering.connection import AbciConnection, AbciLink
from coordinator.ordering.frames import encode_frame, read_frame
from coordinator.ordering.limits import ABCI_FRAME_BYTES_MAX
from coordinator.ordering.log import decide
from edge_sdk.errors import ConfigError, ConnectError, DecodeError, RemoteProtocolError, StoreError, TransportError
from tests.support.hash_chain import HashChain

Dialogue = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fl-") as name:  # short enough for a socket path
        yield Path(name)


@asynccontextmanager
async def served(handler: AbciHandler, path: Path) -> AsyncIterator[asyncio.Task[None]]:
    ready = asyncio.Event()
    serving = asyncio.create_task(serve_abci(handler, path, ready=ready))
    await ready.wait()
    try:
        yield serving
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *requests: abci.Request) -> list[str | None]:
    """Send requests at once and name the answers."""
    writer.write(b"".join(encode_frame(request.SerializeToString()) for request in requests))
    kinds = []
    for _ in requests:
        async with asyncio.timeout(2):
            frame = await read_frame(reader, bytes_max=ABCI_FRAME_BYTES_MAX)
        if frame is None:
            break
        kinds.append(abci.Response.FromString(frame).WhichOneof("value"))
    return kinds


def test_four_connections_answer_every_kind_of_request_in_order(folder: Path) -> None:
    kinds = [field.name for field in abci.Request.DESCRIPTOR.oneofs[0].fields]
    assert len(kinds) == 16

    async def scenario() -> None:
        async with served(HashChain(folder / "db"), folder / "abci"):
            ends = [await asyncio.open_unix_connection(folder / "abci") for _ in range(4)]
            init = abci.RequestInitChain(chain_id="c", app_state_bytes=encode_genesis(b"genesis"))
            finalize = abci.RequestFinalizeBlock(height=1, txs=[b"tx"])
            assert await ask(*ends[0], abci.Request(init_chain=init)) == ["init_chain"]
            requests = []
            for kind in kinds:
                request = abci.Request()
                getattr(request, kind).SetInParent()
                requests.append(request)
            requests[kinds.index("init_chain")].init_chain.CopyFrom(init)
            requests[kinds.index("finalize_block")].finalize_block.CopyFrom(finalize)
            commit = requests.pop(kinds.index("commit"))
            requests.append(commit)  # after finalize_block
            expected = [kind for kind in kinds if kind != "commit"] + ["commit"]
            assert await ask(*ends[0], *requests) == expected
            for end in ends[1:]:
                assert await ask(*end, abci.Request(echo=abci.RequestEcho(message="x"))) == ["echo"]
            for _, writer in ends:
                writer.close()

    asyncio.run(scenario())


def test_the_socket_is_for_its_owner_only_and_goes_away(folder: Path) -> None:
    async def scenario() -> None:
        async with served(HashChain(folder / "db"), folder / "abci"):
            assert stat.S_IMODE((folder / "abci").stat().st_mode) == 0o600
            with pytest.raises(ConfigError, match="another process"):
                await serve_abci(HashChain(folder / "db2"), folder / "abci")
        assert not (folder / "abci").exists()

    asyncio.run(scenario())


def test_a_dead_process_socket_is_replaced_and_other_files_are_not(folder: Path) -> None:
    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(folder / "abci"))
        assert (folder / "abci").exists()
        async with served(HashChain(folder / "db"), folder / "abci"):
            reader, writer = await asyncio.open_unix_connection(folder / "abci")
            assert await ask(reader, writer, abci.Request(info=abci.RequestInfo())) == ["info"]
            writer.close()
        (folder / "file").write_text("precious")
        with pytest.raises(ConfigError, match="not a socket"):
            await serve_abci(HashChain(folder / "db"), folder / "file")
        with pytest.raises(ConfigError, match="socket path"):
            await serve_abci(HashChain(folder / "db"), folder / ("x" * 108))

    asyncio.run(scenario())
    assert (folder / "file").read_text() == "precious"


BAD_FRAMES = [
    b"\xff\xff\xff\x7f",  # 256 MB to come
    encode_frame(b""),  # no kind
    encode_frame(b"\xff"),  # not protobuf
    encode_frame(abci.Request(finalize_block=abci.RequestFinalizeBlock(height=9)).SerializeToString()),
    encode_frame(abci.Request(init_chain=abci.RequestInitChain(app_state_bytes=b"{}")).SerializeToString()),
]


@pytest.mark.parametrize("data", BAD_FRAMES)
def test_an_engine_that_breaks_the_contract_is_told_and_only_its_connection_closed(folder: Path, data: bytes) -> None:
    async def scenario() -> None:
        async with served(HashChain(folder / "db"), folder / "abci") as serving:
            reader, writer = await asyncio.open_unix_connection(folder / "abci")
            writer.write(data)
            async with asyncio.timeout(2):
                frame = await read_frame(reader, bytes_max=10_000)
            assert frame is not None
            assert abci.Response.FromString(frame).exception.error
            async with asyncio.timeout(2):
                assert await reader.read() == b""
            writer.close()
            other = await asyncio.open_unix_connection(folder / "abci")
            assert await ask(*other, abci.Request(info=abci.RequestInfo())) == ["info"]
            other[1].close()
            assert not serving.done()

    asyncio.run(scenario())


def test_connections_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abci_server, "ABCI_CONNECTIONS_MAX", 2)

    async def scenario() -> None:
        async with served(HashChain(folder / "db"), folder / "abci"):
            ends = [await asyncio.open_unix_connection(folder / "abci") for _ in range(2)]
            for end in ends:
                await ask(*end, abci.Request(flush=abci.RequestFlush()))
            third = await asyncio.open_unix_connection(folder / "abci")
            async with asyncio.timeout(2):
                assert await third[0].read() == b""
            ends[0][1].close()
            answers: list[str | None] = []
            while not answers:  # the server notices a little later
                reader, writer = await asyncio.open_unix_connection(folder / "abci")
                with suppress(ConnectionError):
                    answers = await ask(reader, writer, abci.Request(flush=abci.RequestFlush()))
                writer.close()
            assert answers == ["flush"]
            for _, writer in (*ends, third):
                writer.close()

    asyncio.run(scenario())


def test_an_application_whose_disk_fails_stops(folder: Path) -> None:
    class Failing(HashChain):
        async def check_tx(self, tx: bytes) -> tuple[int, str]:
            raise StoreError("disk full")

    async def scenario() -> None:
        async with served(Failing(folder / "db"), folder / "abci") as serving:
            reader, writer = await asyncio.open_unix_connection(folder / "abci")
            assert await ask(reader, writer, abci.Request(check_tx=abci.RequestCheckTx(tx=b"x"))) == []
            writer.close()
            with pytest.raises(ExceptionGroup) as caught:
                await serving
            assert caught.group_contains(StoreError, match="disk full")

    asyncio.run(scenario())


def test_a_handler_never_runs_two_calls_at_a_time(folder: Path) -> None:
    class Slow(HashChain):
        running = 0
        most = 0

        async def check_tx(self, tx: bytes) -> tuple[int, str]:
            Slow.running += 1
            Slow.most = max(Slow.most, Slow.running)
            await asyncio.sleep(0.01)
            Slow.running -= 1
            return 0, ""

    async def scenario() -> None:
        async with served(Slow(folder / "db"), folder / "abci"):
            ends = [await asyncio.open_unix_connection(folder / "abci") for _ in range(4)]
            check = abci.Request(check_tx=abci.RequestCheckTx(tx=b"x"))
            await asyncio.gather(*(ask(*end, check) for end in ends))
            for _, writer in ends:
                writer.close()
        assert Slow.most == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("data", [b"", b"{}", b"12", b'"%%"', b"\xff", b"[" * 100_000, b'"' + b"A" * 2_000_000 + b'"'])
def test_app_state_that_is_no_base64_text_is_refused(data: bytes) -> None:
    assert decode_genesis(encode_genesis(b"\x00\xff")) == b"\x00\xff"
    with pytest.raises(DecodeError):
        decode_genesis(data)


@asynccontextmanager
async def connected(folder: Path, dialogue: Dialogue) -> AsyncIterator[tuple[AbciLink, asyncio.Task[None]]]:
    """Our link to an application that follows a script on every connection."""

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await dialogue(reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(accepted, folder / "app")
    link = await AbciLink.open(folder / "app", timeout_s=0.2, execute_s=0.2)
    reading = asyncio.create_task(link.read())
    try:
        yield link, reading
    finally:
        link.close()
        await asyncio.gather(reading, return_exceptions=True)
        server.close()


def answering(*responses: abci.Response | bytes) -> Dialogue:
    """Reads one request, then sends these answers, then waits for the end."""

    async def dialogue(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader, bytes_max=ABCI_FRAME_BYTES_MAX)
        for response in responses:
            writer.write(response if isinstance(response, bytes) else encode_frame(response.SerializeToString()))
        await reader.read()

    return dialogue


BAD_ANSWERS: list[tuple[str, Sequence[abci.Response | bytes], type[Exception]]] = [
    ("another kind", [abci.Response(commit=abci.ResponseCommit())], RemoteProtocolError),
    ("exception", [abci.Response(exception=abci.ResponseException(error="no"))], RemoteProtocolError),
    ("empty", [abci.Response()], RemoteProtocolError),
    ("not protobuf", [encode_frame(b"\xff\xff")], DecodeError),
    ("oversize", [b"\xff\xff\xff\x7f"], DecodeError),
]


@pytest.mark.parametrize(
    ("answers", "error"), [case[1:] for case in BAD_ANSWERS], ids=[case[0] for case in BAD_ANSWERS]
)
def test_a_bad_answer_fails_the_call_and_the_connection(
    folder: Path, answers: Sequence[abci.Response | bytes], error: type[Exception]
) -> None:
    async def scenario() -> None:
        async with connected(folder, answering(*answers)) as (link, reading):
            with pytest.raises(TransportError):
                await link.info()
            with pytest.raises(error):
                await reading

    asyncio.run(scenario())


def test_silence_is_a_timeout_that_names_the_request(folder: Path) -> None:
    async def scenario() -> None:
        async with connected(folder, answering()) as (link, reading):
            with pytest.raises(TransportError, match=r"no answer to commit within 0\.2 s"):
                await link.commit()
            with pytest.raises(TransportError, match="no answer to commit"):
                await reading

    asyncio.run(scenario())


def test_bad_values_in_good_answers(folder: Path) -> None:
    flush = abci.Response(flush=abci.ResponseFlush())
    height = decide(previous_hash=b"", height=1, time_s=0, proposer="m", previous_app_hash=b"", txs=[b"a", b"b"])
    one_result = abci.ResponseFinalizeBlock(tx_results=[abci.ExecTxResult()], app_hash=b"h")
    long_hash = abci.ResponseInfo(last_block_height=1, last_block_app_hash=bytes(65))
    cases: list[tuple[abci.Response, Callable[[AbciLink], Awaitable[object]]]] = [
        (abci.Response(finalize_block=one_result), lambda link: link.finalize(height)),
        (abci.Response(info=long_hash), lambda link: link.info()),
        (abci.Response(info=abci.ResponseInfo(last_block_height=-1)), lambda link: link.info()),
        (
            abci.Response(prepare_proposal=abci.ResponsePrepareProposal(txs=[b""])),
            lambda link: link.prepare([], height=1, time_s=0, proposer="m"),
        ),
        (
            abci.Response(prepare_proposal=abci.ResponsePrepareProposal(txs=[b"x"] * 4_097)),
            lambda link: link.prepare([], height=1, time_s=0, proposer="m"),
        ),
    ]

    async def scenario(response: abci.Response, call: Callable[[AbciLink], Awaitable[object]]) -> None:
        async with connected(folder, answering(response, flush)) as (link, _):
            with pytest.raises(RemoteProtocolError):
                await call(link)

    for response, call in cases:
        asyncio.run(scenario(response, call))
        (folder / "app").unlink(missing_ok=True)


def test_a_cancelled_call_does_not_shift_the_answers(folder: Path) -> None:
    async def scenario() -> None:
        async with served(HashChain(folder / "db"), folder / "abci"):
            connection = await AbciConnection.open(folder / "abci", timeout_s=1)
            reading = asyncio.create_task(connection.read())
            call = asyncio.create_task(connection.call(abci.Request(echo=abci.RequestEcho(message="a")), timeout_s=1))
            await asyncio.sleep(0)
            call.cancel()
            answer = await connection.call(abci.Request(echo=abci.RequestEcho(message="b")), timeout_s=1)
            assert answer.echo.message == "b"
            connection.close("done")
            with pytest.raises(TransportError, match="done"):
                await reading
            with pytest.raises(TransportError, match="done"):
                await connection.call(abci.Request(flush=abci.RequestFlush()), timeout_s=1)

    asyncio.run(scenario())


def test_nobody_listens(folder: Path) -> None:
    with pytest.raises(ConnectError):
        asyncio.run(AbciLink.open(folder / "nothing", timeout_s=1, execute_s=1))


def test_field_numbers_are_those_of_cometbft() -> None:
    """Bytes as CometBFT v0.38 writes them, worked out by hand from its numbers: tag = number << 3 | type."""
    finalize = abci.Request.FromString(
        bytes.fromhex("a20112" + "0a0161" + "1200" + "2201ff" + "2807" + "32020809" + "4202aabb")
    ).finalize_block
    assert (list(finalize.txs), finalize.hash, finalize.height) == ([b"a"], b"\xff", 7)
    assert (finalize.time.seconds, finalize.proposer_address) == (9, b"\xaa\xbb")
    result = abci.ResponseFinalizeBlock(tx_results=[abci.ExecTxResult(code=5, log="x")], app_hash=b"\x01")
    assert abci.Response(finalize_block=result).SerializeToString().hex() == "aa010a" + "12050805" + "1a0178" + "2a0101"
    info = abci.ResponseInfo(last_block_height=3, last_block_app_hash=b"\x01")
    assert abci.Response(info=info).SerializeToString().hex() == "2205" + "2003" + "2a0101"
    accept = abci.ResponseProcessProposal(status=abci.ResponseProcessProposal.ACCEPT)
    assert abci.Response(process_proposal=accept).SerializeToString().hex() == "920102" + "0801"
    assert abci.Response(commit=abci.ResponseCommit(retain_height=4)).SerializeToString().hex() == "6202" + "1804"
