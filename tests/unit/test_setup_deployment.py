import getpass
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509

from coordinator.broker.mosquitto import PACKET_BYTES_MAX, password_line
from coordinator.config import load_config
from coordinator.genesis_file import load_genesis
from coordinator.ordering.sequencer_config import SequencerConfig
from coordinator.setup import Founded, Plan, default_params, found
from edge_sdk.adapters.keys import load_signer
from edge_sdk.errors import ConfigError
from edge_sdk.protocol import wire
from edge_sdk.protocol.ids import ChainId, MinerId, TaskId
from edge_sdk.protocol.limits import CHUNK_MESSAGE_BYTES_MAX, ENVELOPE_BYTES_MAX
from edge_sdk.protocol.messages import ModelParams, ModelTensor
from edge_sdk.protocol.model import model_root

MINERS = (MinerId("m0"), MinerId("m1"))
NOW_S = 1_800_000_000
MODEL = ModelParams(
    tensors=(
        ModelTensor(name="b", shape=(1,), exponent=-24, channel_axis=-1, values=bytes(4), scale_m=b"", scale_k=b""),
    )
)


def make_plan(root: Path) -> Plan:
    return Plan(
        root=root,
        chain_id=ChainId("c1"),
        task=TaskId("digits"),
        miners=MINERS,
        run_as=getpass.getuser(),
        host="edge.test",
    )


def run(plan: Plan, tmp_path: Path, miners: tuple[MinerId, ...] = MINERS) -> Founded:
    fold = tmp_path / "fold.npz"
    fold.write_bytes(b"fold")
    return found(
        plan,
        params=default_params(batch=8),
        artifact=b"artifact",
        model=MODEL,
        folds=dict.fromkeys(miners, fold),
        now_s=NOW_S,
    )


@pytest.fixture
def founded(tmp_path: Path) -> Founded:
    previous = os.umask(0o022)
    try:
        return run(make_plan(tmp_path / "fl"), tmp_path)
    finally:
        os.umask(previous)


def test_settings_load_and_agree(founded: Founded, tmp_path: Path) -> None:
    sequencer = SequencerConfig.load(founded.sequencer_config)
    for config_file, member, record in zip(
        founded.miner_configs, sequencer.members, founded.genesis.miners, strict=True
    ):
        config = load_config(config_file)
        assert (config.miner_id, config.abci) == (member.miner_id, f"unix:{member.abci}")
        assert config.rpc == f"unix:{sequencer.rpc}"
        assert load_signer(config.key_file).public_key == record.key
        assert load_genesis(config.genesis_file) == founded.genesis
        assert wire.from_bytes(ModelParams, config.model_file.read_bytes()) == MODEL
        assert config.http_host == "127.0.0.1", "nothing listens on the network unless it is asked to"
        (broker,) = config.brokers
        assert broker.tls
        for file in (broker.ca_file, broker.cert_file, broker.key_file, config.artifact_file, config.fold_file):
            assert file is not None
            assert file.is_file()
    assert founded.genesis.model_root == model_root(MODEL)
    registrar, other = map(load_config, founded.miner_configs)
    assert other.enrolment is None
    assert registrar.enrolment is not None
    assert load_signer(registrar.enrolment.registrar_key).public_key == founded.genesis.registrar
    for file in (registrar.enrolment.crl_file, registrar.enrolment.acl_file, registrar.enrolment.claims_db):
        assert file is not None
        assert file.is_file()


def test_secrets_are_for_the_owner_only(founded: Founded, tmp_path: Path) -> None:
    root = tmp_path / "fl"
    secret = {path for path in root.rglob("*") if "key" in path.name or path.name in {"registrar.pem", "fold.npz"}}
    assert len(secret) >= 8
    for path in secret | {root / "mosquitto" / "acl", root / "registrar" / "claims.sqlite3"}:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    for path in root.rglob("*"):
        if path.is_file() and path not in secret:
            assert b"PRIVATE KEY" not in path.read_bytes(), path


def test_certificates_are_of_one_authority(founded: Founded, tmp_path: Path) -> None:
    root = tmp_path / "fl"
    authority = x509.load_pem_x509_certificate(founded.authority_file.read_bytes())
    for file in ("mosquitto/broker.pem", "registrar/enrolment.pem", "miners/m0/broker.pem", "miners/m1/broker.pem"):
        x509.load_pem_x509_certificate((root / file).read_bytes()).verify_directly_issued_by(authority)
    server = x509.load_pem_x509_certificate((root / "registrar" / "enrolment.pem").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["edge.test", "localhost"]
    miner = x509.load_pem_x509_certificate((root / "miners" / "m0" / "broker.pem").read_bytes())
    assert miner.subject.rfc4514_string() == "CN=miner.m0"


def test_nothing_is_overwritten(founded: Founded, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not empty"):
        run(make_plan(tmp_path / "fl"), tmp_path)


def test_plans_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="blanks"):
        run(make_plan(tmp_path / "with blank"), tmp_path)
    with pytest.raises(ConfigError, match="absolute"):
        run(make_plan(Path("relative")), tmp_path)
    with pytest.raises(ConfigError, match="characters shorter"):
        run(make_plan(tmp_path / ("x" * 100)), tmp_path)
    with pytest.raises(ConfigError, match="m1 has no fold"):
        run(make_plan(tmp_path / "fl"), tmp_path, MINERS[:1])
    assert not (tmp_path / "fl").exists()


def test_broker_is_bounded_and_closed(founded: Founded) -> None:
    lines = founded.broker_config.read_text().splitlines()
    for line in (
        "require_certificate true",
        "use_identity_as_username true",
        "allow_anonymous false",
        f"max_packet_size {PACKET_BYTES_MAX}",
    ):
        assert line in lines
    assert any(line.startswith("crlfile ") for line in lines)
    assert any(line.startswith("max_queued_bytes ") for line in lines)
    assert max(CHUNK_MESSAGE_BYTES_MAX, ENVELOPE_BYTES_MAX) < PACKET_BYTES_MAX < 2_000_000


def test_units_hold_no_secret_and_write_one_folder(founded: Founded, tmp_path: Path) -> None:
    unit = (tmp_path / "fl" / "systemd" / "flchain-miner@.service").read_text()
    assert f"miner run --config {tmp_path}/fl/miners/%i/miner.toml" in unit
    for line in ("UMask=0077", "NoNewPrivileges=yes", "ProtectSystem=strict", f"ReadWritePaths={tmp_path}/fl"):
        assert line in unit.splitlines()


def test_password_lines_are_salted() -> None:
    one, other = password_line("d1", "secret"), password_line("d1", "secret")
    assert one != other
    assert "secret" not in one
    assert one.startswith("d1:$7$101$")
