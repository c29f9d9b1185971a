import pytest

from coordinator.serving.ranges import HEADER_CHARS_MAX, Span, UnsatisfiableRangeError, is_fresh, select_span

ETAG = '"abc"'


def select(header: str | None, size: int = 10, if_range: str | None = None) -> Span:
    return select_span(size, range_header=header, if_range=if_range, etag=ETAG)


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-9", 0, 10),
        ("bytes=3-5", 3, 6),
        ("bytes=3-", 3, 10),
        ("bytes=3-99", 3, 10),
        ("bytes=-4", 6, 10),
        ("bytes=-99", 0, 10),
        ("bytes= 3-5 ", 3, 6),
    ],
)
def test_one_range(header: str, start: int, stop: int) -> None:
    assert select(header) == Span(start, stop, 10, partial=True)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes=",
        "bytes=-",
        "bytes=5-3",
        "bytes=0-1,4-5",
        "chars=0-1",
        "bytes=a-b",
        "bytes=+1-2",
        "bytes=1-2-3",
        "bytes=" + "9" * 400 + "-",
        "bytes=0-" + " " * HEADER_CHARS_MAX,
        "bytes=\u0661-\u0662",
    ],
)
def test_what_is_not_one_range_is_ignored(header: str | None) -> None:
    assert select(header) == Span(0, 10, 10, partial=False)


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=99-100", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-1", 0)]
)
def test_no_byte_in_range(header: str, size: int) -> None:
    with pytest.raises(UnsatisfiableRangeError):
        select(header, size)


def test_if_range_needs_the_same_tag() -> None:
    assert select("bytes=2-3", if_range=ETAG).partial
    assert not select("bytes=2-3", if_range='"other"').partial
    assert not select("bytes=2-3", if_range=f"W/{ETAG}").partial
    assert not select("bytes=2-3", if_range="Sat, 21 Nov 2026 10:00:00 GMT").partial


@pytest.mark.parametrize(
    ("header", "fresh"),
    [
        (None, False),
        ("", False),
        ('"x"', False),
        (ETAG, True),
        (f"W/{ETAG}", True),
        (f'"x", {ETAG}', True),
        ("*", True),
        (f"{ETAG}," * HEADER_CHARS_MAX, False),
    ],
)
def test_if_none_match(header: str | None, *, fresh: bool) -> None:
    assert is_fresh(header, ETAG) is fresh
