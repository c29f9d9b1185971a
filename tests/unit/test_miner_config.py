"""Settings and identity of a miner: one line per mistake, before anything is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.authoring import zoo
from coordinator.behaviour import Behaviour
from coordinator.config import MinerConfig, load_config
from coordinator.identity import load_identity
from edge_sdk.adapters.keys import create_key
from edge_sdk.errors import ConfigError
from edge_sdk.protocol import wire
from edge_sdk.protocol.ids import Digest, MinerId
from edge_sdk.protocol.limits import SCORE_MAX
from edge_sdk.protocol.messages import Algorithm, Scores
from tests.support.chain import Names

MINIMAL = """
[miner]
id = "miner-0"
[ordering]
rpc = "unix:rpc.sock"
[[broker]]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "miner.toml"
    path.write_text(text)
    return path


def test_defaults_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert config.ledger_file == tmp_path / "ledger.sqlite3"
    assert config.key_file == tmp_path / "key.pem"
    assert config.abci_socket == tmp_path / "abci.sock"
    assert config.rpc == f"unix:{tmp_path}/rpc.sock"
    assert config.public_url == "http://127.0.0.1:8080"
    assert config.enrolment is None
    assert config.behaviour is Behaviour.HONEST
    assert [broker.port for broker in config.brokers] == [1883]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"miner-0"', '"Miner 0"', r"\[miner\] id = 'Miner 0': expected a miner's name"),
        ('"unix:rpc.sock"', '"ftp://x"', r"\[ordering\] rpc = 'ftp://x': expected unix:... or http://..."),
        ('"unix:rpc.sock"', f'"unix:{"x" * 200}"', r"a path of at most 107 bytes"),
        ("[[broker]]", "[[broker]]\nport = 0", r"\[\[broker\]\] #1 port = 0: expected"),
        ("[[broker]]", "", r"\[\[broker\]\] = nothing: expected"),
        ("[[broker]]", "[[broker]]\nhots = 1", r"hots = 1: expected one of the keys"),
        ("[[broker]]", '[[broker]]\n[peers]\nminer-1 = "ftp://miner-1"', r"\[peers\] miner-1 = 'ftp://miner-1'"),
        ("[[broker]]", '[[broker]]\n[behaviour]\nbyzantine = "rude"', r"byzantine = 'rude': expected one of"),
        ("[[broker]]", '[[broker]]\n[http]\npublic_url = "x"', r"\[http\] public_url = 'x': expected http"),
    ],
)
def test_a_mistake_is_named_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, MINIMAL.replace(old, new)))
    assert str(caught.value).startswith(str(tmp_path / "miner.toml"))
    assert "\n" not in str(caught.value)


@pytest.fixture
def settings(tmp_path: Path) -> MinerConfig:
    """A miner whose files fit together."""
    key = create_key(tmp_path / "key.pem", Algorithm.EDDSA)
    artifact, model = zoo.build("mlp", (4,), 2, batch=4, seed=1)
    genesis = Names().genesis
    record = replace(genesis.miners[0], key=key.public_key)
    genesis = replace(genesis, miners=(record, *genesis.miners[1:]), artifact_digest=artifact.digest)
    (tmp_path / "genesis.cbor").write_bytes(wire.to_bytes(genesis))
    (tmp_path / "artifact.flm").write_bytes(artifact.data)
    (tmp_path / "model.cbor").write_bytes(wire.to_bytes(model))
    return load_config(write(tmp_path, MINIMAL))


def test_an_identity_is_read_from_its_files(settings: MinerConfig) -> None:
    identity = load_identity(settings)
    assert identity.artifact.digest == identity.genesis.artifact_digest
    assert identity.signer.public_key == identity.genesis.miners[0].key


def test_files_that_do_not_fit_together(settings: MinerConfig, tmp_path: Path) -> None:
    cases = (
        (replace(settings, miner_id=MinerId("miner-9")), "expected a member"),
        (replace(settings, miner_id=MinerId("miner-1")), "not the key"),
        (replace(settings, peers={MinerId("miner-0"): "http://x"}), r"\[peers\] miner-0"),
        (replace(settings, peers={MinerId("miner-7"): "http://x"}), r"\[peers\] miner-7"),
        (replace(settings, artifact_file=tmp_path / "model.cbor"), "artifact"),
        (replace(settings, artifact_file=tmp_path / "none"), "expected the artifact"),
        (replace(settings, genesis_file=tmp_path / "model.cbor"), "genesis"),
        (replace(settings, key_file=tmp_path / "none.pem"), "there is no key"),
    )
    for config, message in cases:
        with pytest.raises(ConfigError, match=message):
            load_identity(config)


def test_a_liar_lies_about_one_thing() -> None:
    scores = Scores(base=500, updates=(510, 20), classes=())
    root = Digest(bytes(32))
    for behaviour in Behaviour:
        is_score_liar, is_root_liar = behaviour is Behaviour.LYING_SCORES, behaviour is Behaviour.LYING_ROOTS
        assert (behaviour.scores(scores) != scores) is is_score_liar
        assert (behaviour.root(root) != root) is is_root_liar
    assert Behaviour.LYING_SCORES.scores(scores) == Scores(base=SCORE_MAX, updates=(0, 0), classes=())
