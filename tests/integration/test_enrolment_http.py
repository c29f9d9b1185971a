"""Enrolment over real TLS: the registrar's service and the device's own client, each with its files."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import stat
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.enrolment import server
from coordinator.enrolment.authority import CSR_BYTES_MAX, Authority, private_pem
from coordinator.enrolment.config import BrokerAddress, EnrolmentConfig
from coordinator.enrolment.records import MemberStatus
from coordinator.enrolment.service import EnrolmentService
from coordinator.serving.view import DeviceView
from coordinator.setup import build_genesis, default_params
from edge_sdk.adapters.enrolment import Places, enrol, renew
from edge_sdk.adapters.keys import create_key, load_signer
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.errors import ConfigError, ConnectError, RemoteProtocolError
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.digest import genesis_digest
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
from tests.support.enrolment import make_csr
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


@pytest.fixture
def config(tmp_path: Path) -> EnrolmentConfig:
    now_s = SystemClock().time_s()
    authority = Authority.create(name="test fleet", now_s=now_s)
    authority.save(tmp_path / "ca.pem", tmp_path / "ca-key.pem")
    key = Ed25519PrivateKey.generate()
    (tmp_path / "tls.pem").write_bytes(authority.issue_server(["127.0.0.1"], key.public_key(), now_s=now_s).pem)
    (tmp_path / "tls-key.pem").write_bytes(private_pem(key))
    create_key(tmp_path / "registrar.pem", Algorithm.EDDSA)
    return EnrolmentConfig(
        host="127.0.0.1",
        port=0,
        cert_file=tmp_path / "tls.pem",
        key_file=tmp_path / "tls-key.pem",
        ca_cert=tmp_path / "ca.pem",
        ca_key=tmp_path / "ca-key.pem",
        registrar_key=tmp_path / "registrar.pem",
        claims_db=tmp_path / "claims.sqlite3",
        crl_file=tmp_path / "crl.pem",
        acl_file=tmp_path / "acl",
        broker_pid_file=None,
        certificate_days=60,
        device_miners=("http://127.0.0.1:8080",),
        device_brokers=(BrokerAddress(host="127.0.0.1", port=8883, tls=True),),
    )


@pytest.fixture
def site(config: EnrolmentConfig, tmp_path: Path) -> Iterator[Site]:
    log = RegistryLog()
    genesis = make_genesis(load_signer(config.registrar_key).public_key)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make() -> EnrolmentService:
        service = EnrolmentService(config, genesis, lookup=log.devices.get, submit=log, time_s=SystemClock().time_s)
        await service.start()
        return service

    service = asyncio.run_coroutine_threadsafe(make(), loop).result(10)
    site = Site(tmp_path, service, log, loop, genesis)
    yield site
    site.run(service.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def post(site: Site, leaf: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    context = ssl.create_default_context(cafile=site.folder / "ca.pem")
    connection = http.client.HTTPSConnection("127.0.0.1", site.service.port, timeout=10, context=context)
    try:
        connection.request("POST", f"/.well-known/est/{leaf}", body=body, headers=headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def csr(name: str = "d1") -> bytes:
    return make_csr(name, Ed25519PrivateKey.generate())


def test_board_enrols_once_and_is_on_the_ledger(site: Site) -> None:
    places = site.places("d1", site.claim())
    membership = enrol(
        site.url, places, device_id=D1, algorithm=Algorithm.EDDSA, genesis_digest=genesis_digest(site.genesis)
    )
    assert (membership.serial, membership.is_settled) == (1, True)
    assert membership.miners == ("http://127.0.0.1:8080",)
    assert places.genesis_file.read_bytes() == wire.to_bytes(site.genesis)
    assert not places.claim_file.exists()
    assert stat.S_IMODE(places.key_file.stat().st_mode) == 0o600
    assert site.log.devices[D1].key == load_signer(places.key_file).public_key
    certificate = x509.load_pem_x509_certificate(places.cert_file.read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((site.folder / "ca.pem").read_bytes()))


def test_p256_board_enrols(site: Site) -> None:
    places = site.places("d1", site.claim())
    enrol(site.url, places, device_id=D1, algorithm=Algorithm.ES256, genesis_digest=None)
    assert site.log.devices[D1].key.algorithm is Algorithm.ES256


def test_renewal_under_the_present_key(site: Site) -> None:
    places = site.places("d1", site.claim())
    enrol(site.url, places, device_id=D1, algorithm=Algorithm.EDDSA, genesis_digest=None)
    before = places.cert_file.read_bytes()
    membership = renew(site.url, places, device_id=D1, chain_id=CHAIN, genesis_digest=None)
    assert (membership.serial, membership.is_settled) == (1, True)
    assert places.cert_file.read_bytes() != before
    assert len(site.log.transactions) == 1, "the same key needs no second enrolment"


def test_stolen_claim_holds_the_device_everywhere(site: Site) -> None:
    token = site.claim()
    honest, thief = site.places("d1", token), site.places("thief", token)
    enrol(site.url, honest, device_id=D1, algorithm=Algorithm.EDDSA, genesis_digest=None)
    with pytest.raises(RemoteProtocolError, match="reused-claim"):
        enrol(site.url, thief, device_id=D1, algorithm=Algorithm.EDDSA, genesis_digest=None)
    assert not thief.cert_file.exists()
    member = site.service.store.member(D1)
    assert member is not None
    assert member.status is MemberStatus.HELD
    assert len(site.service.store.alarms()) == 1
    revoked = x509.load_pem_x509_crl((site.folder / "crl.pem").read_bytes())
    assert [entry.serial_number for entry in revoked] == [member.certificate_number]
    assert "user d1\ntopic deny #" in (site.folder / "acl").read_text()
    site.run(site.service.registrar.reconcile())
    assert site.log.devices[D1].revoked
    with pytest.raises(RemoteProtocolError, match="not-enrolled"):
        renew(site.url, honest, device_id=D1, chain_id=CHAIN, genesis_digest=None)


def test_other_registrar_is_not_believed(site: Site, tmp_path: Path) -> None:
    places = site.places("d1", site.claim())
    Authority.create(name="stranger", now_s=SystemClock().time_s()).save(
        tmp_path / "stranger.pem", tmp_path / "stranger-key.pem"
    )
    foreign = replace(places, ca_file=tmp_path / "stranger.pem")
    with pytest.raises(ConnectError):
        enrol(site.url, foreign, device_id=D1, algorithm=Algorithm.EDDSA, genesis_digest=None)
    assert places.claim_file.exists(), "the claim was not shown to a stranger"
    assert [claim.used_s for claim in site.service.store.claims()] == [None]


def test_plain_http_gets_no_answer(site: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.service.port, timeout=5)
    connection.request("POST", "/.well-known/est/simpleenroll", body=csr(), headers=bearer(site.claim()))
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()
    connection.close()
    assert [claim.used_s for claim in site.service.store.claims()] == [None]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "unauthorized"),
        ({"Authorization": "Basic abc"}, "unauthorized"),
        ({"Authorization": "Bearer "}, "unauthorized"),
        ({"Authorization": "Bearer guess"}, "unknown-claim"),
        ({"Authorization": "Bearer " + "x" * 5_000}, "unknown-claim"),
    ],
)
def test_no_claim_no_certificate(site: Site, headers: dict[str, str], code: str) -> None:
    status, answer = post(site, "simpleenroll", csr(), headers)
    assert (status, answer["error"]["code"]) == (401, code)


@pytest.mark.parametrize("body", [b"x", b"\x00" * 100, b"-----BEGIN CERTIFICATE REQUEST-----\n", csr("miner.m0")])
def test_bad_requests_leave_the_claim_unused(site: Site, body: bytes) -> None:
    status, answer = post(site, "simpleenroll", body, bearer(site.claim()))
    assert (status, answer["error"]["code"]) == (400, "bad-request")
    assert [claim.used_s for claim in site.service.store.claims()] == [None]


def test_long_bodies_are_not_read(site: Site) -> None:
    status, _ = post(site, "simpleenroll", bytes(CSR_BYTES_MAX + 1), bearer(site.claim()))
    assert status == 413
    status, _ = post(site, "simplereenroll", bytes(server.RENEWAL_BYTES_MAX + 1), {})
    assert status == 413


def test_claim_for_one_device_is_no_claim_for_another(site: Site) -> None:
    status, answer = post(site, "simpleenroll", csr("d2"), bearer(site.claim(D1)))
    assert (status, answer["error"]["code"]) == (403, "other-device")


def renewal(signer: cose.Signer, body: bytes, **changes: Any) -> bytes:
    arguments: dict[str, Any] = {"domain": Domain.RENEW, "chain_id": CHAIN, "sender": "d1"}
    return cose.sign(body, signer=signer, **(arguments | changes))


def test_renewals_that_prove_nothing(site: Site) -> None:
    places = site.places("d1", site.claim())
    enrol(site.url, places, device_id=D1, algorithm=Algorithm.EDDSA, genesis_digest=None)
    own, stranger = load_signer(places.key_file), cose.SoftwareSigner(Ed25519PrivateKey.generate())
    for envelope, status, code in (
        (renewal(stranger, csr()), 403, "bad-signature"),
        (renewal(own, csr(), chain_id="other-chain"), 403, "bad-signature"),
        (renewal(own, csr(), domain=Domain.UPDATE), 403, "bad-signature"),
        (renewal(own, csr("d2")), 403, "not-enrolled"),
        (renewal(own, csr(), sender="d2"), 403, "not-enrolled"),
        (renewal(own, b"no request"), 400, "bad-request"),
        (b"no envelope", 400, "bad-request"),
    ):
        found, answer = post(site, "simplereenroll", envelope, {})
        assert (found, answer["error"]["code"]) == (status, code)
    assert len(site.log.transactions) == 1


def test_new_key_replaces_the_old_one_on_the_ledger(site: Site) -> None:
    places = site.places("d1", site.claim())
    enrol(site.url, places, device_id=D1, algorithm=Algorithm.EDDSA, genesis_digest=None)
    old, new_key = load_signer(places.key_file), Ed25519PrivateKey.generate()
    status, answer = post(site, "simplereenroll", renewal(old, make_csr("d1", new_key)), {})
    assert (status, answer["serial"], answer["settled"]) == (200, 2, True)
    assert site.log.devices[D1].key == cose.SoftwareSigner(new_key).public_key
    status, answer = post(site, "simplereenroll", renewal(old, csr()), {})
    assert (status, answer["error"]["code"]) == (403, "bad-signature")


def test_registrar_key_must_be_that_of_genesis(config: EnrolmentConfig) -> None:
    genesis = make_genesis(cose.SoftwareSigner(Ed25519PrivateKey.generate()).public_key)
    with pytest.raises(ConfigError, match="registrar"):
        EnrolmentService(config, genesis, lookup=lambda _: None, submit=Log(), time_s=SystemClock().time_s)
