"""The application's side of the socket protocol: CometBFT v0.38 and ``local`` can drive a miner behind this server.

An engine opens four connections (consensus, mempool, query, snapshot). Each is answered in the order of its requests;
``Flush`` is answered like any other request, and answers never wait for it. One lock spans all connections, as in
CometBFT's own socket server: a handler never runs two calls at a time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from google.protobuf.message import DecodeError as ProtobufError

from coordinator.ordering import abci_pb2 as abci
from coordinator.ordering.frames import encode_frame, read_frame
from coordinator.ordering.limits import (
    ABCI_CONNECTIONS_MAX,
    ABCI_FRAME_BYTES_MAX,
    GENESIS_BYTES_MAX,
    TX_LOG_CHARS_MAX,
)
from coordinator.ordering.unix_socket import unix_listener
from edge_sdk.errors import DecodeError, RemoteProtocolError

_log = logging.getLogger(__name__)

ABCI_VERSION: Final = "2.0.0"


class AbciHandler(Protocol):
    """What an engine asks of an application, in plain types.

    A method raises ``RemoteProtocolError`` when the engine breaks the contract (another chain's genesis, a height out
    of order): the engine is told and its connection closed. Any other error is the application's own: it ends the
    server, so that a miner whose disk or code fails stops instead of answering wrongly.
    """

    async def info(self) -> tuple[int, bytes]:
        """Height of the last commit (0 before the first) and the app hash after it."""

    async def init_chain(self, chain_id: str, genesis_bytes: bytes) -> None:
        """Start from genesis; comes before height 1, and again after a restart at height 0."""

    async def check_tx(self, tx: bytes) -> tuple[int, str]:
        """Code (0 = may be ordered) and a text that explains another one."""

    async def prepare_proposal(self, txs: Sequence[bytes], bytes_max: int, height: int) -> list[bytes]:
        """Choose and arrange transactions for a proposal of at most ``bytes_max`` bytes."""

    async def process_proposal(self, txs: Sequence[bytes], height: int) -> bool:
        """Whether the proposal is valid: decided by its bytes and the committed state alone."""

    async def finalize_block(
        self, height: int, time_s: int, txs: Sequence[bytes], proposer: bytes
    ) -> tuple[list[tuple[int, str]], bytes]:
        """Execute a decided height: code and text of each transaction, and the app hash after it. Nothing durable yet.

        ``proposer`` is the engine's address of the proposing member: the miner id in ASCII on ``local``, 20 bytes of
        the consensus key's hash on CometBFT.
        """

    async def commit(self) -> int:
        """Make the finalized height durable; returns the lowest height that the engine still has to keep, 0 = all."""


def encode_genesis(genesis_bytes: bytes) -> bytes:
    """App state as an engine carries it: CometBFT's genesis file is JSON, so a text in base64."""
    return json.dumps(base64.b64encode(genesis_bytes).decode("ascii")).encode("ascii")


def decode_genesis(app_state: bytes) -> bytes:
    """Reverse of ``encode_genesis``.

    Raises:
        DecodeError: anything else.
    """
    if len(app_state) > GENESIS_BYTES_MAX * 4 // 3 + 8:
        raise DecodeError(f"app state of {len(app_state)} bytes")
    try:
        text = json.loads(app_state)
        if not isinstance(text, str):
            raise DecodeError("app state is not a JSON text")
        return base64.b64decode(text, validate=True)
    except (UnicodeError, RecursionError, json.JSONDecodeError, binascii.Error) as error:
        raise DecodeError(f"app state is not a JSON text in base64: {error}") from error


async def serve_abci(handler: AbciHandler, path: Path, *, ready: asyncio.Event | None = None) -> None:
    """Serve an application on a Unix socket until cancelled; ``ready`` is set once it listens.

    Raises:
        ConfigError: the socket cannot be opened.
        ExceptionGroup: of what the handler raised, unless it was the engine's fault.
    """
    lock = asyncio.Lock()
    connections: set[asyncio.Task[None]] = set()
    with unix_listener(path) as listener:
        async with asyncio.TaskGroup() as tasks:

            def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                if len(connections) >= ABCI_CONNECTIONS_MAX:
                    _log.warning("connection refused: %d are open", len(connections))
                    writer.close()
                    return
                task = tasks.create_task(_serve_connection(handler, lock, reader, writer))
                connections.add(task)
                task.add_done_callback(connections.discard)

            server = await asyncio.start_unix_server(accepted, sock=listener)
            try:
                if ready is not None:
                    ready.set()
                await asyncio.Event().wait()  # until cancelled, or until a connection's task fails
            finally:
                server.close()


async def _serve_connection(
    handler: AbciHandler, lock: asyncio.Lock, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        while (frame := await read_frame(reader, bytes_max=ABCI_FRAME_BYTES_MAX)) is not None:
            async with lock:
                response = await _respond(handler, _parse(frame))
            writer.write(encode_frame(response.SerializeToString()))
            await writer.drain()
    except RemoteProtocolError as error:
        _log.warning("connection closed: %s", error)
        refusal = abci.Response(exception=abci.ResponseException(error=str(error)))
        writer.write(encode_frame(refusal.SerializeToString()))
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        _log.info("connection lost: %s", error)
    finally:
        writer.close()


def _parse(frame: bytes) -> abci.Request:
    try:
        return abci.Request.FromString(frame)
    except ProtobufError as error:
        raise DecodeError(f"not an ABCI request: {error}") from error


async def _respond(handler: AbciHandler, request: abci.Request) -> abci.Response:
    """Answer one request; unknown and missing ones are the engine's fault."""
    match request.WhichOneof("value"):
        case "echo":
            return abci.Response(echo=abci.ResponseEcho(message=request.echo.message))
        case "flush":
            return abci.Response(flush=abci.ResponseFlush())
        case "query":
            return abci.Response(
                query=abci.ResponseQuery(code=1, log="queries are answered over the miner's HTTP interface")
            )
        case "check_tx":
            code, text = await handler.check_tx(request.check_tx.tx)
            return abci.Response(check_tx=abci.ResponseCheckTx(code=code, log=text[:TX_LOG_CHARS_MAX]))
        case "info" | "init_chain":
            return await _respond_handshake(handler, request)
        case "prepare_proposal" | "process_proposal" | "finalize_block" | "commit":
            return await _respond_consensus(handler, request)
        case kind:
            return _respond_unused(kind, request)


async def _respond_handshake(handler: AbciHandler, request: abci.Request) -> abci.Response:
    if request.HasField("init_chain"):
        init = request.init_chain
        await handler.init_chain(init.chain_id, decode_genesis(init.app_state_bytes))
        _, app_hash = await handler.info()
        return abci.Response(init_chain=abci.ResponseInitChain(app_hash=app_hash))
    height, app_hash = await handler.info()
    last = abci.ResponseInfo(
        data="edge-flchain",
        version=ABCI_VERSION,
        last_block_height=height,
        last_block_app_hash=app_hash,
    )
    return abci.Response(info=last)


async def _respond_consensus(handler: AbciHandler, request: abci.Request) -> abci.Response:
    if request.HasField("prepare_proposal"):
        offer = request.prepare_proposal
        txs = await handler.prepare_proposal(list(offer.txs), offer.max_tx_bytes, offer.height)
        return abci.Response(prepare_proposal=abci.ResponsePrepareProposal(txs=txs))
    if request.HasField("process_proposal"):
        proposal = request.process_proposal
        is_valid = await handler.process_proposal(list(proposal.txs), proposal.height)
        status = abci.ResponseProcessProposal.ACCEPT if is_valid else abci.ResponseProcessProposal.REJECT
        return abci.Response(process_proposal=abci.ResponseProcessProposal(status=status))
    if request.HasField("finalize_block"):
        decided = request.finalize_block
        verdicts, app_hash = await handler.finalize_block(
            decided.height, decided.time.seconds, list(decided.txs), decided.proposer_address
        )
        results = [abci.ExecTxResult(code=code, log=text[:TX_LOG_CHARS_MAX]) for code, text in verdicts]
        return abci.Response(finalize_block=abci.ResponseFinalizeBlock(tx_results=results, app_hash=app_hash))
    return abci.Response(commit=abci.ResponseCommit(retain_height=await handler.commit()))


def _respond_unused(kind: str | None, request: abci.Request) -> abci.Response:
    """No snapshots (a late miner replays the log) and no vote extensions (scores are transactions)."""
    match kind:
        case "list_snapshots":
            return abci.Response(list_snapshots=abci.ResponseListSnapshots())
        case "offer_snapshot":
            refusal = abci.ResponseOfferSnapshot(result=abci.ResponseOfferSnapshot.ABORT)
            return abci.Response(offer_snapshot=refusal)
        case "load_snapshot_chunk":
            return abci.Response(load_snapshot_chunk=abci.ResponseLoadSnapshotChunk())
        case "apply_snapshot_chunk":
            abort = abci.ResponseApplySnapshotChunk(result=abci.ResponseApplySnapshotChunk.ABORT)
            return abci.Response(apply_snapshot_chunk=abort)
        case "extend_vote":
            return abci.Response(extend_vote=abci.ResponseExtendVote())
        case "verify_vote_extension":
            is_empty = not request.verify_vote_extension.vote_extension
            status = abci.ResponseVerifyVoteExtension.ACCEPT if is_empty else abci.ResponseVerifyVoteExtension.REJECT
            return abci.Response(verify_vote_extension=abci.ResponseVerifyVoteExtension(status=status))
        case _:
            raise DecodeError("request of an unknown kind")
