"""Enrolment over real TLS: the registrar's service and the device's own client, each with its files."""

from __future__ import annotations

import http.client
import json
import ssl
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.enrolment import server
from coordinator.enrolment.authority import CSR_BYTES_MAX, Authority
from coordinator.enrolment.config import EnrolmentConfig
from coordinator.enrolment.records import MemberStatus
from coordinator.enrolment.service import EnrolmentService
from coordinator.serving.metrics import MinerMetrics
from edge_sdk.adapters.enrolment import enrol, renew
from edge_sdk.adapters.keys import load_signer
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.errors import ConfigError, ConnectError, RemoteProtocolError
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.digest import genesis_digest
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.protocol.messages import (
    Algorithm,
    Domain,
)
from tests.support.enrolment import make_csr
from tests.support.registrar import Site, make_genesis, make_settings, running_site
from tests.support.serving import CHAIN, Log

D1 = DeviceId("d1")
T = TypeVar("T")


@pytest.fixture
def config(tmp_path: Path) -> EnrolmentConfig:
    return make_settings(tmp_path)


@pytest.fixture
def site(config: EnrolmentConfig, tmp_path: Path) -> Iterator[Site]:
    with running_site(config, tmp_path) as site:
        yield site


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
        EnrolmentService(
            config, genesis, lookup=lambda _: None, submit=Log(), time_s=SystemClock().time_s, metrics=MinerMetrics()
        )
