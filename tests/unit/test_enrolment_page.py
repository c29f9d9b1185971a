"""What the registrar's miner shows of its boards, and how an operator lets a held one come back."""

import json
from pathlib import Path

import pytest

from coordinator.cli import main
from coordinator.enrolment import page
from coordinator.enrolment.claims import ClaimStore
from coordinator.enrolment.records import EnrolmentRefusedError
from edge_sdk.adapters.enrolment import Wait
from edge_sdk.adapters.keys import fingerprint
from edge_sdk.protocol.ids import DeviceId
from tests.support.enrolment import NOW_S, Issuer, make_request

D1 = DeviceId("d1")


def held(store: ClaimStore) -> str:
    """A device whose claim came from two boards; the fingerprint of the first one's key."""
    token, request = store.issue_claim(D1, now_s=NOW_S, ttl_s=60), make_request()
    store.redeem(token, request, issue=Issuer(), now_s=NOW_S, waited={Wait.CLOCK: 312, Wait.UNREACHABLE: 4})
    with pytest.raises(EnrolmentRefusedError):
        store.redeem(token, make_request(), issue=Issuer(), now_s=NOW_S)
    return fingerprint(request.key)


def test_page_of_an_empty_store(tmp_path: Path) -> None:
    store = ClaimStore.open(tmp_path / "claims.sqlite3")
    document = page.fleet_document(store, now_s=NOW_S, notes={D1: "client 0.2"})
    store.close()
    assert document["devices_by_status"] == {"enrolled": 0, "held": 0, "revoked": 0}
    assert page.render(document).count("<p>none</p>") == 4


def test_page_shows_what_an_operator_has_to_know(tmp_path: Path) -> None:
    store = ClaimStore.open(tmp_path / "claims.sqlite3")
    held(store)
    store.issue_claim(DeviceId("d2"), now_s=NOW_S, ttl_s=60)
    store.issue_claim(DeviceId("d3"), now_s=NOW_S - 100, ttl_s=60)
    document = page.fleet_document(store, now_s=NOW_S, notes={D1: "client 0.2"})
    store.close()
    assert document["devices_by_status"] == {"enrolled": 0, "held": 1, "revoked": 0}
    assert [(row["device"], row["is_expired"]) for row in document["expected"]] == [("d2", False), ("d3", True)]
    text = page.render(document)
    for words in (
        "reused-claim",
        "clock 312 s, unreachable 4 s",
        "not seen yet",
        "claim has expired",
        "1 times",
        "client 0.2",
    ):
        assert words in text
    json.dumps(document)


def test_no_text_of_a_board_becomes_markup() -> None:
    hostile = "<script>alert(1)</script>"
    row = {"device": hostile, "kind": hostile, "note": hostile, "first_s": 0, "last_s": 0, "count": 1}
    refused = {"device": hostile, "reason": hostile, "count": 1, "last_s": 0}
    document = {"alarms": [row], "refused": [refused], "expected": [], "devices": []}
    text = page.render(document)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


@pytest.fixture(scope="module")
def registrar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of the registrar's miner of a founded fleet."""
    fleet = tmp_path_factory.mktemp("founded") / "fleet"
    assert main(["miner", "init", "--miners", "m0", str(fleet)]) == 0
    return fleet / "miners" / "m0" / "miner.toml"


def test_operator_releases_a_device_by_its_key(registrar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ClaimStore.open(registrar.parents[2] / "registrar" / "claims.sqlite3")
    key = held(store)
    release = ["registry", "release", "d1", "--config", str(registrar), "--key"]
    assert main([*release, key[:7]]) == 2, "too short to mean one key"
    assert main([*release, "f" * 16]) == 2
    assert "it is the copy" in capsys.readouterr().err
    assert main([*release, key[:8].upper()]) == 0
    assert "released" in capsys.readouterr().out
    member = store.member(D1)
    assert member is not None
    assert (member.status.value, member.serial) == ("enrolled", 2)
    assert main([*release, key[:8]]) == 2, "it is not held any more"
    assert main(["registry", "list", "--config", str(registrar)]) == 0
    shown = capsys.readouterr().out
    assert key[:16] in shown
    assert "cleared " in shown
    assert store.hold_clone(D1, member.key, "two boards", now_s=NOW_S)
    assert main([*release, key[:8]]) == 2
    assert "--new-key" in capsys.readouterr().err
    store.close()
