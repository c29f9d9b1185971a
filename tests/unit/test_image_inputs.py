"""What the image tool takes and refuses: identity files, secrets, wheels, partition tables."""

import struct
import uuid
import zlib
from pathlib import Path

import pytest

from firmware_profiles import cli
from firmware_profiles.errors import ImageRefusal, ImageRefusedError, UsageError
from firmware_profiles.image.identity import load_claim, load_identity, load_wifi
from firmware_profiles.image.inspect import inspect
from firmware_profiles.image.partitions import read_table
from firmware_profiles.image.seed import Content, Payload, payload_files, system_files
from firmware_profiles.image.wheelhouse import check_wheelhouse
from firmware_profiles.profile import BOARDS, InitFormat
from tests.support.fake_disks import mbr, raw_image

CONFIG = """\
[device]
id = "board-7"
[enrolment]
url = "https://registrar.test"
[trust]
genesis_digest = "00"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for name in ("ca.pem", "artifact.flm"):
        (tmp_path / name).write_text(name)
    path = tmp_path / "device.toml"
    path.write_text(CONFIG)
    return path


def test_identity_takes_the_anchor_and_nothing_else(config: Path) -> None:
    (config.parent / "notes.txt").write_text("private")
    identity = load_identity(config)
    assert (identity.device_id, identity.claim_name) == ("board-7", "claim.txt")
    assert set(identity.files) == {"device.toml", "ca.pem", "artifact.flm"}
    (config.parent / "genesis.cbor").write_bytes(b"\xa0")
    assert load_identity(config).files["genesis.cbor"] == b"\xa0"


def test_profile_of_ones_own_goes_with_the_card(config: Path) -> None:
    own = (BOARDS / "rpi-5.toml").read_text(encoding="utf-8").replace('id = "rpi-5"', 'id = "my-rpi-5"')
    (config.parent / "own.toml").write_text(own)
    config.write_text(f'{CONFIG}[board]\nprofile = "own.toml"\n')
    identity = load_identity(config)
    assert identity.board == "my-rpi-5"
    assert identity.files["own.toml"] == own.encode()
    (config.parent / "own.toml").write_text("nonsense")
    with pytest.raises(UsageError, match="profile"):
        load_identity(config)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("board-7", "Board 7"), "id"),
        (("https://", "http://"), "https"),
        (('genesis_digest = "00"', ""), "genesis.cbor"),
        (('genesis_digest = "00"', 'genesis_digest = "00"\nartifact_file = "/etc/shadow"'), "plain name"),
        (('genesis_digest = "00"', 'genesis_digest = "00"\nartifact_file = "../x"'), "plain name"),
        (("[trust]", "[trust"), "device.toml"),
    ],
)
def test_identity_that_could_not_enrol_is_refused(config: Path, change: tuple[str, str], text: str) -> None:
    config.write_text(CONFIG.replace(*change))
    with pytest.raises(UsageError, match=text):
        load_identity(config)


def test_broker_files_go_along_and_empty_names_are_none(config: Path) -> None:
    (config.parent / "password").write_text("secret of the broker")
    config.write_text(f'{CONFIG}[[broker]]\nhost = "b"\nca_file = ""\npassword_file = "password"\n')
    assert load_identity(config).files["password"] == b"secret of the broker"


@pytest.mark.parametrize("name", ["key.pem", "broker-key.pem"])
def test_private_key_beside_the_config_is_refused(config: Path, name: str) -> None:
    config.write_text(f'{CONFIG}[[broker]]\nhost = "b"\nkey_file = "broker-key.pem"\n')
    (config.parent / name).write_text("PRIVATE KEY")
    with pytest.raises(UsageError, match="never goes onto a card"):
        load_identity(config)


@pytest.mark.parametrize("text", ["", "short", "with space in the middle of it", "a" * 300, "x" * 5000])
def test_bad_claims(tmp_path: Path, text: str) -> None:
    (tmp_path / "claim").write_text(text)
    with pytest.raises(UsageError):
        load_claim(tmp_path / "claim")


def test_wifi_key_is_derived_by_the_standard(tmp_path: Path) -> None:
    """IEEE 802.11i, annex H.4.3, the second vector."""
    path = tmp_path / "wifi"
    path.write_text('ssid = "ThisIsASSID"\npassword = "ThisIsAPassword"\n')
    assert load_wifi(path).psk == "0dc0d6eb90555ed6419756b9a15ec3e3209b63df707dd508d14581f8982721af"
    path.write_text(f'ssid = "x"\npassword = "{"0" * 64}"\n')
    assert load_wifi(path).psk == "0" * 64


@pytest.mark.parametrize(
    "text",
    [
        'ssid = "x"',
        'ssid = "x"\npassword = "short"',
        'ssid = ""\npassword = "long enough"',
        'ssid = "a\\nb"\npassword = "long enough"',
        'ssid = "x"\npassword = "long enough"\ncountry = "Germany"',
        'ssid = "x"\npassword = "long enough"\npsk = "y"',
        "ssid",
    ],
)
def test_bad_wifi(tmp_path: Path, text: str) -> None:
    (tmp_path / "wifi").write_text(text)
    with pytest.raises(UsageError):
        load_wifi(tmp_path / "wifi")


def test_hostile_network_name_stays_a_value(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "wifi"
    path.write_text('ssid = "a: }\\"[wifi]"\npassword = "passphrase-9"\n')
    payload = Payload(load_identity(config), "t" * 32, load_wifi(path), ())
    names = {str(name): content.data for name, content in payload_files(payload, "/seed").items()}
    keyfile = names["wifi.nmconnection"]
    assert isinstance(keyfile, bytes)
    assert keyfile.count(b"[wifi]") == 1
    nocloud = system_files(InitFormat.CLOUDINIT_RPI, payload, boot_mount="/boot/firmware", cmdline=None)
    everything = [content.data for content in nocloud.values()] + list(names.values())
    assert not any(b"passphrase-9" in data for data in everything if isinstance(data, bytes))


def test_sums_cover_every_file(config: Path) -> None:
    files = payload_files(Payload(load_identity(config), "t" * 32, None, ()), "/seed")
    sums = [content for name, content in files.items() if name.name == "SHA256SUMS"]
    assert isinstance(sums[0].data, bytes)
    listed = {line.split("  ")[1] for line in sums[0].data.decode().splitlines()}
    assert listed == {str(name) for name in files if name.name != "SHA256SUMS"}
    assert Content(b"").digest().startswith("e3b0c442")


@pytest.mark.parametrize("cmdline", [None, b"", b"a\nb\n", b"x" * 5000, b"quiet systemd.run=/x\n"])
def test_firstrun_needs_a_plain_cmdline(config: Path, cmdline: bytes | None) -> None:
    payload = Payload(load_identity(config), "t" * 32, None, ())
    with pytest.raises(ImageRefusedError):
        system_files(InitFormat.FIRSTRUN, payload, boot_mount="/boot/firmware", cmdline=cmdline)


def wheel(folder: Path, *names: str) -> Path:
    for name in ("edge_flchain-0.1-py3-none-any.whl", *names):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "numpy-2.4-cp313-cp313-manylinux_2_28_aarch64.whl",
        "cryptography-50-cp37-abi3-manylinux2014_aarch64.whl",
        "cbor2-6.1-1build-cp313-cp313-linux_aarch64.whl",
        "six-1.17-py2.py3-none-any.whl",
    ],
)
def test_wheels_that_fit(tmp_path: Path, name: str) -> None:
    assert len(check_wheelhouse(wheel(tmp_path, name), python="3.13", architecture="aarch64")) == 2


@pytest.mark.parametrize(
    "name",
    [
        "numpy-2.4-cp311-cp311-manylinux_2_28_aarch64.whl",
        "numpy-2.4-cp313-cp313-manylinux_2_28_x86_64.whl",
        "numpy-2.4-cp313-cp313-musllinux_1_2_aarch64.whl",
        "cryptography-50-cp314-abi3-manylinux2014_aarch64.whl",
        "numpy-2.4.tar.gz",
        "a b-1-py3-none-any.whl",
    ],
)
def test_wheels_that_do_not_fit(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        check_wheelhouse(wheel(tmp_path, name), python="3.13", architecture="aarch64")


def test_two_wheels_of_one_package(tmp_path: Path) -> None:
    folder = wheel(tmp_path, "numpy-2.4.0-cp313-cp313-manylinux_2_28_aarch64.whl")
    (folder / "numpy-2.5.0-cp313-cp313-manylinux_2_28_aarch64.whl").write_bytes(b"PK")
    with pytest.raises(UsageError, match="two wheels of numpy"):
        check_wheelhouse(folder, python="3.13", architecture="aarch64")


def test_wheelhouse_without_the_client(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="edge_flchain"):
        check_wheelhouse(tmp_path, python="3.13", architecture="aarch64")


def gpt(entries: list[tuple[int, int]], *, is_damaged: bool = False) -> bytes:
    """First 34 sectors of a disk with a GPT: a protective MBR, the header, the entries."""
    linux = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
    table = b"".join(
        linux + bytes(16) + struct.pack("<QQQ", start, last, 0) + "APP".encode("utf-16-le").ljust(72, b"\0")
        for start, last in entries
    ).ljust(128 * 128, b"\0")
    header = struct.pack(
        "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 0, 34, 999, bytes(16), 2, 128, 128, zlib.crc32(table)
    )
    header = header[:16] + struct.pack("<I", zlib.crc32(header) ^ is_damaged) + header[20:]
    return mbr(start_sector=1, sectors=999, kind=0xEE) + header.ljust(512, b"\0") + table


def test_gpt() -> None:
    disk = gpt([(34, 99), (2048, 4095)])
    table = read_table(lambda offset, size: disk[offset : offset + size])
    assert [(part.start_bytes, part.end_bytes, part.name) for part in table.partitions] == [
        (34 * 512, 100 * 512, "APP"),
        (2048 * 512, 4096 * 512, "APP"),
    ]
    table.check_fits(4096 * 512)
    with pytest.raises(ImageRefusedError, match="partition 2"):
        table.check_fits(4096 * 512 - 1)


@pytest.mark.parametrize("disk", [gpt([(34, 99)], is_damaged=True), gpt([(99, 34)]), gpt([(34, 99)])[:600]])
def test_damaged_gpt(disk: bytes) -> None:
    with pytest.raises(ImageRefusedError) as caught:
        read_table(lambda offset, size: disk[offset : offset + size])
    assert caught.value.reason is ImageRefusal.CORRUPT


def test_overlapping_partitions_are_inspected_without_harm(tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    path.write_bytes(gpt([(1000 + at, 4000) for at in range(100)]) + raw_image(3 * 2**20))
    assert len(inspect(path, bytes_max=2**30).volumes) == 100


def test_inspect_refuses_with_status_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.img").write_bytes(b"PK\x03\x04" + bytes(1000))
    assert cli.main(["image", "inspect", str(tmp_path / "x.img")]) == 4
    assert "zip archive" in capsys.readouterr().err
    assert cli.main(["image", "inspect", str(tmp_path / "none.img"), "--json"]) == 4
