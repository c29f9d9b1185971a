"""The engine's side of the socket protocol: pipelined calls over Unix sockets, answered in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.timestamp_pb2 import Timestamp

from coordinator.ordering import abci_pb2 as abci
from coordinator.ordering.abci_server import ABCI_VERSION, encode_genesis
from coordinator.ordering.frames import encode_frame, read_frame
from coordinator.ordering.limits import ABCI_CALLS_MAX, ABCI_FRAME_BYTES_MAX, APP_HASH_BYTES_MAX, TX_LOG_CHARS_MAX
from coordinator.ordering.log import Decided
from edge_sdk.errors import ConnectError, DecodeError, RemoteProtocolError, TransportError
from edge_sdk.protocol.limits import HEIGHT_BYTES_MAX, HEIGHT_TXS_MAX, TX_BYTES_MAX

_FLUSH: Final = encode_frame(abci.Request(flush=abci.RequestFlush()).SerializeToString())


class AbciConnection:
    """One socket to an application. ``read`` must run beside the calls; when it ends, every waiting call fails."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path) -> None:
        """Use ``open``."""
        self._reader = reader
        self._writer = writer
        self._path = path
        self._waiting: deque[tuple[str, asyncio.Future[abci.Response] | None]] = deque()
        self._lost = ""
        """Why it is closed; empty while it is open."""

    @classmethod
    async def open(cls, path: Path, *, timeout_s: float) -> Self:
        """Connect.

        Raises:
            ConnectError: nobody listens there.
        """
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(path)
        except (OSError, TimeoutError) as error:
            raise ConnectError(f"{path}: {error}") from error
        return cls(reader, writer, path)

    async def read(self) -> None:
        """Hand answers to their calls until the connection ends, which is always an error.

        Raises:
            TransportError: the connection is lost.
            RemoteProtocolError: the application answered with an exception or out of turn.
        """
        try:
            while (frame := await read_frame(self._reader, bytes_max=ABCI_FRAME_BYTES_MAX)) is not None:
                self._hand_over(_parse(frame))
            raise TransportError(f"{self._path}: {self._lost or 'closed by the application'}")
        except (OSError, asyncio.IncompleteReadError) as error:
            raise TransportError(f"{self._path}: {self._lost or error}") from error
        finally:
            self.close("connection lost")

    def close(self, reason: str) -> None:
        """Close the socket and fail the calls that wait; the first reason stays."""
        self._lost = self._lost or reason
        self._writer.close()
        while self._waiting:
            _, answer = self._waiting.popleft()
            if answer is not None and not answer.done():
                answer.set_exception(TransportError(f"{self._path}: {self._lost}"))
                answer.exception()  # a call that gave up no longer looks at it

    async def call(self, request: abci.Request, *, timeout_s: float) -> abci.Response:
        """Send one request and a flush, as CometBFT does, and wait for the answer.

        A call may be cancelled; its answer is then dropped when it comes.

        Raises:
            TransportError: no answer in time (the connection is closed then) or connection lost.
        """
        if self._lost or len(self._waiting) >= ABCI_CALLS_MAX:
            raise TransportError(f"{self._path}: {self._lost or 'too many calls wait'}")
        kind = request.WhichOneof("value")
        assert kind is not None, "a request names its kind"
        answer: asyncio.Future[abci.Response] = asyncio.get_running_loop().create_future()
        self._waiting.append((kind, answer))
        self._waiting.append(("flush", None))
        self._writer.write(encode_frame(request.SerializeToString()) + _FLUSH)
        try:
            async with asyncio.timeout(timeout_s):
                await self._writer.drain()
                return await answer
        except TimeoutError as error:
            self.close(f"no answer to {kind} within {timeout_s:g} s")
            raise TransportError(f"{self._path}: {self._lost}") from error
        except OSError as error:
            self.close(str(error))
            raise TransportError(f"{self._path}: {error}") from error

    def _hand_over(self, response: abci.Response) -> None:
        kind = response.WhichOneof("value")
        if kind == "exception":
            raise RemoteProtocolError(f"{self._path}: {response.exception.error[:TX_LOG_CHARS_MAX]}")
        if not self._waiting or self._waiting[0][0] != kind:
            raise RemoteProtocolError(f"{self._path}: unexpected response {kind}")
        _, answer = self._waiting.popleft()
        if answer is not None and not answer.done():
            answer.set_result(response)


class AbciLink:
    """The connections to one application: consensus, and mempool, whose checks need not wait behind an execution."""

    def __init__(
        self, consensus: AbciConnection, mempool: AbciConnection, *, timeout_s: float, execute_s: float
    ) -> None:
        """Use ``open``. ``timeout_s`` bounds questions, ``execute_s`` the execution and commit of a height."""
        self._consensus = consensus
        self._mempool = mempool
        self._timeout_s = timeout_s
        self._execute_s = execute_s

    @classmethod
    async def open(cls, path: Path, *, timeout_s: float, execute_s: float) -> Self:
        """Connect.

        Raises:
            ConnectError: the application does not listen.
        """
        consensus = await AbciConnection.open(path, timeout_s=timeout_s)
        try:
            mempool = await AbciConnection.open(path, timeout_s=timeout_s)
        except BaseException:
            consensus.close("unused")
            raise
        return cls(consensus, mempool, timeout_s=timeout_s, execute_s=execute_s)

    async def read(self) -> None:
        """Serve both connections; ends with the error of the first that fails."""
        readers = [asyncio.ensure_future(connection.read()) for connection in (self._consensus, self._mempool)]
        try:
            done, _ = await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
            await done.pop()
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    def close(self) -> None:
        """Close both connections."""
        self._consensus.close("session ended")
        self._mempool.close("session ended")

    async def info(self) -> tuple[int, bytes]:
        """Last committed height and its app hash."""
        request = abci.Request(info=abci.RequestInfo(version="edge-flchain local", abci_version=ABCI_VERSION))
        info = (await self._consensus.call(request, timeout_s=self._timeout_s)).info
        if info.last_block_height < 0:
            raise DecodeError(f"last block height {info.last_block_height}")
        return info.last_block_height, _checked_app_hash(info.last_block_app_hash)

    async def init_chain(self, chain_id: str, genesis_bytes: bytes) -> bytes:
        """Start from genesis; returns the app hash of height 0."""
        request = abci.Request(
            init_chain=abci.RequestInitChain(
                chain_id=chain_id, app_state_bytes=encode_genesis(genesis_bytes), initial_height=1
            )
        )
        response = await self._consensus.call(request, timeout_s=self._execute_s)
        return _checked_app_hash(response.init_chain.app_hash)

    async def check_tx(self, tx: bytes) -> tuple[int, str]:
        """Code and text of the application's cheap check."""
        request = abci.Request(check_tx=abci.RequestCheckTx(tx=tx))
        checked = (await self._mempool.call(request, timeout_s=self._timeout_s)).check_tx
        return checked.code, checked.log[:TX_LOG_CHARS_MAX]

    async def prepare(self, txs: Sequence[bytes], *, height: int, time_s: int, proposer: str) -> tuple[bytes, ...]:
        """The application's proposal for a height, within the bounds of a height."""
        request = abci.Request(
            prepare_proposal=abci.RequestPrepareProposal(
                max_tx_bytes=HEIGHT_BYTES_MAX,
                txs=txs,
                height=height,
                time=Timestamp(seconds=time_s),
                proposer_address=proposer.encode("utf-8"),
            )
        )
        response = await self._consensus.call(request, timeout_s=self._timeout_s)
        proposal = tuple(response.prepare_proposal.txs)
        if len(proposal) > HEIGHT_TXS_MAX or sum(len(tx) for tx in proposal) > HEIGHT_BYTES_MAX:
            raise RemoteProtocolError("proposal is larger than a height")
        if any(not 0 < len(tx) <= TX_BYTES_MAX for tx in proposal):
            raise RemoteProtocolError("proposal holds an empty or oversize transaction")
        return proposal

    async def process(self, proposal: Decided) -> bool:
        """Whether the application accepts a proposal."""
        request = abci.Request(
            process_proposal=abci.RequestProcessProposal(
                txs=proposal.txs,
                hash=proposal.block_hash,
                height=proposal.height,
                time=Timestamp(seconds=proposal.time_s),
                proposer_address=proposal.proposer.encode("utf-8"),
            )
        )
        response = await self._consensus.call(request, timeout_s=self._timeout_s)
        return response.process_proposal.status == abci.ResponseProcessProposal.ACCEPT

    async def finalize(self, decided: Decided) -> tuple[tuple[int, ...], bytes]:
        """Execute a height: a code for each transaction, and the app hash."""
        request = abci.Request(
            finalize_block=abci.RequestFinalizeBlock(
                txs=decided.txs,
                hash=decided.block_hash,
                height=decided.height,
                time=Timestamp(seconds=decided.time_s),
                proposer_address=decided.proposer.encode("utf-8"),
            )
        )
        finalized = (await self._consensus.call(request, timeout_s=self._execute_s)).finalize_block
        if len(finalized.tx_results) != len(decided.txs):
            raise RemoteProtocolError(f"{len(finalized.tx_results)} results for {len(decided.txs)} transactions")
        return tuple(result.code for result in finalized.tx_results), _checked_app_hash(finalized.app_hash)

    async def commit(self) -> None:
        """Make the executed height durable. The retain height is not used: the log keeps everything."""
        await self._consensus.call(abci.Request(commit=abci.RequestCommit()), timeout_s=self._execute_s)


def _parse(frame: bytes) -> abci.Response:
    try:
        return abci.Response.FromString(frame)
    except ProtobufError as error:
        raise DecodeError(f"not an ABCI response: {error}") from error


def _checked_app_hash(app_hash: bytes) -> bytes:
    if len(app_hash) > APP_HASH_BYTES_MAX:
        raise DecodeError(f"app hash of {len(app_hash)} bytes")
    return app_hash
