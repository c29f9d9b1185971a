"""What each update codec costs in accuracy and saves in bytes, under a simulated clock.

The fleet is that of ``simulate_byzantine`` without hostile devices: the product's own training, codecs, residuals,
scores, verdicts and merge. Every finished run is one JSON line of the output file; a run that stands there is not
repeated, so an interrupted comparison goes on where it was.

Run: ``python -m tools.compare_codecs --data DIR --out FILE [--codecs int8,topk:0.1,...] [--seeds 3] [--versions 30]``,
with DIR the folder of an MNIST-format data set.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from coordinator.codec_choice import parse_codec
from coordinator.datasets.idx import load_idx
from coordinator.datasets.labelled import LabelledData
from edge_sdk.protocol.wire import to_bytes
from tools.simulate_byzantine import Fleet, Pending

CODECS: Final = ("int8", "topk:0.1", "int4", "sign", "output", "spsa")
DENSE: Final = "int8"
"""What the others are measured against."""
LOSS_MAX: Final = 0.005
"""Half a point of accuracy."""
FP32_BYTES: Final = 4
CURVE_VERSIONS: Final = 10
BARS: Final = {"topk": 16.0, "sign": 28.0}
"""Payloads are to be so many times smaller than float32, at a loss of ``LOSS_MAX``."""
SPSA_BYTES_MAX: Final = 64


class CountingFleet(Fleet):
    """Notes the length of every payload, and the test accuracy on the way."""

    payload_bytes: list[int]
    curve: list[tuple[int, float]]

    def train(self, device: int, base_version: int) -> Pending | None:
        """Run one job, and weigh what it would send."""
        update = super().train(device, base_version)
        if update is not None:
            self.payload_bytes.append(len(to_bytes(update.payload)))
        return update

    def cut(self, block: list[Pending]) -> None:
        """Merge a block; look at the model every ``CURVE_VERSIONS``."""
        before = len(self.models)
        super().cut(block)
        version = len(self.models) - 1
        if len(self.models) > before and version % CURVE_VERSIONS == 0:
            accuracy = self.trainer.evaluate(self.models[-1], self.data.x_test, self.data.y_test).accuracy
            self.curve.append((version, round(accuracy, 4)))


def measure(codec: str, seed: int, data: LabelledData, *, versions: int) -> dict[str, Any]:
    """One run, as a row."""
    fleet = CountingFleet("none", seed, data, parse_codec(codec))
    fleet.payload_bytes, fleet.curve = [], []
    start_s = time.monotonic()
    accuracy = fleet.run(versions)
    fp32_bytes = FP32_BYTES * sum(math.prod(tensor.shape) for tensor in fleet.models[0].tensors)
    payload_bytes = fmean(fleet.payload_bytes)
    return {
        "codec": codec,
        "seed": seed,
        "versions": versions,
        "accuracy": round(accuracy, 4),
        "curve": fleet.curve,
        "payload_mean": round(payload_bytes, 1),
        "payload_max": max(fleet.payload_bytes),
        "fp32_bytes": fp32_bytes,
        "times_smaller": round(fp32_bytes / payload_bytes, 2),
        "refused": fleet.published[False] - fleet.merged[False],
        "published": fleet.published[False],
        "wall_s": round(time.monotonic() - start_s, 1),
    }


def load_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of earlier runs."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """One line per codec: means over its seeds, and the loss against the dense codec on the same seeds."""
    dense = {row["seed"]: row["accuracy"] for row in rows if row["codec"] == DENSE}
    lines = []
    for codec in dict.fromkeys(row["codec"] for row in rows):
        own = [row for row in rows if row["codec"] == codec]
        losses = [dense[row["seed"]] - row["accuracy"] for row in own if row["seed"] in dense]
        loss = f"{fmean(losses):+.4f}" if losses else "-"
        lines.append(
            f"{codec:<12} accuracy {fmean(row['accuracy'] for row in own):.4f}  loss {loss}  "
            f"payload {fmean(row['payload_mean'] for row in own):.0f} B, 1/{fmean(r['times_smaller'] for r in own):.1f}"
            f"  ({len(own)} seeds){_judged(codec, own, losses)}"
        )
    return lines


def _judged(codec: str, rows: list[dict[str, Any]], losses: list[float]) -> str:
    """Whether a codec with a bar reaches it."""
    name = codec.partition(":")[0]
    if name == "spsa":
        return "  reached" if max(row["payload_max"] for row in rows) <= SPSA_BYTES_MAX else "  missed"
    if name not in BARS or not losses:
        return ""
    is_small = fmean(row["times_smaller"] for row in rows) >= BARS[name]
    return "  reached" if is_small and fmean(losses) <= LOSS_MAX else "  missed"


def main() -> int:
    """Run what is missing, then print the table; 1 when a codec misses its bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four files")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one per run; appended to")
    parser.add_argument("--codecs", default=",".join(CODECS), help="with commas between")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--versions", type=int, default=30)
    options = parser.parse_args()
    data = load_idx(options.data)
    rows = [row for row in load_rows(options.out) if row["versions"] == options.versions]
    known = {(row["codec"], row["seed"]) for row in rows}
    for seed in range(1, options.seeds + 1):
        for codec in options.codecs.split(","):
            if (codec, seed) in known:
                continue
            row = measure(codec, seed, data, versions=options.versions)
            rows.append(row)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    lines = table(rows)
    print("\n".join(lines))
    return int(any(line.endswith("missed") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
