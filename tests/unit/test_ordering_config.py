from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.ordering.sequencer_config import SCHEMA, SequencerConfig
from edge_sdk.config import example
from edge_sdk.errors import ConfigError

GOOD = """
[sequencer]
chain_id = "chain-1"
genesis_file = "genesis.cbor"
[[miners]]
id = "m0"
abci = "m0.sock"
[[miners]]
id = "m1"
abci = "/run/m1.sock"
power = 3
"""


def load(tmp_path: Path, text: str) -> SequencerConfig:
    path = tmp_path / "sequencer.toml"
    path.write_text(text)
    return SequencerConfig.load(path)


def test_defaults_and_paths_relative_to_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert config.log == tmp_path / "log.sqlite3"
    assert config.rpc == tmp_path / "rpc.sock"
    assert [(member.miner_id, str(member.abci), member.power) for member in config.members] == [
        ("m0", str(tmp_path / "m0.sock"), 1),
        ("m1", "/run/m1.sock", 3),
    ]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('id = "m1"', 'id = "m0"', "[[miners]] id"),
        ('"/run/m1.sock"', '"m0.sock"', "[[miners]] abci"),
        ('id = "m1"', 'id = "M 1"', "[[miners]] #2 id = 'M 1'"),
        ('"chain-1"', '"Chain"', "[sequencer] chain_id = 'Chain'"),
        ("power = 3", "power = 0", "power"),
        ("power = 3", "powers = 3", "powers"),
        ("[sequencer]", "[sequencer]\ncall_timeout_s = 0", "call_timeout_s"),
        ('chain_id = "chain-1"', "", "chain_id"),
    ],
)
def test_a_wrong_setting_is_one_line_with_file_and_key(tmp_path: Path, old: str, new: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert str(caught.value).startswith(f"{tmp_path / 'sequencer.toml'}: ")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_genesis_is_there_and_of_a_sane_size(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    with pytest.raises(ConfigError):
        config.read_genesis()
    config.genesis_file.write_bytes(b"")
    with pytest.raises(ConfigError):
        config.read_genesis()
    config.genesis_file.write_bytes(b"genesis")
    assert config.read_genesis() == b"genesis"


def test_the_example_names_every_key() -> None:
    text = example(SCHEMA)
    assert all(key.name in text for section in SCHEMA for key in section.keys)
