"""Accuracy with hostile devices against accuracy without them, under a simulated clock.

Training, update codec, scores, verdicts, weights and merge are the product's own; processes, network and ledger are
left out, so that three seeds of every kind of attack take minutes, and a run does not depend on the machine's load.
Prints one JSON line per run, and a table at the end.

Run: ``python -m tools.simulate_byzantine --data DIR [--kinds none,nullifier,...] [--seeds 3] [--versions 30]``, with
DIR the folder of an MNIST-format data set.
"""

import argparse
import heapq
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np
import numpy.typing as npt

from coordinator.aggregation import fedbuff
from coordinator.aggregation.merge import merge
from coordinator.authoring.zoo import build
from coordinator.codec_choice import INT8, CodecChoice, with_codec
from coordinator.datasets.idx import load_idx
from coordinator.datasets.labelled import LabelledData
from coordinator.datasets.partition import parse_partition
from coordinator.datasets.split import split
from coordinator.demo.presets import PRESETS
from coordinator.setup import default_params
from coordinator.task_form import fit_task
from coordinator.validation.folds import Fold
from coordinator.validation.score import ScoredUpdate, score_block
from coordinator.validation.verdict import RevealedScores, judge
from edge_sdk.device import adversary, encoding
from edge_sdk.errors import NonFiniteError
from edge_sdk.protocol.ids import MinerId
from edge_sdk.protocol.messages import Codec, ModelParams, Reason, UpdatePayload
from edge_sdk.protocol.model import model_root
from edge_sdk.training.codecs.reading import UpdateForm
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.trainer import Trainer

KINDS: Final = ("none", "nullifier", "randomizer", "signflip", "nan", "labelflip", "scaled")
MINERS: Final = 4
DEVICES: Final = 12
HOSTILE: Final = 3
BLOCK_SIZE: Final = 8
SERVER_RATE_Q16: Final = 1 << 16
SPEED_SPREAD: Final = 0.3
"""Deviation of the logarithm of the devices' speeds."""
PRESET: Final = PRESETS["idx"]
Q24: Final = 1 << 24
BAR: Final = 0.02


@dataclass(frozen=True, slots=True)
class Pending:
    """An update that waits for the next block."""

    device: int
    base_version: int
    payload: UpdatePayload


class Fleet:
    """One run: devices with data, miners with folds, and the model that they share."""

    def __init__(self, kind: str, seed: int, data: LabelledData, codec: CodecChoice = INT8) -> None:
        self.kind, self.seed, self.data = kind, seed, data
        self.published = {False: 0, True: 0}
        """Updates by whether their device is hostile; likewise ``merged``."""
        self.merged = {False: 0, True: 0}
        self.rng = np.random.default_rng(seed)
        parts = split(
            data,
            miners=MINERS,
            devices=DEVICES,
            fold_examples=PRESET.fold_examples,
            partition=parse_partition(PRESET.partition),
            rng=self.rng,
        )
        self.artifact, genesis = build(
            PRESET.model,
            data.input_shape,
            data.class_count,
            batch=PRESET.batch,
            seed=seed,
            is_output_only=codec.is_output_only,
        )
        rules = replace(
            default_params(batch=PRESET.batch, block_size=BLOCK_SIZE),
            local_steps=PRESET.local_steps,
            learning_rate_q24=round(PRESET.learning_rate * Q24),
            clip_norm_q16=round(PRESET.clip_norm * SERVER_RATE_Q16),
        )
        self.params = fit_task(with_codec(rules, codec, spsa_learning_rate=PRESET.spsa_learning_rate), self.artifact)
        self.models: list[ModelParams] = [genesis]
        self.trainer = Trainer(self.artifact)
        self.folds = [Fold(x=data.x_train[fold], y=data.y_train[fold]) for fold in parts.folds]
        self.datasets = [
            ArrayDataset(
                data.x_train[share], data.y_train[share], input_shape=data.input_shape, class_count=data.class_count
            )
            for share in parts.shares
        ]
        for device in range(DEVICES):
            if self.is_hostile(device):
                adversary.corrupt_dataset(kind, self.datasets[device], data.class_count)
        self.residuals: list[bytes | None] = [None] * DEVICES

    def is_hostile(self, device: int) -> bool:
        """The last ones attack."""
        return self.kind != "none" and device >= DEVICES - HOSTILE

    def train(self, device: int, base_version: int) -> Pending | None:
        """Run one job; None where its numbers are not finite, which a device does not publish."""
        base, params = self.models[base_version], self.params
        rng = np.random.default_rng([self.seed, device, base_version])
        kind = self.kind if self.is_hostile(device) else ""
        trainer: encoding.JobTrainer = self.trainer
        if params.codec is Codec.SPSA:
            device_id = f"device-{device}"
            trainer = encoding.new_trainer(
                self.artifact, params, backend="onnxruntime", device_id=device_id, root=model_root(base), kind=kind
            )
        trainer.load(base)
        rate = adversary.learning_rate(kind, params.learning_rate_q24 / Q24)
        try:
            trainer.train(self.datasets[device], steps=params.local_steps, lr=rate, rng=rng)
            residual = None if kind else self.residuals[device]
            encoded = encoding.encode(trainer, base, params, residual=residual, kind=kind, rng=self.rng)
        except NonFiniteError:
            return None
        self.residuals[device] = encoded.residual
        return Pending(device, base_version, encoded.payload)

    def cut(self, block: list[Pending]) -> None:
        """Score, judge and merge a block; the version rises when anything was merged."""
        version = len(self.models) - 1
        weights = [fedbuff.weight(version - update.base_version) for update in block]
        scored = [
            ScoredUpdate(weight=weight, payload=update.payload) for weight, update in zip(weights, block, strict=True)
        ]
        revealed = [
            RevealedScores(
                miner_id=MinerId(f"m{number}"),
                power=1,
                scores=score_block(
                    self.trainer,
                    fold,
                    self.models[-1],
                    scored,
                    total_weight=fedbuff.total_weight(len(block)),
                    server_rate_q16=SERVER_RATE_Q16,
                    clip_norm_q16=self.params.clip_norm_q16,
                    form=UpdateForm.of_task(self.params),
                ),
            )
            for number, fold in enumerate(self.folds)
        ]
        accepted = []
        for index, update in enumerate(block):
            is_merged = judge(revealed, index, margin_permille=PRESET.margin_permille).reason is Reason.NONE
            self.published[self.is_hostile(update.device)] += 1
            self.merged[self.is_hostile(update.device)] += is_merged
            if is_merged:
                accepted.append((weights[index], update.payload))
        if accepted:
            total = fedbuff.total_weight(len(accepted))
            self.models.append(merge(self.models[-1], accepted, total, SERVER_RATE_Q16, self.params.carried))

    def run(self, versions: int) -> float:
        """Let devices of different speed work until so many versions exist; test accuracy of the last one."""
        speeds = self.rng.lognormal(0, SPEED_SPREAD, DEVICES)
        base = [0] * DEVICES
        queue = [(float(speed), device) for device, speed in enumerate(speeds)]
        heapq.heapify(queue)
        waiting: list[int] = []
        block: list[Pending] = []
        while len(self.models) <= versions:
            now, device = heapq.heappop(queue)
            update = self.train(device, base[device])
            block += [] if update is None else [update]
            waiting.append(device)
            if len(block) < BLOCK_SIZE and queue:
                self._send_back(queue, waiting, base, speeds, now)
                continue
            self.cut(block)
            block = []
            self._send_back(queue, waiting, base, speeds, now, is_forced=True)
        return self.trainer.evaluate(self.models[-1], self.data.x_test, self.data.y_test).accuracy

    def _send_back(
        self,
        queue: list[tuple[float, int]],
        waiting: list[int],
        base: list[int],
        speeds: npt.NDArray[np.float64],
        now: float,
        *,
        is_forced: bool = False,
    ) -> None:
        """A device trains again once there is a newer version than it has trained on."""
        version = len(self.models) - 1
        for device in tuple(waiting):
            if version > base[device] or is_forced:
                waiting.remove(device)
                base[device] = version
                heapq.heappush(queue, (now + float(speeds[device]) * self.rng.uniform(0.8, 1.2), device))


def main() -> int:
    """Run all kinds and seeds; 1 when a kind costs more accuracy than the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four files")
    parser.add_argument("--kinds", default=",".join(KINDS), help="attacks, with commas between")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--versions", type=int, default=30)
    options = parser.parse_args()
    data = load_idx(options.data)
    accuracy: dict[str, list[float]] = {}
    for kind in options.kinds.split(","):
        for seed in range(1, options.seeds + 1):
            fleet = Fleet(kind, seed, data)
            reached = fleet.run(options.versions)
            accuracy.setdefault(kind, []).append(reached)
            row = {
                "kind": kind,
                "seed": seed,
                "accuracy": round(reached, 4),
                "hostile_published": fleet.published[True],
                "hostile_merged": fleet.merged[True],
                "honest_published": fleet.published[False],
                "honest_refused": fleet.published[False] - fleet.merged[False],
            }
            print(json.dumps(row), flush=True)
    clean = fmean(accuracy.get("none", [0.0]))
    worst = 0.0
    for kind, values in accuracy.items():
        worst = max(worst, clean - fmean(values))
        print(f"{kind:<12} {fmean(values):.4f}  {fmean(values) - clean:+.4f}")
    return int(worst > BAR)


if __name__ == "__main__":
    sys.exit(main())
