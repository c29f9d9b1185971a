import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from coordinator.serving import files
from coordinator.serving.http import BLOCKS_PER_PAGE_MAX, create_app
from coordinator.serving.metrics import MinerMetrics
from edge_sdk.errors import ConnectError
from edge_sdk.protocol import wire
from edge_sdk.protocol.limits import TX_BYTES_MAX
from edge_sdk.protocol.messages import BlockHeader, Certificate, Reason
from tests.support.serving import Answer, FakeView, Log, make_block

BLOB = bytes(range(256)) * 40


@pytest.fixture
def view(tmp_path: Path) -> FakeView:
    (tmp_path / "secret").write_text("not for the network")
    blob_dir = tmp_path / "blobs"
    blob_dir.mkdir()
    view = FakeView(blob_dir, decided=[make_block(index) for index in range(1, 26)])
    view.add_model(b"version 0")
    view.add_model(BLOB)
    return view


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def metrics() -> MinerMetrics:
    return MinerMetrics()


@pytest.fixture
def client(view: FakeView, log: Log, metrics: MinerMetrics) -> TestClient:
    return TestClient(create_app(view, log, metrics), raise_server_exceptions=False)


def blob_path(view: FakeView) -> str:
    return f"/v1/blobs/sha256/{view.latest().model_digest.hex()}"


def error_of(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    error = response.json()["error"]
    assert set(error) == {"code", "message"}
    code: str = error["code"]
    return code


# --- models ---


def test_latest_and_numbered_model_agree(client: TestClient, view: FakeView) -> None:
    latest = client.get("/v1/models/latest").json()
    assert latest == client.get("/v1/models/1").json()
    assert latest["model_digest"] == hashlib.sha256(BLOB).hexdigest()
    assert base64.b64decode(latest["certificate"]) == b"certificate"
    assert client.get(latest["model_path"]).content == BLOB
    assert client.get("/v1/models/0").json()["certificate"] is None


@pytest.mark.parametrize("version", ["x", "-1", "01", "1.0", "9" * 17, "9" * 5000, "%31%30%", "\u0661"])
def test_version_that_is_no_number(client: TestClient, version: str) -> None:
    assert error_of(client.get(f"/v1/models/{version}"), 400) == "bad-request"


def test_version_that_does_not_exist(client: TestClient) -> None:
    assert error_of(client.get("/v1/models/2"), 404) == "not-found"


def test_polling_costs_a_304(client: TestClient, view: FakeView) -> None:
    first = client.get("/v1/models/latest")
    again = client.get("/v1/models/latest", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    view.add_model(b"version 2")
    changed = client.get("/v1/models/latest", headers={"if-none-match": first.headers["etag"]})
    assert changed.json()["version"] == 2


# --- blobs ---


def test_whole_blob(client: TestClient, view: FakeView, metrics: MinerMetrics) -> None:
    response = client.get(blob_path(view))
    assert (response.status_code, response.content) == (200, BLOB)
    assert response.headers["etag"] == f'"{hashlib.sha256(BLOB).hexdigest()}"'
    assert response.headers["accept-ranges"] == "bytes"
    assert "immutable" in response.headers["cache-control"]
    assert int(response.headers["content-length"]) == len(BLOB)
    assert metrics.value("flchain_http_blob_bytes_total") == len(BLOB)


def test_blob_longer_than_a_piece(client: TestClient, view: FakeView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE_BYTES", 100)
    assert client.get(blob_path(view)).content == BLOB
    assert client.get(blob_path(view), headers={"range": "bytes=50-349"}).content == BLOB[50:350]


def test_resumed_download_is_the_blob(client: TestClient, view: FakeView) -> None:
    head = client.get(blob_path(view), headers={"range": "bytes=0-999"})
    etag = head.headers["etag"]
    tail = client.get(blob_path(view), headers={"range": "bytes=1000-", "if-range": etag})
    assert (head.status_code, tail.status_code) == (206, 206)
    assert head.headers["content-range"] == f"bytes 0-999/{len(BLOB)}"
    assert head.content + tail.content == BLOB


def test_range_behind_the_end(client: TestClient, view: FakeView) -> None:
    response = client.get(blob_path(view), headers={"range": f"bytes={len(BLOB)}-"})
    assert error_of(response, 416) == "range-not-satisfiable"
    assert response.headers["content-range"] == f"bytes */{len(BLOB)}"


def test_head_has_the_headers_only(client: TestClient, view: FakeView, metrics: MinerMetrics) -> None:
    response = client.head(blob_path(view))
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) == len(BLOB)
    assert metrics.value("flchain_http_blob_bytes_total") == 0


def test_known_blob_is_not_sent_again(client: TestClient, view: FakeView) -> None:
    response = client.get(blob_path(view), headers={"if-none-match": f'"{view.latest().model_digest.hex()}"'})
    assert (response.status_code, response.content) == (304, b"")


def test_blob_that_is_not_here(client: TestClient) -> None:
    assert error_of(client.get("/v1/blobs/sha256/" + "0" * 64), 404) == "not-found"


@pytest.mark.parametrize(
    "name",
    [
        "..%2f..%2fsecret",
        "%2e%2e",
        "secret",
        "0" * 63,
        "0" * 65,
        "A" * 64,
        "g" * 64,
        "0" * 62 + "%00",
        "%2fetc%2fpasswd",
        "0" * 10_000,
    ],
)
def test_no_name_reaches_the_file_system(client: TestClient, name: str) -> None:
    response = client.get(f"/v1/blobs/sha256/{name}")
    assert response.status_code in {400, 404}
    assert "not for the network" not in response.text


@pytest.mark.parametrize(
    "path", ["/../secret", "/v1/blobs/sha256/../../secret", "//etc/passwd", "/v1/blobs/md5/00", "/"]
)
def test_unknown_paths(client: TestClient, path: str) -> None:
    assert error_of(client.get(path), 404) == "not-found"


def test_wrong_method(client: TestClient, view: FakeView) -> None:
    assert error_of(client.delete(blob_path(view)), 405) == "method-not-allowed"
    assert error_of(client.get("/v1/txs"), 405) == "method-not-allowed"


# --- blocks and outcomes ---


def test_blocks_by_page(client: TestClient) -> None:
    first = client.get("/v1/blocks").json()
    assert [block["index"] for block in first["blocks"]] == list(range(1, 21))
    rest = client.get("/v1/blocks", params={"from": first["next"]}).json()
    assert [block["index"] for block in rest["blocks"]] == list(range(21, 26))
    assert rest["next"] is None
    assert client.get("/v1/blocks", params={"from": 26}).json() == {"blocks": [], "next": None}
    assert client.get("/v1/blocks", params={"from": 0, "limit": 1}).json()["next"] == 2


@pytest.mark.parametrize(
    "query", ["from=-1", "from=x", "limit=0", f"limit={BLOCKS_PER_PAGE_MAX + 1}", "limit=1e3", "from=" + "9" * 5000]
)
def test_blocks_with_a_bad_query(client: TestClient, query: str) -> None:
    assert error_of(client.get(f"/v1/blocks?{query}"), 400) == "bad-request"


def test_block_carries_the_bytes_that_were_signed(client: TestClient, view: FakeView) -> None:
    document = client.get("/v1/blocks/3").json()
    block = view.decided[2]
    assert wire.from_bytes(BlockHeader, base64.b64decode(document["header_bytes"])) == block.header
    assert wire.from_bytes(Certificate, base64.b64decode(document["certificate"]["bytes"])) == block.certificate
    assert document["header"]["cause"] == "tau"
    assert document["entries"][0]["verdict"] == "merged"
    assert error_of(client.get("/v1/blocks/26"), 404) == "not-found"


def test_outcome(client: TestClient, view: FakeView) -> None:
    digest = view.decided[0].entries[0].update_digest
    assert error_of(client.get(f"/v1/outcomes/{digest.hex()}"), 404) == "not-found"
    view.outcomes[digest] = b"outcome"
    document = client.get(f"/v1/outcomes/{digest.hex()}").json()
    assert base64.b64decode(document["outcome"]) == b"outcome"


def test_genesis(client: TestClient) -> None:
    assert client.get("/v1/genesis").content == b"genesis"


# --- transactions ---


def test_posted_transaction_reaches_the_log(client: TestClient, log: Log) -> None:
    response = client.post("/v1/txs", content=b"envelope")
    assert response.status_code == 202
    assert response.json()["reason"] == "none"
    assert response.json()["tx_digest"] == hashlib.sha256(b"envelope").hexdigest()
    assert log.transactions == [b"envelope"]


def test_refused_transaction_says_why(client: TestClient, log: Log) -> None:
    log.answer = Answer(Reason.BAD_SIGNATURE, "signature of d1")
    response = client.post("/v1/txs", content=b"envelope")
    assert response.status_code == 422
    assert (response.json()["code"], response.json()["reason"]) == (4, "bad_signature")


def test_log_out_of_reach(client: TestClient, log: Log) -> None:
    log.answer = ConnectError("connection refused: /run/secret.sock")
    response = client.post("/v1/txs", content=b"envelope")
    assert error_of(response, 503) == "service-unavailable"
    assert "secret" not in response.text
    assert response.headers["retry-after"] == "1"


def test_body_bounds(client: TestClient, log: Log) -> None:
    assert client.post("/v1/txs", content=bytes(TX_BYTES_MAX)).status_code == 202
    assert error_of(client.post("/v1/txs", content=bytes(TX_BYTES_MAX + 1)), 413)
    assert error_of(client.post("/v1/txs", content=b""), 400) == "bad-request"
    assert len(log.transactions) == 1


def test_long_body_without_a_length_is_cut_off(client: TestClient, log: Log) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(1000):
            yield bytes(4096)

    assert error_of(client.post("/v1/txs", content=pieces()), 413)
    assert log.transactions == []


@pytest.mark.parametrize("length", ["x", "-1", "9" * 400, "²"])
def test_length_that_lies(client: TestClient, log: Log, length: str) -> None:
    headers = {"content-length": length.encode("latin-1", "replace")}
    assert client.post("/v1/txs", content=b"envelope", headers=headers).status_code in {400, 413}
    assert log.transactions == []


def test_bug_of_ours_shows_no_detail(client: TestClient, log: Log) -> None:
    log.answer = RuntimeError("path /home/operator/key.pem")
    response = client.post("/v1/txs", content=b"envelope")
    assert error_of(response, 500) == "internal"
    assert "operator" not in response.text


# --- health and metrics ---


def test_health(client: TestClient, view: FakeView) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    view.note = "no certified model on disk"
    response = client.get("/healthz")
    assert (response.status_code, response.json()["note"]) == (503, "no certified model on disk")


def test_responses_are_counted_by_route(client: TestClient, metrics: MinerMetrics) -> None:
    client.get("/v1/models/1")
    client.get("/v1/models/7")
    client.get("/v1/models/8")
    client.get("/made/up/by/a/client")
    client.delete("/v1/models/1")

    def count(route: str, status: str) -> float:
        return metrics.value("flchain_http_responses_total", route=route, status=status)

    assert count("/v1/models/{version}", "200") == 1
    assert count("/v1/models/{version}", "404") == 2
    assert count("unmatched", "404") == 1
    text = client.get("/metrics").text
    assert 'flchain_http_responses_total{route="/v1/models/{version}",status="404"} 2.0' in text
    assert "made/up" not in text
