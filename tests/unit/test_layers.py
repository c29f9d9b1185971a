from pathlib import Path

import pytest

from tools.check_layers import check_source, check_tree, main

ROOT = Path(__file__).resolve().parents[2]


def rules(module: str, source: str) -> list[tuple[int, str]]:
    return [(found.line, found.rule) for found in check_source(module, source, Path("example.py"))]


def test_the_tree_keeps_the_layers() -> None:
    assert [str(found) for found in check_tree(ROOT)] == []


@pytest.mark.parametrize(
    ("module", "source", "rule"),
    [
        # Layers.
        ("edge_sdk.brand_new", "x = 1", "unknown"),
        ("edge_sdk.participant", "from edge_sdk.brand_new.part import X", "unknown"),
        ("edge_sdk.protocol.cose", "from . import codec", "relative"),
        ("edge_sdk.protocol.cose", "from ..errors import DecodeError", "relative"),
        ("edge_sdk.protocol.messages", "from edge_sdk.participant import Participant", "up"),
        ("edge_sdk.participant", "from edge_sdk.adapters.mqtt import connect", "up"),
        ("edge_sdk.participant", "from edge_sdk.config import DeviceConfig", "up"),
        ("edge_sdk.adapters.mqtt", "import edge_sdk.device", "up"),
        ("coordinator.aggregation.merge", "from coordinator.application import State", "up"),
        ("coordinator.ordering.abci_server", "from coordinator import miner", "up"),
        # Inside functions and for types only, a dependency is a dependency.
        ("edge_sdk.protocol.messages", "def f():\n    from edge_sdk.adapters import mqtt", "up"),
        ("edge_sdk.protocol.ids", "if TYPE_CHECKING:\n    from edge_sdk.device import Device", "up"),
        ("edge_sdk.protocol.ids", "try:\n    pass\nexcept E:\n    import edge_sdk.device", "up"),
        # Machines and engines, packages, facades.
        ("edge_sdk.participant", "def f():\n    from edge_sdk.training.delta import encode", "apart"),
        ("coordinator.application", "from coordinator.aggregation import merge", "apart"),
        ("edge_sdk.device", "import coordinator.miner", "package"),
        ("edge_sdk.cli", "def f():\n    from coordinator.cli import main", "package"),
        ("firmware_profiles.profile", "from edge_sdk.errors import ConfigError", "package"),
        ("coordinator.application", "from edge_sdk.participant import Participant", "up"),
        ("coordinator.demo", "from edge_sdk.participant import Participant", "up"),
        ("coordinator.miner", "from edge_sdk.device import Device", "up"),
        ("edge_sdk.participant", "from edge_sdk import Device", "facade"),
        ("edge_sdk.participant", "import edge_sdk", "facade"),
        # The outside world.
        ("edge_sdk.participant", "import time", "outside"),
        ("edge_sdk.governor", "from datetime import datetime", "outside"),
        ("coordinator.application", "import random", "outside"),
        ("coordinator.rounds", "import secrets", "outside"),
        ("edge_sdk.protocol.codec", "import os", "outside"),
        ("edge_sdk.protocol.codec", "from pathlib import Path", "outside"),
        ("edge_sdk.training.trainer", "from pathlib import Path", "outside"),
        ("edge_sdk.training.delta", "import threading", "outside"),
        ("coordinator.validation.score", "import sqlite3", "outside"),
        ("coordinator.ledger.block", "import socket", "outside"),
        ("coordinator.pool", "import asyncio", "outside"),
        ("coordinator.application", "import logging", "outside"),
        ("coordinator.application", "data = open('x').read()", "outside"),
        ("edge_sdk.training.trainer", "rng = np.random.default_rng()", "outside"),
        ("firmware_profiles.boards", "from importlib import resources", "outside"),
        # What a board installs and what an idle device loads.
        ("edge_sdk.adapters.http_blobs", "import httpx", "install"),
        ("edge_sdk.training.trainer", "import scipy.special", "install"),
        ("edge_sdk.device", "def f():\n    import torch", "install"),
        ("firmware_profiles.flash.writer", "import numpy", "install"),
        ("edge_sdk.device", "import numpy as np", "lazy"),
        ("edge_sdk.protocol.messages", "from onnxruntime import InferenceSession", "lazy"),
        ("edge_sdk.device", "from edge_sdk.training.trainer import Trainer", "lazy"),
        ("edge_sdk.energy.rapl", "if TYPE_CHECKING:\n    pass\nelse:\n    import numpy", "lazy"),
        # Hidden imports.
        ("edge_sdk.device", "import importlib", "dynamic"),
        ("coordinator.cli", "from importlib import import_module", "dynamic"),
        ("coordinator.cli", "module = __import__('edge_sdk.device')", "dynamic"),
    ],
)
def test_a_broken_rule_is_named(module: str, source: str, rule: str) -> None:
    assert [name for _, name in rules(module, source)] == [rule]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("edge_sdk.protocol.messages", "from edge_sdk.protocol import codec\nfrom edge_sdk.errors import DecodeError"),
        ("edge_sdk.protocol.messages", "import hashlib\nimport cbor2\nfrom os import PathLike\nfrom io import BytesIO"),
        ("edge_sdk.participant", "if TYPE_CHECKING:\n    import numpy.typing as npt"),
        ("edge_sdk.participant", "from edge_sdk import __version__\nfrom edge_sdk.ports import Clock"),
        ("edge_sdk.training.onnx_backend", "import numpy as np\nimport onnxruntime\nimport ctypes"),
        ("edge_sdk.training.torch_backend", "def f():\n    import torch"),
        ("edge_sdk.training.trainer", "rng = np.random.default_rng(seed)"),
        ("edge_sdk.training.artifact", "from pathlib import Path"),
        ("edge_sdk.adapters.mqtt", "import threading\nimport paho.mqtt.client\nfrom edge_sdk.config import MqttConfig"),
        ("edge_sdk.device", "def f():\n    from edge_sdk.training.trainer import Trainer\n    import numpy"),
        ("edge_sdk.entry", "import importlib"),
        ("edge_sdk.device", "from importlib.metadata import version"),
        ("coordinator.validation.score", "import numpy\nfrom edge_sdk.training.trainer import Trainer"),
        ("coordinator.application", "from coordinator.validation.verdict import verdict"),
        ("coordinator.ordering.abci_server", "import asyncio\nfrom edge_sdk.adapters import system_clock"),
        ("coordinator.study.engine", "from edge_sdk.participant import Participant"),
        ("coordinator", "from coordinator.miner import Miner"),
        ("firmware_profiles.profile", "import tomllib\nfrom importlib.resources import files"),
    ],
)
def test_honest_code_passes(module: str, source: str) -> None:
    assert rules(module, source) == []


def test_every_import_of_a_line_and_every_line_is_reported() -> None:
    source = "import time, os\n\n\ndef f():\n    import edge_sdk.device\n"
    assert rules("edge_sdk.participant", source) == [(1, "outside"), (1, "outside"), (5, "up")]


def test_a_new_file_must_be_placed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "edge_sdk").mkdir()
    (tmp_path / "edge_sdk" / "errors.py").write_text("import enum\n")
    assert main([str(tmp_path)]) == 0
    (tmp_path / "edge_sdk" / "novelty.py").write_text("import enum\n")
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("edge_sdk/novelty.py:1: unknown: edge_sdk.novelty ")


def test_unreadable_source_is_not_passed_over() -> None:
    assert rules("edge_sdk.participant", "x = 1\ndef f(:\n") == [(2, "syntax")]
    assert rules("edge_sdk.participant", "type Name = str") == [(1, "syntax")]  # Python 3.12
