"""Conditional and partial requests for an immutable blob (RFC 9110, sections 13 and 14): pure decisions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

HEADER_CHARS_MAX: Final = 512
"""Longer Range or precondition headers are treated as absent; no client of ours sends more than one range or tag."""

_RANGE = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes to send: half-open [start, stop) of ``size``; ``partial`` tells 206 from 200."""

    start: int
    stop: int
    size: int
    partial: bool

    @property
    def length(self) -> int:
        """Bytes to send."""
        return self.stop - self.start

    @property
    def content_range(self) -> str:
        """Value of the Content-Range header of a 206 answer."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


class UnsatisfiableRangeError(Exception):
    """No byte of the blob lies in the range that was asked for: 416."""


def select_span(size: int, *, range_header: str | None, if_range: str | None, etag: str) -> Span:
    """Decide which bytes answer a GET.

    One range is served; several, other units and malformed texts are ignored, as RFC 9110 section 14.2 allows, and
    the whole blob is sent. A date in If-Range never matches: the blob has no date, its tag is stronger.

    Args:
        size: Bytes of the blob.
        range_header: Range, or None.
        if_range: If-Range, or None.
        etag: Strong entity tag of the blob, with its quotes.

    Raises:
        UnsatisfiableRangeError: the range starts behind the end, or asks for the last 0 bytes.
    """
    whole = Span(0, size, size, partial=False)
    if range_header is None or len(range_header) > HEADER_CHARS_MAX:
        return whole
    if if_range is not None and if_range.strip() != etag:
        return whole
    match = _RANGE.fullmatch(range_header)
    if match is None:
        return whole
    first, last = match.groups()
    if not first and not last:
        return whole
    if not first:  # the last n bytes
        if int(last) == 0 or size == 0:
            raise UnsatisfiableRangeError
        return Span(max(0, size - int(last)), size, size, partial=True)
    start = int(first)
    if last and int(last) < start:
        return whole  # syntactically invalid: ignored
    if start >= size:
        raise UnsatisfiableRangeError
    stop = min(size, int(last) + 1) if last else size
    return Span(start, stop, size, partial=True)


def is_fresh(if_none_match: str | None, etag: str) -> bool:
    """Whether the client already holds the representation (weak comparison, RFC 9110 section 13.1.2): 304."""
    if if_none_match is None or len(if_none_match) > HEADER_CHARS_MAX:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags
