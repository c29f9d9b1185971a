"""Every kind of mistake in every key of every settings file, and in every option of the demo, through the command.

One line on standard error - file, key, what was found, what is expected - and status 2. The mistakes are made from the
schemas themselves, so a new key is covered on the day on which it is added.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from coordinator import config as miner_config
from coordinator.ordering import sequencer_config
from edge_sdk import config as c
from edge_sdk import entry
from edge_sdk.device import config as device_config

LONG: Final = "x" * 70_000


@dataclass(frozen=True, slots=True)
class File:
    """A settings file: the command that reads it, and the least that it must hold."""

    name: str
    schema: c.Schema
    command: tuple[str, ...]
    least: str


FILES: Final = (
    File(
        "device.toml",
        device_config.SCHEMA,
        ("device", "run"),
        '[device]\nid = "d1"\ntask = "t"\ndata = "d.npz"\n[[broker]]\nhost = "h"\n',
    ),
    File(
        "miner.toml",
        miner_config.SCHEMA,
        ("miner", "run"),
        '[miner]\nid = "m0"\n[ordering]\nrpc = "unix:rpc.sock"\n[[broker]]\n',
    ),
    File(
        "sequencer.toml",
        sequencer_config.SCHEMA,
        ("sequencer", "run"),
        '[sequencer]\nchain_id = "c"\ngenesis_file = "g.cbor"\n[[miners]]\nid = "m0"\nabci = "a.sock"\n',
    ),
)
BY_NAME: Final = {file.name: file for file in FILES}


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Commands direct the log of their process; this process goes on after them."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that ends with status 2."""
    assert entry.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith(f"flchain {arguments[0]}: ")
    assert len(lines[0]) < 1_000
    return lines[0]


def refused_file(capsys: pytest.CaptureFixture[str], folder: Path, file: File, text: str | bytes) -> str:
    path = folder / file.name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = refused(capsys, *file.command, "--config", str(path))
    assert line.startswith(f"flchain {file.command[0]}: {path}: "), line
    assert "expected" in line
    return line


def with_value(file: File, section: c.Section, key: str, value: str) -> str:
    """The least file with one key set, wherever its section stands."""
    head = f"[[{section.name}]]" if section.repeated else f"[{section.name}]"
    lines = file.least.splitlines()
    if head not in lines:
        return f"{file.least}{head}\n{key} = {value}\n"
    place = lines.index(head) + 1
    end = next((at for at in range(place, len(lines)) if lines[at].startswith("[")), len(lines))
    others = [line for line in lines[place:end] if not line.startswith(f"{key} =")]
    return "\n".join([*lines[:place], f"{key} = {value}", *others, *lines[end:]]) + "\n"


def false_values(key: c.Key) -> list[str]:
    """TOML values that a key must not take."""
    found: list[str] = []
    match key.kind:
        case c.Kind.TEXT | c.Kind.PATH:
            found = ["1", "true", '["a"]', "{a = 1}", "1979-05-27"]
            if key.kind is c.Kind.PATH:
                found.append('"a\\u0000b"')
            if key.choices:
                found.append('"no-such-choice"')
            if key.maximum is not None:
                found.append(f'"{LONG}"')
            if key.default is not None and key.minimum:
                found.append('""')
        case c.Kind.INTEGER | c.Kind.NUMBER:
            found = ['"1"', "true", "[1]", "nan", "inf", "1979-05-27"]
            found += ["1.5"] if key.kind is c.Kind.INTEGER else []
            found += [] if key.minimum is None else [str(int(key.minimum) - 1)]
            found += [] if key.maximum is None else [str(int(key.maximum) + 1)]
        case c.Kind.FLAG:
            found = ["1", '"true"', "[]"]
        case c.Kind.TEXTS:
            found = ['"a"', "[1]", "[[]]", f"{['a'] * 65}"]
    return found


KEYS: Final = [
    pytest.param(file, section, key, id=f"{file.name}-{section.name}.{key.name}")
    for file in FILES
    for section in file.schema
    for key in (*section.keys, *((section.free,) if section.free else ()))
]


@pytest.mark.parametrize(("file", "section", "key"), KEYS)
def test_a_false_value_is_named(
    file: File, section: c.Section, key: c.Key, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "miner-1" if key is section.free else key.name
    place = f"[[{section.name}]] #1 {name} = " if section.repeated else f"[{section.name}] {name} = "
    values = false_values(key)
    assert values
    for value in values:
        assert place in refused_file(capsys, tmp_path, file, with_value(file, section, name, value)), value


REQUIRED_KEYS: Final = [
    pytest.param(file, key, id=f"{file.name}-{section.name}.{key.name}")
    for file in FILES
    for section in file.schema
    for key in section.keys
    if key.default is c.REQUIRED
]


@pytest.mark.parametrize(("file", "key"), REQUIRED_KEYS)
def test_a_missing_key_is_named(file: File, key: c.Key, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(line for line in file.least.splitlines(keepends=True) if not line.startswith(f"{key.name} ="))
    assert text != file.least
    assert f"{key.name} = nothing: expected {key.expected}" in refused_file(capsys, tmp_path, file, text)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_the_schema_does_not_know_is_named(file: File, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for section in file.schema:
        if section.free is None:
            line = refused_file(capsys, tmp_path, file, with_value(file, section, "no_such_key", "7"))
            assert "no_such_key = 7: expected one of the keys" in line
        for value in ("7", '"x"', "[1]") if section.repeated else ("7", '"x"', "[[]]"):
            headless = f"{section.name} = {value}\n" + _without(file.least, section)
            assert f"{section.name}" in refused_file(capsys, tmp_path, file, headless)
    assert "[bordkeeper] = {}: expected one of the sections" in refused_file(
        capsys, tmp_path, file, file.least + "[bordkeeper]\n"
    )


def _without(text: str, section: c.Section) -> str:
    """The file without a section."""
    kept, is_kept = [], True
    for line in text.splitlines(keepends=True):
        if line.startswith("["):
            is_kept = line.strip("[]\n") != section.name
        if is_kept:
            kept.append(line)
    return "".join(kept)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"\xff\xfe[device]",
        b"[",
        b"a = ",
        b"a = 1\na = 2",
        b"[a]\n[a]",
        b'a = "\n"',
        b"a = " + b"[" * 10_000,
        b"a = " + b"{b = " * 10_000,
        b"a." * 2_000 + b"b = 1",
        b"device = " + b"[" * 200 + b"]" * 200,
        b"a = " + b"9" * 10_000,
        b"#" * 2_000_000,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_settings_file_is_refused(
    file: File, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused_file(capsys, tmp_path, file, content)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_that_cannot_be_read_is_named(file: File, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / ("n" * 300)):
        assert f"{path}: cannot be read" in refused(capsys, *file.command, "--config", str(path))


MEANING: Final = [
    ("device.toml", "device", "id", '"Device 1"', "expected a name"),
    ("device.toml", "device", "task", '"../x"', "expected a name"),
    ("device.toml", "trust", "genesis_digest", '"12"', "expected 64 hexadecimal digits"),
    ("device.toml", "miners", "urls", '["ftp://x"]', "expected URLs"),
    ("device.toml", "miners", "urls", '["http://x:99999"]', "expected URLs"),
    ("device.toml", "miners", "urls", '["http://user@x"]', "expected URLs"),
    ("device.toml", "enrolment", "url", '"http://x"', "expected"),
    ("device.toml", "governor", "temperature_resume_c", "95.0", "expected at most temperature_max_c"),
    ("device.toml", "board", "profile", '"toaster"', "expected"),
    ("miner.toml", "miner", "id", '"Miner"', "expected a miner's name"),
    ("miner.toml", "ordering", "abci", '"http://x"', "expected unix:"),
    ("miner.toml", "ordering", "rpc", '"ftp://x"', "expected unix:"),
    ("miner.toml", "ordering", "rpc", f'"unix:{"x" * 200}"', "at most 107 bytes"),
    ("miner.toml", "http", "public_url", '"x"', "expected http"),
    ("miner.toml", "peers", "miner-1", '"ftp://miner-1"', "expected http"),
    ("miner.toml", "peers", "Miner", '"http://miner-1"', "expected a miner's name"),
    ("miner.toml", "enrolment", "port", "8443", "since a port is set"),
    ("sequencer.toml", "sequencer", "chain_id", '"Chain 1"', "expected"),
    ("sequencer.toml", "miners", "id", '"M 0"', "expected"),
    ("sequencer.toml", "sequencer", "rpc", f'"{"x" * 200}"', "at most 107 bytes"),
    ("sequencer.toml", "miners", "abci", f'"{"x" * 200}"', "at most 107 bytes"),
]


@pytest.mark.parametrize(("name", "section", "key", "value", "words"), MEANING)
def test_a_value_without_meaning_is_named(
    name: str, section: str, key: str, value: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = BY_NAME[name]
    (table,) = (item for item in file.schema if item.name == section)
    line = refused_file(capsys, tmp_path, file, with_value(file, table, key, value))
    assert words in line
    assert section in line


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_that_the_settings_name_and_that_are_not_there(
    file: File, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / file.name
    path.write_text(file.least)
    line = refused(capsys, *file.command, "--config", str(path))
    assert "genesis" in line or "g.cbor" in line
    assert "expected" in line


def test_the_registry_reads_the_same_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "miner.toml"
    path.write_text(BY_NAME["miner.toml"].least.replace('"m0"', '"M 0"'))
    assert f"{path}: [miner] id = 'M 0': expected" in refused(capsys, "registry", "list", "--config", str(path))


# --- options of the demo ---

NEVER_RUNS: Final = ("--keep", "/proc")
"""Refused after everything else: a mistake that is overlooked ends there, and not with a fleet."""

OPTIONS: Final = [
    ("--dataset mnist", "--dataset"),
    ("--dataset idx", "--data"),
    ("--dataset idx --data /no/such/folder", "/no/such/folder"),
    ("--dataset npz --data /no/such.npz", "/no/such.npz"),
    ("--dataset npz --data /tmp", "/tmp"),
    ("--data /tmp", "--data /tmp"),
    ("--model resnet", "--model"),
    ("--model cnn1d", "cnn1d"),
    ("--devices 0", "--devices 0"),
    ("--devices 201", "--devices 201"),
    ("--devices x", "--devices"),
    ("--devices", "--devices"),
    ("--miners 0", "--miners 0"),
    ("--miners 17", "--miners 17"),
    ("--tau 0", "--tau 0"),
    ("--tau nan", "--tau nan"),
    ("--tau x", "--tau"),
    ("--block-size 0", "--block-size 0"),
    ("--block-size 257", "--block-size 257"),
    ("--partition iid:2", "iid:2"),
    ("--partition dirichlet", "dirichlet"),
    ("--partition dirichlet:0", "dirichlet:0"),
    ("--partition dirichlet:nan", "dirichlet:nan"),
    ("--partition dirichlet:-1", "dirichlet:-1"),
    ("--partition classes:0", "classes:0"),
    ("--partition classes:11", "--partition classes:11"),
    ("--partition classes:1.5", "classes:1.5"),
    ("--partition natural", "natural"),
    ("--partition sideways", "sideways"),
    ("--devices 100 --partition dirichlet:0.01", "dirichlet:0.01"),
    ("--byzantine evil:1", "evil:1"),
    ("--byzantine signflip", "signflip"),
    ("--byzantine signflip:0", "signflip:0"),
    ("--byzantine signflip:13", "signflip:13"),
    ("--byzantine signflip:-1", "signflip:-1"),
    ("--byzantine signflip:²", "signflip:²"),
    ("--board toaster", "--board"),
    ("--max-seconds 1", "--max-seconds 1"),
    ("--max-seconds inf", "--max-seconds inf"),
    ("--rounds 0", "--rounds 0"),
    ("--target 1.5", "--target 1.5"),
    ("--target nan", "--target nan"),
    ("--seed -1", "--seed -1"),
    ("--seed 99999999999", "--seed"),
    ("--broker rabbit", "--broker"),
    ("--keep /proc", "--keep /proc"),
    ("--report /no/such/folder/r.json", "--report /no/such/folder/r.json"),
    ("--report /tmp", "--report /tmp"),
    ("--dev 3", "--dev"),
    ("digits", "digits"),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_a_wrong_option_is_named(options: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "demo", *NEVER_RUNS, *options.split())
    assert words in line
    assert "expected" in line or "choose from" in line


def test_arrays_that_cannot_be_learned_from_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.npz"
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(600, 8)).astype(np.float32), rng.integers(0, 3, 600)
    holes = x.copy()
    holes[3, 3] = np.nan
    arrays: list[dict[str, object]] = [
        {"x": x},
        {"y": y},
        {"x": x, "y": y[:-1]},
        {"x": holes, "y": y},
        {"x": x, "y": y - 1},
        {"x": x, "y": y * 0.5},
        {"x": x.astype(str), "y": y},
        {"x": x, "y": np.array([{}] * 600)},
        {"x": x[:3], "y": y[:3]},
        {"x": x, "y": np.zeros(600, np.int64)},
    ]
    for content in arrays:
        np.savez(path, **content)  # type: ignore[arg-type]
        line = refused(capsys, "demo", *NEVER_RUNS, "--dataset", "npz", "--data", str(path))
        assert "--keep" not in line, content
        assert str(path) in line or f"{len(y)} training examples" in line or "expected" in line, line
    for data in (b"", b"PK\x03\x04 and nothing", bytes(4_000)):
        path.write_bytes(data)
        assert str(path) in refused(capsys, "demo", *NEVER_RUNS, "--dataset", "npz", "--data", str(path))
