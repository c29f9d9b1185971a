"""The TOML loader: defaults, bounds, and one line per mistake."""

from pathlib import Path

import pytest

from edge_sdk.config import Key, Kind, Schema, Section, example, load, parse
from edge_sdk.errors import ConfigError

SCHEMA: Schema = (
    Section(
        "device",
        "This board.",
        (
            Key("id", Kind.TEXT, "Name of the device.", minimum=1, maximum=8),
            Key("interval_s", Kind.NUMBER, "Pause between polls.", 2.5, unit="seconds", minimum=0.1, maximum=60),
            Key("steps", Kind.INTEGER, "Local steps.", None, minimum=1),
            Key("tls", Kind.FLAG, "Encrypt.", default=True),
            Key("key_file", Kind.PATH, "Private key.", "key.pem"),
            Key("claim_file", Kind.PATH, "Token.", None),
            Key("mode", Kind.TEXT, "Which.", "a", choices=("a", "b")),
            Key("urls", Kind.TEXTS, "Where.", ()),
        ),
    ),
    Section("broker", "A broker.", (Key("host", Kind.TEXT, "Name."),), repeated=True, optional=True),
    Section("peers", "URLs by miner.", free=Key("MINER", Kind.TEXT, "URL of that miner.")),
)


def read(text: str) -> object:
    return parse(text.encode(), SCHEMA, path=Path("dir/d.toml"))


def test_defaults_and_values() -> None:
    values = parse(
        b'[device]\nid = "a"\nsteps = 3\nurls = ["u"]\n'
        b'[[broker]]\nhost = "h1"\n[[broker]]\nhost = "h2"\n[peers]\nm1 = "x"\n',
        SCHEMA,
        path=Path("dir/d.toml"),
    )
    device = values.table("device")
    assert device.text("id") == "a"
    assert device.number("interval_s") == 2.5
    assert device.integer_or_none("steps") == 3
    assert device.flag("tls")
    assert device.path("key_file") == Path("dir/key.pem")
    assert device.path_or_none("claim_file") is None
    assert device.texts("urls") == ("u",)
    assert [table.text("host") for table in values.tables("broker")] == ["h1", "h2"]
    assert values.table("peers").keys() == ("m1",)


def test_absent_repeated_section_is_empty() -> None:
    values = parse(b'[device]\nid = "a"\n', SCHEMA, path=Path("d.toml"))
    assert values.tables("broker") == ()
    assert values.table("peers").keys() == ()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "dir/d.toml: [device] id = nothing: expected text (1..8)"),
        ("[device]\nid = 7", "dir/d.toml: [device] id = 7: expected text (1..8)"),
        ('[device]\nid = "123456789"', "dir/d.toml: [device] id = '123456789': expected text (1..8)"),
        (
            '[device]\nid = "a"\ninterval_s = 0',
            "dir/d.toml: [device] interval_s = 0: expected a number in seconds (0.1..60)",
        ),
        ('[device]\nid = "a"\ninterval_s = nan', "interval_s = nan: expected a number in seconds (0.1..60)"),
        ('[device]\nid = "a"\nsteps = true', "[device] steps = True: expected an integer (1..)"),
        ('[device]\nid = "a"\nsteps = 1.5', "[device] steps = 1.5: expected an integer (1..)"),
        ('[device]\nid = "a"\ntls = 1', "[device] tls = 1: expected true or false"),
        ('[device]\nid = "a"\nmode = "c"', "[device] mode = 'c': expected one of 'a', 'b'"),
        ('[device]\nid = "a"\nurls = [1]', "[device] urls = [1]: expected a list of texts"),
        ('[device]\nid = "a"\nkey_file = ""', "[device] key_file = '': expected a path"),
        ('[device]\nid = "a"\nstep = 1', "[device] step = 1: expected one of the keys id, interval_s"),
        ('[devise]\nid = "a"', "[devise] = {'id': 'a'}: expected one of the sections device, broker, peers"),
        ('[device]\nid = "a"\n[broker]\nhost = "h"', "[[broker]] = {'host': 'h'}: expected 1..64 tables [[broker]]"),
        ('[device]\nid = "a"\n[[broker]]\n', "[[broker]] #1 host = nothing: expected text"),
        ('[device]\nid = "a"\n[peers]\nm1 = 3', "[peers] m1 = 3: expected text"),
        ("device = 3", "device = 3: expected a table [device]"),
        ("[device", "expected valid TOML"),
    ],
)
def test_mistakes_are_one_line(text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert line in str(caught.value)
    assert str(caught.value).startswith("dir/d.toml: ")
    assert "\n" not in str(caught.value)


def test_long_value_is_shortened() -> None:
    with pytest.raises(ConfigError) as caught:
        read(f'[device]\nid = "{"x" * 10_000}"')
    assert len(str(caught.value)) < 200


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load(tmp_path / "none.toml", SCHEMA)


def test_oversize_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most"):
        parse(b"#" * (1024 * 1024 + 1), SCHEMA, path=Path("d.toml"))


def test_example_names_every_key_and_loads_once_filled() -> None:
    text = example(SCHEMA)
    for section in SCHEMA:
        for key in section.keys:
            assert f"{key.name} =" in text
    filled = text.replace("\nid =", '\nid = "a"').replace("\nhost =", '\nhost = "h"')
    assert parse(filled.encode(), SCHEMA, path=Path("d.toml")).table("device").number("interval_s") == 2.5


def test_file_without_an_end_is_not_read_to_it(tmp_path: Path) -> None:
    """The updater reads device.toml as root, and the file belongs to the device's user."""
    endless = tmp_path / "endless.toml"
    endless.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="longer than"):
        load(endless, SCHEMA)
