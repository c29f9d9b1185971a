"""Downloads: resumed, bounded, from the next miner when one fails."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edge_sdk.adapters.http_blobs import HttpBlobs
from edge_sdk.device import downloads as module
from edge_sdk.device.downloads import Downloads, Ranges, first_bytes
from edge_sdk.errors import TransportError
from edge_sdk.protocol.chunks import split
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.messages import Chunk

BLOB = bytes(range(256)) * 1_000
DIGEST = sha256(BLOB)


class Server:
    """Serves ``BLOB`` in the way that ``mode`` says; remembers the ranges that were asked for."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.ranges: list[str | None] = []

    @contextmanager
    def running(self) -> Iterator[str]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                server.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                body = BLOB[start:]
                match server.mode:
                    case "tampered":
                        body = bytes([BLOB[start] ^ 1]) + body[1:]
                    case "truncated":
                        body = body[: len(body) // 2]
                    case "endless":
                        body = BLOB * 3
                    case "missing":
                        self.send_error(404)
                        return
                    case "ignores ranges":
                        start, body = 0, BLOB
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}")
                if server.mode != "truncated":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            http.server_close()
            thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.part"


def test_resumes_what_is_there(path: Path) -> None:
    path.write_bytes(BLOB[:100_000])
    server = Server("good")
    with server.running() as url:
        assert HttpBlobs().fetch([url], DIGEST, len(BLOB), path) == len(BLOB) - 100_000
    assert server.ranges == ["bytes=100000-"]
    assert path.read_bytes() == BLOB


def test_server_without_ranges_starts_over(path: Path) -> None:
    path.write_bytes(BLOB[:100])
    with Server("ignores ranges").running() as url:
        HttpBlobs().fetch([url], DIGEST, len(BLOB), path)
    assert path.read_bytes() == BLOB


def test_false_beginning_is_thrown_away(path: Path) -> None:
    path.write_bytes(b"\xff" * 100)
    server = Server("good")
    with server.running() as url:
        HttpBlobs().fetch([url], DIGEST, len(BLOB), path)
    assert server.ranges == ["bytes=100-", None]
    assert path.read_bytes() == BLOB


@pytest.mark.parametrize("mode", ["tampered", "truncated", "endless", "missing"])
def test_bad_miner_is_named_and_the_next_one_asked(path: Path, mode: str) -> None:
    with Server(mode).running() as bad:
        with pytest.raises(TransportError, match=r"127\.0\.0\.1"):
            HttpBlobs().fetch([bad], DIGEST, len(BLOB), path)
        assert not path.exists() or path.stat().st_size <= len(BLOB)
        with Server("good").running() as good:
            HttpBlobs().fetch(["http://127.0.0.1:1", bad, good], DIGEST, len(BLOB), path)
    assert path.read_bytes() == BLOB


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://user@host/", "http://", "gopher://x"])
def test_strange_urls_are_refused(path: Path, url: str) -> None:
    with pytest.raises(TransportError):
        HttpBlobs().fetch([url], DIGEST, len(BLOB), path)


def test_unknown_size_is_bounded(path: Path) -> None:
    with Server("good").running() as url:
        with pytest.raises(TransportError, match="more than 1000"):
            HttpBlobs().fetch([url], DIGEST, None, path, bytes_max=1_000)
        HttpBlobs().fetch([url], DIGEST, None, path, bytes_max=len(BLOB))
    assert path.read_bytes() == BLOB


class Chunks:
    """Answers requests for chunks as the miners would; ``lose`` drops the first one of the first answer."""

    def __init__(self, *, lose: bool = False, copies: int = 1) -> None:
        self.asked: list[Ranges] = []
        self.is_silent = False
        self._lose = lose
        self._copies = copies
        self.downloads = Downloads(HttpBlobs(), ask=self.ask, stopping=threading.Event())

    def ask(self, digest: Digest, ranges: Ranges) -> None:
        self.asked.append(ranges)
        if self.is_silent:
            return
        chunks = list(split(BLOB, digest, ranges=ranges))
        self.downloads.offer_chunk(Chunk(digest=Digest(b"\1" * 32), offset=0, data=b"foreign"))
        for chunk in reversed(chunks[1:] if self._lose and len(self.asked) == 1 else chunks):
            for _ in range(self._copies):
                self.downloads.offer_chunk(chunk)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.05)


@pytest.mark.usefixtures("impatient")
def test_chunks_over_mqtt_where_http_is_closed(path: Path) -> None:
    chunks = Chunks(lose=True)
    assert chunks.downloads.fetch([], DIGEST, len(BLOB), path) == len(BLOB)
    assert path.read_bytes() == BLOB
    assert chunks.asked == [((0, len(BLOB)),), ((0, 65_536),)]


def test_repeated_answers_are_passed_over_and_not_asked_for_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_CHUNKS", 2)
    chunks = Chunks(copies=4)
    chunks.downloads.fetch([], DIGEST, len(BLOB), path)
    assert path.read_bytes() == BLOB
    assert chunks.asked == [((0, 131_072),), ((131_072, len(BLOB)),)]


@pytest.mark.usefixtures("impatient")
def test_nobody_sends_chunks(path: Path) -> None:
    asked: list[Ranges] = []
    downloads = Downloads(HttpBlobs(), ask=lambda _, ranges: asked.append(ranges), stopping=threading.Event())
    with pytest.raises(TransportError, match=r"HTTP: http://127\.0\.0\.1:1: .*; MQTT: no miner sends the chunks"):
        downloads.fetch(["http://127.0.0.1:1"], DIGEST, len(BLOB), path)
    assert asked == [((0, len(BLOB)),)] * module.SILENCE_MAX


def test_the_way_that_worked_is_taken_first_for_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, server = Chunks(), Server("missing")
    with server.running() as url:
        for _ in range(3):
            path.unlink(missing_ok=True)
            chunks.downloads.fetch([url], DIGEST, len(BLOB), path)
        assert (len(server.ranges), len(chunks.asked)) == (1, 3)
        monkeypatch.setattr(module, "HTTP_AGAIN_S", -1.0)
        late = Chunks()
        for _ in range(2):
            path.unlink(missing_ok=True)
            late.downloads.fetch([url], DIGEST, len(BLOB), path)
        assert (len(server.ranges), len(late.asked)) == (3, 2)


@pytest.mark.usefixtures("impatient")
def test_http_helps_out_when_the_chunks_stop(path: Path) -> None:
    chunks, server = Chunks(), Server("missing")
    with server.running() as url:
        chunks.downloads.fetch([url], DIGEST, len(BLOB), path)
        server.mode = "good"
        path.unlink()
        chunks.is_silent = True
        assert chunks.downloads.fetch([url], DIGEST, len(BLOB), path) == len(BLOB)
    assert path.read_bytes() == BLOB


def test_first_bytes() -> None:
    assert first_bytes(((0, 10), (20, 30)), 15) == ((0, 10), (20, 25))
    assert first_bytes(((0, 10),), 10) == ((0, 10),)
