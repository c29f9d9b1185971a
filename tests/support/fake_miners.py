"""Four miners in one object: keys, a chain of certified models, a blob server, and the MQTT side of the protocol.

The opposite side of a device, as small as it can be and still speak the contract: manifests and chunks in, receipts,
resumes, outcomes and announcements out, models over HTTP. Each complete update makes one block: it is merged, and the
next version certified. Tests steer it by its switches.
"""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.adapters.mqtt import Arrived, BrokerSettings, LinkEvent, Message, MqttLink
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.errors import DecodeError, TransportError
from edge_sdk.protocol import cose, merkle, topics
from edge_sdk.protocol.certificate import assemble
from edge_sdk.protocol.chunks import Assembly, split
from edge_sdk.protocol.digest import block_hash, miner_set_hash, sha256, update_digest
from edge_sdk.protocol.ids import ChainId, DeviceId, Digest, MinerId, TaskId
from edge_sdk.protocol.messages import (
    Algorithm,
    Announcement,
    BlockEntry,
    BlockHeader,
    Certificate,
    CertificateStatement,
    Chunk,
    Codec,
    CutCause,
    Domain,
    Fetch,
    Genesis,
    MinerRecord,
    ModelParams,
    Outcome,
    PublicKey,
    Reason,
    Receipt,
    ReceiptStatus,
    Resume,
    TaskParams,
    UpdateManifest,
    UpdatePayload,
    Verdict,
)
from edge_sdk.protocol.model import model_root
from edge_sdk.protocol.wire import from_bytes, to_bytes
from edge_sdk.training.delta import decode_aligned

CHAIN = ChainId("test-chain")
TASK = TaskId("digits")
MINERS = tuple(MinerId(f"m{number}") for number in range(1, 5))
ZERO = Digest(bytes(32))
LISTEN_TIMEOUT_S = 20.0


def task_params(**changes: object) -> TaskParams:
    """Rules of a small task."""
    params = TaskParams(
        block_size=1,
        tau_ms=1_000,
        phase_ms=1_000,
        reveal_extensions_max=2,
        staleness_max=16,
        margin_permille=20,
        method="fedbuff",
        server_rate_q16=2**16,
        clip_norm_q16=2 * 2**16,
        codec=Codec.INT8_DENSE,
        expiry_heights=1_000,
        certificate_ttl_s=86_400,
        local_steps=5,
        batch=16,
        learning_rate_q24=round(0.05 * 2**24),
        example_count_max=10_000,
    )
    return replace(params, **changes)  # type: ignore[arg-type]


@dataclass
class Version:
    """A certified model."""

    params: ModelParams
    blob: bytes
    certificate: Certificate | None


@dataclass
class Keys:
    """The miners' signers."""

    signers: dict[MinerId, cose.SoftwareSigner] = field(
        default_factory=lambda: {name: cose.SoftwareSigner(Ed25519PrivateKey.generate()) for name in MINERS}
    )
    registrar: cose.SoftwareSigner = field(default_factory=lambda: cose.SoftwareSigner(Ed25519PrivateKey.generate()))


def make_genesis(
    keys: Keys, *, artifact_digest: Digest, params: ModelParams | None = None, rules: TaskParams | None = None
) -> Genesis:
    """A trust anchor over the miners; without a model its digests are zero."""
    blob = b"" if params is None else to_bytes(params)
    return Genesis(
        chain_id=CHAIN,
        task=TASK,
        created_s=1_700_000_000,
        miners=tuple(
            MinerRecord(miner_id=name, key=signer.public_key, power=1, organisation=name)
            for name, signer in keys.signers.items()
        ),
        registrar=PublicKey(algorithm=Algorithm.EDDSA, data=keys.registrar.public_key.data),
        params=rules or task_params(),
        artifact_digest=artifact_digest,
        model_root=ZERO if params is None else model_root(params),
        model_digest=sha256(blob),
        model_bytes=max(1, len(blob)),
    )


class Chain:
    """Certificates and outcomes, signed by as many miners as a test likes."""

    def __init__(self, keys: Keys, genesis: Genesis) -> None:
        self.keys = keys
        self.genesis = genesis

    def certify(
        self,
        version: int,
        root: Digest,
        *,
        header: BlockHeader | None = None,
        signers: tuple[MinerId, ...] = MINERS[:3],
        expiry_s: int | None = None,
        block_index: int | None = None,
    ) -> Certificate:
        statement = CertificateStatement(
            chain_id=self.genesis.chain_id,
            task=self.genesis.task,
            version=version,
            height=10 * version,
            block_index=version if block_index is None else block_index,
            block_hash=ZERO if header is None else block_hash(header),
            model_root=root,
            miner_set_hash=miner_set_hash(self.genesis.miners),
            expiry_s=SystemClock().time_s() + 3_600 if expiry_s is None else expiry_s,
        )
        votes = {}
        for miner in signers:
            envelope = self.sign(miner, to_bytes(statement), Domain.CERTIFICATE)
            votes[miner] = cose.peek(envelope).signature
        return assemble(statement, votes)

    def outcome(
        self,
        manifest: UpdateManifest,
        digest: Digest,
        *,
        version: int,
        root: Digest,
        verdict: Verdict = Verdict.MERGED,
        reason: Reason = Reason.NONE,
    ) -> Outcome:
        entry = BlockEntry(
            update_digest=digest,
            device_id=manifest.device_id,
            seq=manifest.seq,
            base_version=manifest.base_version,
            verdict=verdict,
            reason=reason,
            score=500,
            weight=65_536 if verdict is Verdict.MERGED else 0,
        )
        leaves = [to_bytes(entry)]
        header = BlockHeader(
            chain_id=self.genesis.chain_id,
            task=self.genesis.task,
            index=max(1, version),
            cut_height=1,
            decided_height=2,
            cause=CutCause.SIZE,
            base_version=max(0, version - 1),
            version=version,
            base_root=manifest.base_root,
            base_score=500,
            entry_count=1,
            entries_root=merkle.root(leaves),
            previous_hash=ZERO,
        )
        return Outcome(
            entry=entry,
            proof=merkle.inclusion_proof(leaves, 0),
            header=header,
            certificate=self.certify(version, root, header=header, block_index=max(1, version)),
        )

    def sign(self, miner: MinerId, payload: bytes, domain: Domain) -> bytes:
        signer = self.keys.signers[miner]
        return cose.sign(payload, signer=signer, domain=domain, chain_id=self.genesis.chain_id, sender=miner)


class FakeMiners:
    """See the module. Not thread-safe for tests: read counters, set switches."""

    def __init__(self, genesis: Genesis, keys: Keys, params: ModelParams, artifact: bytes, *, broker_port: int) -> None:
        self.genesis = genesis
        self.chain = Chain(keys, genesis)
        self.artifact = artifact
        self.versions = [Version(params, to_bytes(params), None)]
        self.manifests: dict[Digest, UpdateManifest] = {}
        self.merged: list[Digest] = []
        self.outcomes: dict[Digest, Outcome] = {}
        self.chunk_messages = 0
        self.is_receipting = True
        self.is_deciding = True
        self.serves_http = True
        self.verdict: tuple[Verdict, Reason] = (Verdict.MERGED, Reason.NONE)
        self._assemblies: dict[Digest, Assembly] = {}
        self._lock = threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._link = MqttLink(
            client_id="fake-miners",
            brokers=[BrokerSettings(host="127.0.0.1", port=broker_port)],
            subscriptions=topics.miner_filters(TASK),
            will_of=lambda _: None,
            sink=self._on_event,
        )
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True),
            threading.Thread(target=self._ask_for_missing, daemon=True),
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def version(self) -> int:
        return len(self.versions) - 1

    @contextmanager
    def running(self) -> Iterator[FakeMiners]:
        self._link.start()
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            self._link.stop()
            self._http.shutdown()
            self._http.server_close()

    def announce(self) -> None:
        """Every miner offers the newest version, retained."""
        with self._lock:
            newest = self.versions[-1]
            for miner in MINERS:
                announcement = Announcement(
                    miner_id=miner,
                    certificate=newest.certificate,
                    version=self.version,
                    height=10 * self.version + 1,
                    model_digest=sha256(newest.blob),
                    model_bytes=len(newest.blob),
                    artifact_digest=self.genesis.artifact_digest,
                    urls=(self.url,) if self.serves_http else (),
                )
                envelope = self.chain.sign(miner, to_bytes(announcement), Domain.ANNOUNCEMENT)
                self._publish(topics.current(TASK, miner), envelope, retain=True)

    def publish_announcement(self, miner: MinerId, envelope: bytes) -> None:
        """Let a miner announce something of a test's own, retained."""
        self._publish(topics.current(TASK, miner), envelope, retain=True)

    def decide(self, digest: Digest, blob: bytes) -> None:
        """Make a block of one update."""
        manifest = self.manifests[digest]
        verdict, reason = self.verdict
        newest = self.versions[-1]
        if verdict is Verdict.MERGED:
            params = merge_one(newest.params, from_bytes(UpdatePayload, blob, bytes_max=len(blob)))
            root, version = model_root(params), self.version + 1
        else:
            params, root, version = newest.params, model_root(newest.params), self.version
        outcome = self.chain.outcome(manifest, digest, version=version, root=root, verdict=verdict, reason=reason)
        if verdict is Verdict.MERGED:
            self.merged.append(digest)
            self.versions.append(Version(params, to_bytes(params), outcome.certificate))
        self.outcomes[digest] = outcome
        self._publish(topics.outcome(TASK, manifest.device_id), to_bytes(outcome))
        self.announce()

    def _on_event(self, event: LinkEvent) -> None:
        if not isinstance(event, Arrived):
            if type(event).__name__ == "Connected":
                threading.Thread(target=self.announce, daemon=True).start()
            return
        with self._lock:
            topic = topics.parse(event.topic)
            assert topic.device is not None
            if topic.kind is topics.Kind.UPDATE:
                self._take_manifest(event.payload)
            elif topic.kind is topics.Kind.CHUNK:
                self._take_chunk(from_bytes(Chunk, event.payload))
            elif topic.kind is topics.Kind.FETCH:
                self._send_chunks(topic.device, from_bytes(Fetch, cose.peek(event.payload).payload))

    def _take_manifest(self, envelope: bytes) -> None:
        digest = update_digest(envelope)
        manifest = from_bytes(UpdateManifest, cose.peek(envelope).payload)
        if digest not in self.manifests:
            self.manifests[digest] = manifest
            self._assemblies[digest] = Assembly(
                digest=digest, blob_digest=manifest.blob_digest, blob_bytes=manifest.blob_bytes
            )
        self._answer(digest)

    def _take_chunk(self, chunk: Chunk) -> None:
        self.chunk_messages += 1
        assembly = self._assemblies.get(chunk.digest)
        if assembly is None or assembly.is_complete:
            return
        assembly.add(chunk)
        self._answer(chunk.digest)

    def _answer(self, digest: Digest) -> None:
        assembly = self._assemblies[digest]
        if not assembly.is_complete or not self.is_receipting:
            return
        try:
            blob = assembly.blob()
        except DecodeError:
            return
        manifest = self.manifests[digest]
        for miner in MINERS:
            receipt = Receipt(
                miner_id=miner,
                device_id=manifest.device_id,
                seq=manifest.seq,
                update_digest=digest,
                status=ReceiptStatus.STORED,
                reason=Reason.NONE,
                height=10 * self.version + 1,
            )
            envelope = self.chain.sign(miner, to_bytes(receipt), Domain.RECEIPT)
            self._publish(topics.receipt(TASK, manifest.device_id), envelope)
        if digest in self.outcomes:
            self._publish(topics.outcome(TASK, manifest.device_id), to_bytes(self.outcomes[digest]))
        elif self.is_deciding:
            self.decide(digest, blob)

    def _ask_for_missing(self) -> None:
        while not self._stopping.wait(0.5):
            with self._lock:
                for digest, assembly in self._assemblies.items():
                    if not assembly.is_complete:
                        device = self.manifests[digest].device_id
                        resume = Resume(
                            miner_id=MINERS[0], device_id=device, update_digest=digest, ranges=assembly.missing()
                        )
                        envelope = self.chain.sign(MINERS[0], to_bytes(resume), Domain.RESUME)
                        self._publish(topics.resume(TASK, device), envelope)

    def _send_chunks(self, device: DeviceId, fetch: Fetch) -> None:
        blob = self._blob(fetch.blob_digest)
        if blob is not None:
            for chunk in split(blob, fetch.blob_digest, ranges=fetch.ranges):
                self._publish(topics.down_chunk(TASK, device), to_bytes(chunk))

    def _blob(self, digest: bytes) -> bytes | None:
        blobs = [self.artifact, *(version.blob for version in self.versions)]
        return next((blob for blob in blobs if sha256(blob) == digest), None)

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        try:
            self._link.publish(Message(topic, payload, retain))
        except TransportError:
            return  # the broker is being killed by the test; everything comes again

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        miners = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = self.path.split("/")
                data: bytes | None = None
                if parts[:4] == ["", "v1", "blobs", "sha256"] and (miners.serves_http or miners.artifact):
                    found = miners._blob(bytes.fromhex(parts[4]))
                    data = found if miners.serves_http or found == miners.artifact else None
                elif parts[:3] == ["", "v1", "outcomes"]:
                    outcome = miners.outcomes.get(Digest(bytes.fromhex(parts[3])))
                    if outcome is not None:
                        data = json.dumps({"outcome": base64.b64encode(to_bytes(outcome)).decode()}).encode()
                elif self.path == "/healthz":
                    data = b"ok"
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def merge_one(params: ModelParams, payload: UpdatePayload) -> ModelParams:
    """The model plus one whole update, on the model's grid."""
    aligned = decode_aligned(payload, params)
    tensors = []
    for tensor in params.tensors:
        values = np.frombuffer(tensor.values, "<i4").astype(np.int64) + aligned[tensor.name].ravel()
        tensors.append(replace(tensor, values=values.astype("<i4").tobytes()))
    return ModelParams(tensors=tuple(tensors))


@contextmanager
def running_mosquitto(program: Path, folder: Path, port: int) -> Iterator[Callable[[], None]]:
    """A real broker with persistence; the value kills it with SIGKILL and starts it again."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
        f"persistence true\npersistence_location {folder}/\nautosave_on_changes true\nautosave_interval 1\n"
        "user root\nmax_queued_messages 0\n"
    )
    process: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with (folder / "mosquitto.log").open("ab") as output:
            process.append(subprocess.Popen([program, "-c", config], stdout=output, stderr=output))
        _wait_for_listener(process[-1], port, folder / "mosquitto.log")

    def restart() -> None:
        process[-1].kill()
        process[-1].wait()
        time.sleep(0.2)
        start()

    start()
    try:
        yield restart
    finally:
        process[-1].kill()
        process[-1].wait()


def _wait_for_listener(process: subprocess.Popen[bytes], port: int, output: Path) -> None:
    """Return once the broker accepts connections: tests count from there, not from the start of its process."""
    deadline_s = time.monotonic() + LISTEN_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline_s:
                said = output.read_text(errors="replace")
                raise RuntimeError(f"mosquitto does not listen on port {port}: {said}") from None
            time.sleep(0.01)
        else:
            return
