"""What the demo assumes of each data set where the user says nothing: one row per data set, measured, not guessed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Defaults of one data set. Sizes of the fleet, rules of the block, and local training."""

    model: str
    devices: int
    partition: str
    max_seconds: float
    """Wall time of the whole command, report included."""
    block_size: int
    tau_s: float
    fold_examples: int
    """Validation examples of each miner."""
    local_steps: int
    batch: int
    learning_rate: float
    clip_norm: float
    """L2 bound of a whole delta."""
    margin_permille: int
    staleness_max: int
    spsa_learning_rate: float
    """With ``--codec spsa``: a step changes every parameter, so the stable rate falls with their number."""
    baseline_epochs_max: int
    """Centralized training stops there if it is still rising."""


PRESETS: Final[dict[str, Preset]] = {
    "digits": Preset(
        model="mlp",
        devices=12,
        partition="dirichlet:0.5",
        max_seconds=80.0,
        block_size=8,
        tau_s=1.5,
        fold_examples=64,
        local_steps=40,
        batch=16,
        learning_rate=0.2,
        clip_norm=2.5,
        margin_permille=25,
        staleness_max=8,
        spsa_learning_rate=0.006,
        baseline_epochs_max=40,
    ),
    "idx": Preset(
        model="lenet",
        devices=20,
        partition="dirichlet:0.5",
        max_seconds=240.0,
        block_size=14,
        tau_s=4.0,
        fold_examples=250,
        local_steps=40,
        batch=32,
        learning_rate=0.1,
        clip_norm=4.0,
        margin_permille=20,
        staleness_max=8,
        spsa_learning_rate=0.003,
        baseline_epochs_max=6,
    ),
    "hapt": Preset(
        model="cnn1d",
        devices=18,
        partition="natural",
        max_seconds=240.0,
        block_size=12,
        tau_s=4.0,
        fold_examples=200,
        local_steps=30,
        batch=32,
        learning_rate=0.1,
        clip_norm=3.0,
        margin_permille=20,
        staleness_max=8,
        spsa_learning_rate=0.003,
        baseline_epochs_max=30,
    ),
    "npz": Preset(
        model="mlp",
        devices=12,
        partition="dirichlet:0.5",
        max_seconds=120.0,
        block_size=8,
        tau_s=2.0,
        fold_examples=64,
        local_steps=30,
        batch=16,
        learning_rate=0.05,
        clip_norm=3.0,
        margin_permille=25,
        staleness_max=8,
        spsa_learning_rate=0.003,
        baseline_epochs_max=40,
    ),
    "beijing": Preset(
        model="regressor",
        devices=8,
        partition="natural",
        max_seconds=120.0,
        block_size=6,
        tau_s=2.0,
        fold_examples=500,
        local_steps=60,
        batch=32,
        learning_rate=0.05,
        clip_norm=3.0,
        margin_permille=20,
        staleness_max=8,
        spsa_learning_rate=0.003,
        baseline_epochs_max=2,
    ),
    "skab": Preset(
        model="autoencoder",
        devices=20,
        partition="natural",
        max_seconds=120.0,
        block_size=14,
        tau_s=2.0,
        fold_examples=200,
        local_steps=40,
        batch=32,
        learning_rate=0.3,
        clip_norm=3.0,
        margin_permille=20,
        staleness_max=8,
        spsa_learning_rate=0.003,
        baseline_epochs_max=10,
    ),
}
DATASETS: Final = tuple(PRESETS)
MEASURED: Final = frozenset({"beijing", "skab"})
"""Targets are numbers: nothing has a label."""

QUICK_DEVICES: Final = 6
QUICK_BLOCK_SIZE: Final = 4
QUICK_MAX_SECONDS: Final = 45.0
