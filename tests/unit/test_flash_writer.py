"""Writing and comparing: order of writes, media that lie, block maps, damaged images."""

import gzip
import hashlib
import io
import lzma
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from firmware_profiles.errors import ImageRefusal, ImageRefusedError, MediumError
from firmware_profiles.flash import writer
from firmware_profiles.flash.block_map import load_block_map
from firmware_profiles.flash.host import Host
from firmware_profiles.flash.medium import Medium
from firmware_profiles.flash.progress import Progress, line
from firmware_profiles.flash.survey import CHUNK_BYTES, FIRST_BYTES, Survey, survey
from tests.support.fake_disks import mbr, raw_image

SIZE = 10 * 2**20  # two pieces and a half
LIMIT = 64 * 2**20


class LyingMedium(Medium):
    """A card that records its writes, and may lose or damage them."""

    def __init__(self, descriptor: int, *, lie: Callable[[int, bytes], bytes] = lambda _, data: data) -> None:
        super().__init__(Host(), descriptor, name="card", is_block=False)
        self.lie = lie
        self.writes: list[tuple[int, int]] = []
        self.writes_at_flush: list[int] = []

    def flush(self, *, offset: int) -> None:
        self.writes_at_flush.append(len(self.writes))
        super().flush(offset=offset)

    def write_at(self, offset: int, data: bytes) -> None:
        self.writes.append((offset, len(data)))
        super().write_at(offset, self.lie(offset, data))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(raw_image(SIZE))
    return path


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "card"
    path.write_bytes(b"\xee" * (SIZE + 4096))
    return path


def write(image: Survey, card: Path, lie: Callable[[int, bytes], bytes] = lambda _, data: data) -> LyingMedium:
    with LyingMedium(os.open(card, os.O_RDWR), lie=lie) as medium:
        writer.write(image, medium, phase=Progress(None).phase)
        return medium


def verify(image: Survey, card: Path) -> None:
    with Medium(Host(), os.open(card, os.O_RDONLY), name="card", is_block=False) as medium:
        writer.verify(image, medium, phase=Progress(None).phase)


def test_first_mebibyte_is_wiped_first_and_written_last(image: Path, card: Path) -> None:
    medium = write(survey(image, bytes_max=LIMIT), card)
    assert medium.writes[0] == (0, FIRST_BYTES)
    assert medium.writes_at_flush[0] == 1  # gone from the card before anything else is on it
    assert medium.writes[-1] == (0, FIRST_BYTES)
    assert medium.writes[1] == (FIRST_BYTES, CHUNK_BYTES - FIRST_BYTES)
    assert card.read_bytes() == image.read_bytes() + b"\xee" * 4096


@pytest.mark.parametrize("offset", [FIRST_BYTES, FIRST_BYTES + 77, CHUNK_BYTES - 1, CHUNK_BYTES, SIZE - 1])
def test_silent_corruption_behind_the_start_is_named_and_the_card_stays_without_a_table(
    image: Path, card: Path, offset: int
) -> None:
    def flip(start: int, data: bytes) -> bytes:
        bad = bytearray(data)
        if start <= offset < start + len(data) and start >= FIRST_BYTES:
            bad[offset - start] ^= 1
        return bytes(bad)

    with pytest.raises(MediumError, match=f"at byte {offset} ") as caught:
        write(survey(image, bytes_max=LIMIT), card, flip)
    assert (caught.value.offset, caught.value.exit_status) == (offset, 5)
    assert not any(card.read_bytes()[:FIRST_BYTES])


@pytest.mark.parametrize("offset", [0, 510, FIRST_BYTES - 1])
def test_corruption_of_the_start_is_named(image: Path, card: Path, offset: int) -> None:
    def flip(start: int, data: bytes) -> bytes:
        return data if start else data[:offset] + bytes([data[offset] ^ 0x80]) + data[offset + 1 :]

    with pytest.raises(MediumError) as caught:
        write(survey(image, bytes_max=LIMIT), card, flip)
    assert caught.value.offset == offset


def test_card_of_false_size_wraps_around(image: Path, card: Path) -> None:
    """A counterfeit card of 8 MiB that claims more: writes above its end land at its start."""
    real = 8 * 2**20

    def wrap(start: int, data: bytes) -> bytes:
        if start >= real:
            with card.open("r+b") as file:
                file.seek(start - real + FIRST_BYTES)
                file.write(data)
            return b"\xee" * len(data)
        return data

    with pytest.raises(MediumError) as caught:
        write(survey(image, bytes_max=LIMIT), card, wrap)
    assert caught.value.offset in range(FIRST_BYTES, FIRST_BYTES + 4)  # block numbers differ in these bytes


def test_write_that_is_cut_short_is_found(image: Path, card: Path) -> None:
    with pytest.raises(MediumError) as caught:
        write(survey(image, bytes_max=LIMIT), card, lambda start, data: data[:-512] if start > FIRST_BYTES else data)
    assert caught.value.offset == 2 * CHUNK_BYTES - 512


def test_full_medium_is_a_medium_error(image: Path) -> None:
    if not os.path.exists("/dev/full"):  # noqa: PTH110 - reads better beside os.open
        pytest.skip("no /dev/full")
    with (
        Medium(Host(), os.open("/dev/full", os.O_RDWR), name="card", is_block=False) as medium,
        pytest.raises(MediumError, match="No space"),
    ):
        writer.write(survey(image, bytes_max=LIMIT), medium, phase=Progress(None).phase)


def test_verify_finds_the_first_difference_and_a_short_card(image: Path, card: Path) -> None:
    found = survey(image, bytes_max=LIMIT)
    content = bytearray(image.read_bytes())
    card.write_bytes(content)
    verify(found, card)
    content[7_000_001] ^= 4
    content[9_000_000] ^= 4
    card.write_bytes(content)
    with pytest.raises(MediumError, match="at byte 7000001 "):
        verify(found, card)
    card.write_bytes(image.read_bytes()[:-512])
    with pytest.raises(MediumError, match="ends at byte"):
        verify(found, card)


def test_image_that_changes_is_not_written_with_a_table(image: Path, card: Path) -> None:
    found = survey(image, bytes_max=LIMIT)
    with image.open("r+b") as file:
        file.seek(SIZE - 1)
        file.write(b"!")
    with pytest.raises(ImageRefusedError) as caught:
        write(found, card)
    assert caught.value.reason is ImageRefusal.CHANGED
    assert not any(card.read_bytes()[:FIRST_BYTES])


def bmap_text(image: bytes, ranges: list[tuple[int, int]], *, version: str = "2.0") -> bytes:
    """Block map of 4 KiB blocks with its own checksum."""
    digests = [hashlib.sha256(image[first * 4096 : (last + 1) * 4096]).hexdigest() for first, last in ranges]
    items = "".join(
        f'<Range chksum="{digest}"> {first}-{last} </Range>'
        for digest, (first, last) in zip(digests, ranges, strict=True)
    )
    text = (
        f'<?xml version="1.0" ?><bmap version="{version}"><ImageSize> {len(image)} </ImageSize><BlockSize> 4096 '
        f"</BlockSize><ChecksumType> sha256 </ChecksumType><BmapFileChecksum> {'0' * 64} </BmapFileChecksum>"
        f"<BlockMap>{items}</BlockMap></bmap>"
    ).encode()
    return text.replace(b"0" * 64, hashlib.sha256(text).hexdigest().encode(), 1)


RANGES = [(0, 3), (300, 1500), (2048, 2049), (2559, 2559)]


def make_holes(image: Path) -> bytes:
    """Leave zeros in an image where no range is; its content then."""
    content = image.read_bytes()
    sparse = bytearray(len(content))
    for first, last in RANGES:
        sparse[first * 4096 : (last + 1) * 4096] = content[first * 4096 : (last + 1) * 4096]
    image.write_bytes(sparse)
    return bytes(sparse)


@pytest.mark.parametrize("block", [4, 299, 1501, 2558])
def test_block_map_that_leaves_data_out_is_refused(image: Path, tmp_path: Path, block: int) -> None:
    """The image is known by its digest, the map by nothing: it must not decide what reaches the card."""
    content = bytearray(make_holes(image))
    content[block * 4096 + 7] = 1
    image.write_bytes(content)
    (tmp_path / "map").write_bytes(bmap_text(bytes(content), RANGES))
    with pytest.raises(ImageRefusedError, match="its map none") as caught:
        survey(image, bytes_max=LIMIT, block_map=load_block_map(tmp_path / "map"))
    assert caught.value.reason is ImageRefusal.BAD_BLOCK_MAP


def test_holes_of_a_block_map_are_neither_written_nor_compared(image: Path, card: Path, tmp_path: Path) -> None:
    content = make_holes(image)
    (tmp_path / "map").write_bytes(bmap_text(content, RANGES))
    found = survey(image, bytes_max=LIMIT, block_map=load_block_map(tmp_path / "map"))
    assert found.mapped_bytes == 4096 * (4 + 1201 + 2 + 1)
    write(found, card)
    written = card.read_bytes()
    for first, last in RANGES:
        assert written[first * 4096 : (last + 1) * 4096] == content[first * 4096 : (last + 1) * 4096]
    assert written[1600 * 4096 : 1601 * 4096] == b"\xee" * 4096
    verify(found, card)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"300-1500", b"300-1501"),
        lambda text: text.replace(b'version="2.0"', b'version="1.4"'),
        lambda text: b'<!DOCTYPE a [<!ENTITY b "c">]>' + text,
        lambda text: text[:-10],
        lambda _: b"",
    ],
)
def test_bad_block_maps_are_refused(image: Path, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    (tmp_path / "map").write_bytes(change(bmap_text(image.read_bytes(), RANGES)))
    with pytest.raises(ImageRefusedError) as caught:
        load_block_map(tmp_path / "map")
    assert caught.value.reason is ImageRefusal.BAD_BLOCK_MAP


@pytest.mark.parametrize("ranges", [[(5, 4)], [(0, 9), (9, 12)], [(3000, 3001)], []])
def test_block_maps_that_contradict_themselves(image: Path, tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    (tmp_path / "map").write_bytes(bmap_text(image.read_bytes(), ranges))
    with pytest.raises(ImageRefusedError):
        load_block_map(tmp_path / "map")


def test_block_map_of_another_image(image: Path, tmp_path: Path) -> None:
    (tmp_path / "map").write_bytes(bmap_text(raw_image(SIZE, seed=2), RANGES))
    with pytest.raises(ImageRefusedError) as caught:
        survey(image, bytes_max=LIMIT, block_map=load_block_map(tmp_path / "map"))
    assert caught.value.reason is ImageRefusal.WRONG_CHECKSUM


def pack(data: bytes, kind: str, folder: Path) -> Path:
    path = folder / f"disk.img.{kind}"
    if kind == "gz":
        path.write_bytes(gzip.compress(data, 1))
    elif kind == "xz":
        path.write_bytes(lzma.compress(data, preset=0))
    else:
        if shutil.which("zstd") is None:
            pytest.skip("no zstd program")
        subprocess.run(["zstd", "-q1", "-o", str(path)], input=data, check=True)
    return path


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_packed_images_unpack_to_the_same_pieces(image: Path, tmp_path: Path, card: Path, kind: str) -> None:
    packed = pack(image.read_bytes(), kind, tmp_path)
    plain, found = survey(image, bytes_max=LIMIT), survey(packed, bytes_max=LIMIT)
    assert (found.pieces, found.content_sha256) == (plain.pieces, plain.content_sha256)
    assert found.file_sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()
    write(found, card)
    assert card.read_bytes()[:SIZE] == image.read_bytes()


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_packed_images_that_are_cut_damaged_or_bombs(image: Path, tmp_path: Path, kind: str) -> None:
    packed = pack(image.read_bytes(), kind, tmp_path)
    whole = packed.read_bytes()
    cases = {
        ImageRefusal.TRUNCATED: whole[: len(whole) // 2],
        ImageRefusal.CORRUPT: whole[: len(whole) // 2] + b"\xa5" * 64 + whole[len(whole) // 2 + 64 :],
    }
    for reason, content in cases.items():
        packed.write_bytes(content)
        with pytest.raises(ImageRefusedError) as caught:
            survey(packed, bytes_max=LIMIT)
        assert caught.value.reason is reason, str(caught.value)
    packed.write_bytes(whole)
    with pytest.raises(ImageRefusedError) as caught:
        survey(packed, bytes_max=SIZE - 1)
    assert caught.value.reason is ImageRefusal.TOO_LARGE


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_several_members_and_padding(image: Path, tmp_path: Path, kind: str) -> None:
    data = image.read_bytes()
    parts = [pack(data[start : start + SIZE // 2], kind, tmp_path).read_bytes() for start in (0, SIZE // 2)]
    path = tmp_path / "whole"
    path.write_bytes(b"".join(parts) + bytes(512))
    assert survey(path, bytes_max=LIMIT).content_sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", ImageRefusal.TRUNCATED),
        (b"PK\x03\x04" + bytes(5000), ImageRefusal.UNKNOWN_FORMAT),
        (b"QFI\xfb" + bytes(5000), ImageRefusal.UNKNOWN_FORMAT),
        (bytes(8192), ImageRefusal.UNKNOWN_FORMAT),
        (gzip.compress(bytes(8192)), ImageRefusal.UNKNOWN_FORMAT),
        (gzip.compress(gzip.compress(bytes(8192))), ImageRefusal.UNKNOWN_FORMAT),
        (mbr(start_sector=1, sectors=100) + bytes(4096), ImageRefusal.TRUNCATED),
        (mbr(start_sector=1, sectors=1) + bytes(1000), ImageRefusal.TRUNCATED),
    ],
)
def test_files_that_are_no_whole_disk(tmp_path: Path, content: bytes, reason: ImageRefusal) -> None:
    path = tmp_path / "x.img"
    path.write_bytes(content)
    with pytest.raises(ImageRefusedError) as caught:
        survey(path, bytes_max=LIMIT)
    assert caught.value.reason is reason


def test_progress_tells_rate_and_time_left() -> None:
    assert line("writing", 12_000_000, 48_000_000, 2.0) == "writing 12.0 of 48.0 MB (25 %), 6.0 MB/s, 6 s left"
    assert line("checking image", 5_000_000, 0, 1.0) == "checking image 5.0 MB, 5.0 MB/s"
    output = io.StringIO()
    times = iter([0.0, 1.0, 6.0, 7.0])
    advance = Progress(output, clock=lambda: next(times)).phase("writing", 30)
    for _ in range(3):
        advance(10)
    assert output.getvalue().splitlines() == [
        "writing 0.0 of 0.0 MB (66 %), 0.0 MB/s, 3 s left",
        "writing 0.0 of 0.0 MB (100 %), 0.0 MB/s, 0 s left",
    ]
