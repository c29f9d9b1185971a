"""``flchain device status`` and a state that a power cut has left half written."""

import signal
import subprocess
import sys
from pathlib import Path

from edge_sdk.device.config import DeviceConfig
from edge_sdk.device.status import read_status

# Dies inside its first transaction, with the old pages in a journal that somebody has to roll back.
CUT = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 2")
db.execute("CREATE TABLE meta (key TEXT, number INTEGER)")
db.execute("CREATE TABLE updates (digest BLOB, seq INTEGER, base_version INTEGER, blob_bytes INTEGER, verdict, reason)")
db.execute("CREATE TABLE receipts (digest BLOB, status INTEGER)")
db.execute("BEGIN IMMEDIATE")
db.executemany("INSERT INTO meta VALUES ('x', ?)", ((number,) for number in range(50_000)))
os.kill(os.getpid(), signal.SIGKILL)
"""


def make_config(folder: Path) -> DeviceConfig:
    (folder / "device.toml").write_text('[device]\nid = "d"\ntask = "t"\ndata = "x"\n[[broker]]\nhost = "b"\n')
    return DeviceConfig.load(folder / "device.toml")


def test_half_written_transaction_is_taken_back(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    done = subprocess.run([sys.executable, "-c", CUT, str(config.outbox_file)], check=False)
    assert done.returncode == -signal.SIGKILL
    journal = config.outbox_file.with_name(config.outbox_file.name + "-journal")
    assert journal.stat().st_size > 0
    state = read_status(config)["state"]
    assert state is not None
    assert (state["next_seq"], state["waiting"]) == (1, [])
    assert not journal.exists() or not journal.stat().st_size


def test_file_without_tables_is_no_state_yet(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.outbox_file.touch()
    assert read_status(config)["state"] is None
    assert config.outbox_file.stat().st_size == 0
