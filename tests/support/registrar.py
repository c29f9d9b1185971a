"""A registrar over real TLS, with a log that shows at once what it takes, and the files of its devices."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.enrolment.authority import Authority, private_pem
from coordinator.enrolment.config import BrokerAddress, EnrolmentConfig
from coordinator.enrolment.service import EnrolmentService
from coordinator.serving.metrics import MinerMetrics
from coordinator.serving.view import DeviceView
from coordinator.setup import build_genesis, default_params
from edge_sdk.adapters.enrolment import Places
from edge_sdk.adapters.keys import create_key, load_signer
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.protocol.messages import (
    Algorithm,
    Domain,
    Enrol,
    Genesis,
    MinerRecord,
    ModelParams,
    ModelTensor,
    PublicKey,
    Revoke,
)
from tests.support.serving import CHAIN, MINER, TASK, Log

D1 = DeviceId("d1")
T = TypeVar("T")


class RegistryLog(Log):
    """A log that shows what it takes at once, as a ledger does a height later."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: dict[DeviceId, DeviceView] = {}

    async def __call__(self, tx: bytes, /) -> Any:
        answer = await super().__call__(tx)
        envelope = cose.peek(tx)
        if envelope.domain is Domain.ENROL:
            message = wire.from_bytes(Enrol, envelope.payload)
            self.devices[message.device_id] = DeviceView(
                device_id=message.device_id, key=message.key, serial=message.serial, revoked=False
            )
        else:
            revoked = wire.from_bytes(Revoke, envelope.payload)
            self.devices[revoked.device_id] = replace(self.devices[revoked.device_id], revoked=True)
        return answer


@dataclass
class Site:
    """A running registrar and the files that devices know it by."""

    folder: Path
    service: EnrolmentService
    log: RegistryLog
    loop: asyncio.AbstractEventLoop
    genesis: Genesis
    metrics: MinerMetrics

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.service.port}"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def claim(self, device_id: DeviceId = D1) -> str:
        return self.service.store.issue_claim(device_id, now_s=SystemClock().time_s(), ttl_s=60)

    def places(self, name: str, token: str) -> Places:
        folder = self.folder / "devices" / name
        folder.mkdir(parents=True)
        (folder / "claim.txt").write_text(token + "\n")
        return Places(
            key_file=folder / "key.pem",
            cert_file=folder / "cert.pem",
            genesis_file=folder / "genesis.cbor",
            claim_file=folder / "claim.txt",
            ca_file=self.folder / "ca.pem",
        )


def make_genesis(registrar: PublicKey) -> Genesis:
    tensor = ModelTensor(
        name="bias", shape=(1,), exponent=-24, channel_axis=-1, values=bytes(4), scale_m=b"", scale_k=b""
    )
    key = cose.SoftwareSigner(Ed25519PrivateKey.generate()).public_key
    return build_genesis(
        chain_id=CHAIN,
        task=TASK,
        created_s=1,
        miners=[MinerRecord(miner_id=MINER, key=key, power=1, organisation="one")],
        registrar=registrar,
        params=default_params(batch=8),
        artifact=b"artifact",
        model=ModelParams(tensors=(tensor,)),
    )


def make_settings(folder: Path) -> EnrolmentConfig:
    """Authority, keys and settings of a registrar."""
    now_s = SystemClock().time_s()
    authority = Authority.create(name="test fleet", now_s=now_s)
    authority.save(folder / "ca.pem", folder / "ca-key.pem")
    key = Ed25519PrivateKey.generate()
    (folder / "tls.pem").write_bytes(authority.issue_server(["127.0.0.1"], key.public_key(), now_s=now_s).pem)
    (folder / "tls-key.pem").write_bytes(private_pem(key))
    create_key(folder / "registrar.pem", Algorithm.EDDSA)
    return EnrolmentConfig(
        host="127.0.0.1",
        port=0,
        cert_file=folder / "tls.pem",
        key_file=folder / "tls-key.pem",
        ca_cert=folder / "ca.pem",
        ca_key=folder / "ca-key.pem",
        registrar_key=folder / "registrar.pem",
        claims_db=folder / "claims.sqlite3",
        crl_file=folder / "crl.pem",
        acl_file=folder / "acl",
        broker_pid_file=None,
        certificate_days=60,
        device_miners=("http://127.0.0.1:8080",),
        device_brokers=(BrokerAddress(host="127.0.0.1", port=8883, tls=True),),
    )


@contextmanager
def running_site(config: EnrolmentConfig, folder: Path) -> Iterator[Site]:
    """A registrar that answers, on a thread with its own loop."""
    log, metrics = RegistryLog(), MinerMetrics()
    genesis = make_genesis(load_signer(config.registrar_key).public_key)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make() -> EnrolmentService:
        service = EnrolmentService(
            config,
            genesis,
            lookup=log.devices.get,
            submit=log,
            time_s=SystemClock().time_s,
            metrics=metrics,
            equivocators=lambda: [view.device_id for view in log.devices.values() if view.equivocated],
        )
        await service.start()
        return service

    service = asyncio.run_coroutine_threadsafe(make(), loop).result(10)
    site = Site(folder, service, log, loop, genesis, metrics)
    try:
        yield site
    finally:
        site.run(service.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
