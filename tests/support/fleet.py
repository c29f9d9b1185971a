"""A small fleet on this machine for integration and fault tests: broker, sequencer and miners as real processes.

The task is easy - three separable clouds - so that a tiny network shows in a few steps who helps and who harms.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx
import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.authoring import zoo
from coordinator.broker.local import BrokerKind, make_passwords, prepare_local
from coordinator.broker.ports import free_port
from coordinator.codec_choice import INT8, CodecChoice, with_codec
from coordinator.enrolment.authority import miner_user
from coordinator.ordering.rpc import OrderedLogClient
from coordinator.task_form import fit_task
from edge_sdk.adapters.durable_files import write_file
from edge_sdk.adapters.failpoints import VARIABLE
from edge_sdk.adapters.keys import create_key
from edge_sdk.adapters.mqtt import BrokerSettings
from edge_sdk.protocol import model, wire
from edge_sdk.protocol.cose import SENDER_REGISTRAR, SoftwareSigner, sign
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import ChainId, DeviceId, MinerId, TaskId
from edge_sdk.protocol.messages import (
    Algorithm,
    Codec,
    Domain,
    Enrol,
    Genesis,
    MinerRecord,
    ModelParams,
    Revoke,
    TaskParams,
)
from edge_sdk.training.artifact import Artifact
from tests.support.ordering import until

ROOT: Final = Path(__file__).resolve().parents[2]
CLASSES: Final = 3
START_S: Final = 60.0
"""A busy machine needs a while for four interpreters."""
CLIP_NORM: Final = 4.0


def clouds(count: int, *, width: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Labelled points of three clouds in ``width`` dimensions."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count).astype(np.int64)
    centres = np.eye(CLASSES, width, dtype=np.float32) * 3
    return (centres[y] + rng.normal(0, 0.4, (count, width))).astype(np.float32), y


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a test wants to vary."""

    miners: int = 4
    devices: int = 3
    block_size: int = 3
    tau_ms: int = 1_500
    phase_ms: int = 3_000
    margin_permille: int = 15
    staleness_max: int = 8
    strangers: int = 0
    """Devices with an account at the broker that nobody enrols."""
    width: int = 8
    """Inputs of the network: 700 makes an update of about 100 kB."""
    broker: BrokerKind = BrokerKind.MOSQUITTO
    codec: CodecChoice = INT8
    behaviours: Mapping[str, str] = field(default_factory=dict)
    """Byzantine behaviour by miner."""


class Fleet:
    """Configuration and processes in a short-named folder; everything that was started is killed at the end."""

    def __init__(self, rules: Rules = Rules()) -> None:
        """Write keys, genesis, folds and configuration; nothing starts yet."""
        self.rules = rules
        self._folder = tempfile.TemporaryDirectory(prefix="fl-")
        self.root = Path(self._folder.name)
        self.miner_ids = tuple(MinerId(f"miner-{index}") for index in range(rules.miners))
        self.device_ids = tuple(DeviceId(f"device-{index}") for index in range(rules.devices))
        self.artifact, self.model = self._model()
        self.stranger_ids = tuple(DeviceId(f"stranger-{index}") for index in range(rules.strangers))
        self.device_signers = {
            device: SoftwareSigner(Ed25519PrivateKey.generate()) for device in (*self.device_ids, *self.stranger_ids)
        }
        self.registrar = SoftwareSigner(Ed25519PrivateKey.generate())
        self.ports = {miner: free_port() for miner in self.miner_ids}
        self.broker_port = free_port()
        users = [*self.device_signers, *(miner_user(miner) for miner in self.miner_ids)]
        self.passwords = make_passwords(users)
        self.genesis = self._write_genesis()
        for index, miner in enumerate(self.miner_ids):
            self._write_miner(index, miner)
        self._write_sequencer()
        self.broker = prepare_local(
            rules.broker,
            self.root / "broker",
            port=self.broker_port,
            users=self.passwords,
            task=self.genesis.task,
            miners=self.miner_ids,
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    async def __aenter__(self) -> Self:
        """Start everything and enrol the devices."""
        try:
            await asyncio.to_thread(self.broker.start)
            self.start("sequencer", *self.miner_ids)
            await self.until_ready(*self.miner_ids)
            await self._enrol_devices()
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._processes):
            self.kill(name)
        await asyncio.to_thread(self.broker.stop)
        if kind is not None:
            for path in sorted(self.root.glob("*.log")):
                sys.stderr.write(f"--- {path.name}\n{path.read_text()[-4000:]}\n")
        self._folder.cleanup()

    async def _enrol_devices(self) -> None:
        """Admit the devices, again and again until every ledger shows them, as the registrar does."""

        async def are_enrolled() -> bool:
            await self.submit(*(self.enrolment(device) for device in self.device_ids))
            return all(self.enrolled(miner) == set(self.device_ids) for miner in self.miner_ids)

        await until(are_enrolled, seconds=START_S)

    def enrolled(self, miner: str) -> set[str]:
        """Devices that a miner's ledger knows."""
        with sqlite3.connect(f"file:{self.ledger_dir(miner)}/ledger.sqlite3?mode=ro", uri=True) as database:
            return {row[0] for row in database.execute("SELECT device_id FROM snapshot_devices")}

    def start(self, *names: str, failpoint: str = "") -> None:
        """Start ``sequencer`` or miners."""
        for name in names:
            is_sequencer = name == "sequencer"
            config = self.root / ("sequencer.toml" if is_sequencer else f"miners/{name}/miner.toml")
            arguments = ["sequencer" if is_sequencer else "miner", "run", "--config", str(config)]
            with (self.root / f"{name}.log").open("ab") as output:
                self._processes[name] = subprocess.Popen(
                    [sys.executable, "-m", "edge_sdk.entry", *arguments],
                    cwd=ROOT,
                    env=os.environ | {VARIABLE: failpoint},
                    stdout=output,
                    stderr=output,
                )

    def kill(self, name: str, *, number: int = signal.SIGKILL) -> int:
        """Stop a process and return its code."""
        process = self._processes.pop(name)
        process.send_signal(number)
        return process.wait(timeout=20)

    def is_running(self, name: str) -> bool:
        """Whether a process that was started has not ended."""
        return self._processes[name].poll() is None

    async def died(self, name: str) -> int:
        """Wait until a process has ended by itself; its code."""
        process = self._processes.pop(name)
        return await asyncio.to_thread(process.wait, 30)

    async def until_ready(self, *names: str) -> None:
        """Wait until miners answer over HTTP that they can serve."""
        async with httpx.AsyncClient(trust_env=False) as http:

            async def is_ready() -> bool:
                for name in names:
                    try:
                        answer = await http.get(f"{self.url(name)}/healthz")
                    except httpx.HTTPError:
                        return False
                    if answer.status_code != httpx.codes.OK:
                        return False
                return True

            await until(is_ready, seconds=START_S)

    async def metrics(self, miner: str) -> str:
        """Prometheus exposition of a miner."""
        async with httpx.AsyncClient(trust_env=False) as http:
            return (await http.get(f"{self.url(miner)}/metrics")).text

    def rss_bytes(self, name: str) -> int:
        """Resident memory of a process."""
        lines = Path(f"/proc/{self._processes[name].pid}/status").read_text().splitlines()
        return 1_024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    def log_text(self, name: str) -> str:
        """What a process logged."""
        return (self.root / f"{name}.log").read_text()

    def url(self, miner: str) -> str:
        """HTTP address of a miner."""
        return f"http://127.0.0.1:{self.ports[MinerId(miner)]}"

    def client(self) -> OrderedLogClient:
        """A client of the sequencer."""
        return OrderedLogClient(f"unix:{self.root / 'rpc.sock'}")

    async def submit(self, *txs: bytes) -> None:
        """Submit until each is taken."""
        async with self.client() as client:
            for tx in txs:

                async def is_taken(tx: bytes = tx) -> bool:
                    return (await client.submit(tx)).code == 0

                await until(is_taken)

    def enrolment(self, device: DeviceId, *, serial: int = 1) -> bytes:
        """The registrar admits a device."""
        message = Enrol(device_id=device, key=self.device_signers[device].public_key, serial=serial)
        return self._by_registrar(message, Domain.ENROL)

    def revocation(self, device: DeviceId, *, serial: int = 1) -> bytes:
        """The registrar withdraws a device."""
        return self._by_registrar(Revoke(device_id=device, serial=serial), Domain.REVOKE)

    def broker_settings(self, user: str) -> BrokerSettings:
        """How a device reaches the broker."""
        return BrokerSettings(
            host="127.0.0.1", port=self.broker_port, username=user, password_file=self.root / f"{user}.password"
        )

    def ledger_dir(self, miner: str) -> Path:
        """Working directory of a miner."""
        return self.root / "miners" / miner

    def records(self, miner: str) -> list[dict[str, object]]:
        """Run record of a miner."""
        text = (self.ledger_dir(miner) / "run.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def _model(self) -> tuple[Artifact, ModelParams]:
        is_output_only = self.rules.codec.is_output_only
        return zoo.build("mlp", (self.rules.width,), CLASSES, batch=16, seed=3, is_output_only=is_output_only)

    def _task(self) -> TaskParams:
        rules = self.rules
        params = TaskParams(
            block_size=rules.block_size,
            tau_ms=rules.tau_ms,
            phase_ms=rules.phase_ms,
            reveal_extensions_max=2,
            staleness_max=rules.staleness_max,
            margin_permille=rules.margin_permille,
            method="fedbuff",
            server_rate_q16=1 << 16,
            clip_norm_q16=round(CLIP_NORM * 65_536),
            codec=Codec.INT8_DENSE,
            expiry_heights=10_000,
            certificate_ttl_s=3_600,
            local_steps=20,
            batch=16,
            learning_rate_q24=round(0.1 * 2**24),
            example_count_max=10_000,
        )
        return fit_task(with_codec(params, rules.codec, spsa_learning_rate=0.01), self.artifact)

    def _write_genesis(self) -> Genesis:
        blob = wire.to_bytes(self.model)
        records = []
        for miner in self.miner_ids:
            folder = self.ledger_dir(miner)
            folder.mkdir(parents=True)
            key = create_key(folder / "key.pem", Algorithm.EDDSA).public_key
            records.append(MinerRecord(miner_id=miner, key=key, power=1, organisation=f"org-{miner}"))
        genesis = Genesis(
            chain_id=ChainId("chain-test"),
            task=TaskId("clouds"),
            created_s=1_700_000_000,
            miners=tuple(records),
            registrar=self.registrar.public_key,
            params=self._task(),
            artifact_digest=self.artifact.digest,
            model_root=model.model_root(self.model),
            model_digest=sha256(blob),
            model_bytes=len(blob),
            artifact_bytes=len(self.artifact.data),
            artifact_author=self.artifact.author,
        )
        (self.root / "genesis.cbor").write_bytes(wire.to_bytes(genesis))
        (self.root / "artifact.flm").write_bytes(self.artifact.data)
        (self.root / "model.cbor").write_bytes(blob)
        for user, password in self.passwords.items():
            write_file(self.root / f"{user}.password", password.encode(), mode=0o600)
        return genesis

    def _write_miner(self, index: int, miner: MinerId) -> None:
        folder = self.ledger_dir(miner)
        x, y = clouds(150, width=self.rules.width, seed=100 + index)
        np.savez(folder / "fold.npz", x=x, y=y)
        peers = [f'{peer} = "{self.url(peer)}"' for peer in self.miner_ids if peer != miner]
        lines = [
            "[miner]",
            f'id = "{miner}"',
            'genesis_file = "../../genesis.cbor"',
            'artifact_file = "../../artifact.flm"',
            'model_file = "../../model.cbor"',
            "[ordering]",
            f'abci = "unix:{self.root}/{miner}.sock"',
            f'rpc = "unix:{self.root}/rpc.sock"',
            "[[broker]]",
            f"port = {self.broker_port}",
            f'username = "{miner_user(miner)}"',
            f'password_file = "{self.root}/{miner_user(miner)}.password"',
            "[http]",
            f"port = {self.ports[miner]}",
            "[peers]",
            *peers,
            "[behaviour]",
            f'byzantine = "{self.rules.behaviours.get(miner, "")}"',
        ]
        (folder / "miner.toml").write_text("\n".join(lines))

    def _write_sequencer(self) -> None:
        lines = ["[sequencer]", f'chain_id = "{self.genesis.chain_id}"', 'genesis_file = "genesis.cbor"']
        for miner in self.miner_ids:
            lines += ["[[miners]]", f'id = "{miner}"', f'abci = "{miner}.sock"']
        (self.root / "sequencer.toml").write_text("\n".join(lines))

    def _by_registrar(self, message: object, domain: Domain) -> bytes:
        return sign(
            wire.to_bytes(message),
            signer=self.registrar,
            domain=domain,
            chain_id=self.genesis.chain_id,
            sender=SENDER_REGISTRAR,
        )


async def until_same_height(fleet: Fleet, *, version: int, seconds: float = 60.0) -> None:
    """Wait until all miners have a version and the same height, and check that they serve the same model."""
    async with httpx.AsyncClient(trust_env=False) as http:

        async def is_even() -> bool:
            try:
                health = [(await http.get(f"{fleet.url(miner)}/healthz")).json() for miner in fleet.miner_ids]
                models = [(await http.get(f"{fleet.url(miner)}/v1/models/latest")).json() for miner in fleet.miner_ids]
            except httpx.HTTPError:
                return False
            is_there = all(model["version"] >= version and model["certificate"] for model in models)
            return is_there and len({h["height"] for h in health}) == len({m["model_root"] for m in models}) == 1

        await until(is_even, seconds=seconds)
