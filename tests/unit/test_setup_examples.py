"""The example files are what the schemas say, and they load: documentation that cannot go stale."""

import json
from pathlib import Path

import pytest

from coordinator.broker.access import access_list
from coordinator.broker.mosquitto import TlsFiles, production_config
from coordinator.config import SCHEMA as MINER_SCHEMA
from coordinator.config import load_config
from coordinator.ordering.sequencer_config import SCHEMA as SEQUENCER_SCHEMA
from coordinator.ordering.sequencer_config import SequencerConfig
from edge_sdk.config import Schema, example
from edge_sdk.protocol.ids import MinerId, TaskId
from edge_sdk.upgrade.config import SCHEMA as UPGRADE_SCHEMA
from edge_sdk.upgrade.config import UpgradeConfig

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MINERS = [MinerId(f"m{index}") for index in range(4)]


@pytest.mark.parametrize(
    ("name", "schema", "required"),
    [
        ("miner.toml", MINER_SCHEMA, {"id": "m0", "rpc": "unix:../sequencer/rpc.sock"}),
        (
            "sequencer.toml",
            SEQUENCER_SCHEMA,
            {"chain_id": "flchain", "genesis_file": "genesis.cbor", "id": "m0", "abci": "miners/m0/abci.sock"},
        ),
        ("upgrade.toml", UPGRADE_SCHEMA, {"urls": ["https://m0.example:8080/v1/software"]}),
    ],
)
def test_example_is_the_schema(name: str, schema: Schema, required: dict[str, str | list[str]]) -> None:
    text = example(schema)
    for key, value in required.items():
        text = text.replace(f"\n{key} =\n", f"\n{key} = {json.dumps(value)}\n")
    assert (EXAMPLES / name).read_text() == text


def test_examples_load() -> None:
    assert load_config(EXAMPLES / "miner.toml").miner_id == "m0"
    assert UpgradeConfig.load(EXAMPLES / "upgrade.toml").unit == "flchain-device.service"
    assert SequencerConfig.load(EXAMPLES / "sequencer.toml").chain_id == "flchain"


def test_mosquitto_example_is_what_init_writes() -> None:
    folder = Path("/etc/flchain/mosquitto")
    tls = TlsFiles(
        ca_file=folder / "ca.pem",
        cert_file=folder / "broker.pem",
        key_file=folder / "broker-key.pem",
        crl_file=folder / "crl.pem",
    )
    config = production_config(
        host="127.0.0.1",
        port=8883,
        tls=tls,
        acl_file=folder / "acl",
        data_dir=folder / "data",
        pid_file=folder / "mosquitto.pid",
        run_as="mosquitto",
    )
    assert (EXAMPLES / "mosquitto" / "mosquitto.conf").read_text() == config
    assert (EXAMPLES / "mosquitto" / "acl").read_text() == access_list(TaskId("digits"), MINERS)
