"""Self-test of a client that is not running yet: ``NEW/bin/python -m edge_sdk.upgrade.probe device.toml upgrade.toml``.

Runs in the new environment, as the device's user, beside the old client: imports everything, reads the configuration
and the state of this board, evaluates its model and takes one training step on a copy in memory. Changes nothing.
The updater of the new client is tried as far as that user may: a release whose updater is broken would be the last one.
Prints one JSON object; exit status 0 when all of it worked, 1 with the reason on standard error when not.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

from edge_sdk import __version__
from edge_sdk.adapters.durable_files import read_file
from edge_sdk.adapters.keys import load_signer
from edge_sdk.adapters.outbox import SCHEMA_VERSION
from edge_sdk.adapters.slots import Slots
from edge_sdk.device.config import DeviceConfig
from edge_sdk.device.examples import LocalExamples
from edge_sdk.device.parts import load_genesis
from edge_sdk.errors import CorruptStoreError, EdgeFLError, NewerStateError
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX
from edge_sdk.protocol.messages import Genesis, ModelParams
from edge_sdk.upgrade.config import UpgradeConfig
from edge_sdk.upgrade.metadata import BYTES_MAX, RoleName
from edge_sdk.upgrade.trusted import Trusted

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


def main(argv: list[str]) -> int:
    """Run every check; see the module."""
    if len(argv) not in {1, 2}:
        sys.stderr.write("usage: python -m edge_sdk.upgrade.probe DEVICE.TOML [UPGRADE.TOML]\n")
        return EXIT_USAGE
    try:
        done = probe(*map(Path, argv))
    except (EdgeFLError, OSError, ImportError, sqlite3.Error) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return EXIT_FAILED
    json.dump({"version": __version__, "state_schema": SCHEMA_VERSION, "checks": done}, sys.stdout)
    return 0


def probe(path: Path, upgrade: Path | None = None) -> list[str]:
    """Check what there is; a board that is not enrolled yet has less.

    Args:
        path: device.toml.
        upgrade: upgrade.toml; left out where only root may read it.

    Returns:
        Names of the checks made.

    Raises:
        EdgeFLError: something of the board does not fit this client.
    """
    done = ["imports"]
    _import_everything()
    config = DeviceConfig.load(path)
    done.append("configuration")
    if upgrade is not None and _may_read(upgrade):
        _check_updater(upgrade)
        done.append("updater")
    if config.outbox_file.exists():
        _check_state(config.outbox_file)
        done.append("state")
    if not config.genesis_file.exists():
        return done
    genesis = load_genesis(config)
    if config.key_file.exists():
        load_signer(config.key_file)
        done.append("key")
    model = Slots(config.slots_dir).current() if config.slots_dir.is_dir() else None
    if model is not None and config.artifact_file.exists() and config.data.exists():
        _try_training(config, genesis, Slots(config.slots_dir).read(model))
        done += ["model", "training step"]
    return done


def _import_everything() -> None:
    """Load what the device loads late: a wheel for another processor fails here and not at the first job."""
    import cbor2  # noqa: F401
    import cryptography.x509  # noqa: F401
    import numpy as np  # noqa: F401
    import onnxruntime  # noqa: F401
    import paho.mqtt.client  # noqa: F401

    import edge_sdk.cli_upgrade
    import edge_sdk.device.app
    import edge_sdk.training.trainer  # noqa: F401


def _check_updater(path: Path) -> None:
    """Read what the updater reads first, as far as the device's user may: its configuration and the trust anchor."""
    config = UpgradeConfig.load(path)
    anchor = read_file(config.root_file, bytes_max=BYTES_MAX[RoleName.ROOT]) if _may_read(config.root_file) else None
    if anchor is not None:
        Trusted(anchor, time_s=0)


def _may_read(path: Path) -> bool:
    """Whether this user may read a file that belongs to the updater."""
    return os.access(path, os.R_OK)


def _check_state(path: Path) -> None:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        schema = db.execute("PRAGMA user_version").fetchone()[0]
        answer = db.execute("PRAGMA quick_check(1)").fetchone()
    if schema > SCHEMA_VERSION:
        raise NewerStateError(f"{path}: schema {schema}, this client knows {SCHEMA_VERSION}")
    if answer != ("ok",):
        raise CorruptStoreError(f"{path}: {answer[0]}")


def _try_training(config: DeviceConfig, genesis: Genesis, params: ModelParams) -> None:
    """Evaluate the installed model on one batch and take one step from it, in memory."""
    import numpy as np

    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.trainer import Trainer

    data = read_file(config.artifact_file, bytes_max=ARTIFACT_BYTES_MAX) or b""
    artifact = Artifact.load(data, digest=genesis.artifact_digest, author=genesis.artifact_author)
    examples = LocalExamples(config).some(artifact, artifact.batch)
    if examples is None:
        return  # a replay buffer without rows: there is nothing to try it on
    dataset = examples.dataset
    trainer = Trainer(artifact, backend=config.backend)
    trainer.load(params)
    rows = slice(0, artifact.batch)
    trainer.evaluate(params, dataset.features(rows), dataset.y[rows])
    rate = config.learning_rate or genesis.params.learning_rate_q24 / 2**24
    trainer.train(dataset, steps=1, lr=rate, rng=np.random.default_rng(config.seed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
