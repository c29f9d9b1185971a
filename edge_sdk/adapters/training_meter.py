"""Times the training steps of one artifact on one backend, in a process of its own.

``python -m edge_sdk.adapters.training_meter NAME.flm NAME.model.cbor BACKEND`` answers commands on standard input with
one line of JSON each, so that whoever started several of them can let them take turns:

    (start)   {"loss": null, "peak_rss_mib": ...}
    steps N   {"step_ns": [...], "cpu_ns": [...], "loss": mean of the last pass over the batches, "peak_rss_mib": ...}

``cpu_ns`` is processor time of the process, which load on the machine disturbs less than the time of the clock.

An error is ``{"error": text}``, and the end. The examples are drawn from a seed: every backend sees the same ones. They
are ready as float32 before the clock starts, so that a step is the backend's and nothing else's.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_sdk.adapters.board_sensors import BoardSensors
from edge_sdk.adapters.heap import share_one_heap
from edge_sdk.errors import EdgeFLError, NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.backend import Batch
    from edge_sdk.training.network import Network
    from edge_sdk.training.trainer import Trainer

SEED: Final = 7
RATE: Final = 0.02
BATCHES_MAX: Final = 4
EXAMPLES_BYTES_MAX: Final = 2 * 1024 * 1024
"""Of the batches that are held ready, but for the first: they count in the process's memory."""
STEPS_MAX: Final = 100_000
_NOISE: Final = 0.3


class ReadyBatches:
    """A ``Dataset`` whose batches exist already; number k is batch k modulo their count."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        """Keep the batches."""
        self._batches = batches

    def __len__(self) -> int:
        """Number of examples."""
        return sum(len(batch.weight) for batch in self._batches)

    def batches(self, rng: Any, *, size: int, start: int = 0) -> Iterator[Batch]:
        """Endless batches from number ``start`` on."""
        del rng, size
        while True:
            yield self._batches[start % len(self._batches)]
            start += 1


def draw_batches(network: Network, *, batch: int) -> list[Batch]:
    """Batches that a network can learn: targets are latent numbers, features a random mixture of them with noise."""
    import numpy as np

    from edge_sdk.training.backend import Batch
    from edge_sdk.training.operators import Op

    rng = np.random.default_rng(SEED)
    outputs = network.class_count
    features = int(np.prod(network.input_shape))
    mixture = rng.normal(size=(outputs, features)).astype(np.float32) / np.float32(outputs**0.5)
    count = min(BATCHES_MAX, max(1, EXAMPLES_BYTES_MAX // (4 * batch * features)))
    batches = []
    for _ in range(count):
        latent = rng.normal(size=(batch, outputs)).astype(np.float32)
        x = latent @ mixture + np.float32(_NOISE) * rng.normal(size=(batch, features)).astype(np.float32)
        targets: dict[Op, Any] = {
            Op.SOFTMAX_CROSS_ENTROPY: latent.argmax(axis=1).astype(np.int64),
            Op.BINARY_CROSS_ENTROPY: (latent > 0).astype(np.float32),
        }
        y = targets.get(network.loss, latent)
        batches.append(Batch(x.reshape(batch, *network.input_shape), y, np.ones(batch, np.float32)))
    return batches


class TrainingMeter:
    """One trainer, its batches and the steps taken so far."""

    def __init__(self, artifact_file: Path, params_file: Path, backend: str) -> None:
        """Load everything and take one step, so that what is built lazily is there.

        Raises:
            EdgeFLError: a file or the backend is not usable.
            OSError: a file cannot be read.
        """
        from edge_sdk.protocol import wire
        from edge_sdk.protocol.messages import ModelParams
        from edge_sdk.training.artifact import Artifact
        from edge_sdk.training.trainer import Trainer

        self._artifact: Artifact = Artifact.load(artifact_file.read_bytes())
        self._trainer: Trainer = Trainer(self._artifact, backend=backend)
        self._trainer.load(wire.from_bytes(ModelParams, params_file.read_bytes()))
        self._batches = draw_batches(self._artifact.network, batch=self._artifact.batch)
        self._steps_done = 0
        self.steps(1)

    def steps(self, count: int) -> dict[str, object]:
        """Take steps.

        Returns:
            What is answered: of each step the time by clock and processor, and the mean loss of the last ones, as many
            as there are batches.

        Raises:
            NonFiniteError: the loss is no number.
        """
        import numpy as np

        marks = [(0, 0)] * (count + 1)
        losses = [0.0] * count
        first = self._steps_done

        def note(done: int, loss: float) -> None:
            marks[done - first] = time.perf_counter_ns(), time.process_time_ns()
            losses[done - first - 1] = loss

        marks[0] = time.perf_counter_ns(), time.process_time_ns()
        self._trainer.train(
            ReadyBatches(self._batches),
            steps=first + count,
            lr=RATE,
            rng=np.random.default_rng(SEED),
            on_step=note,
            start_step=first,
        )
        self._steps_done += count
        last = losses[-len(self._batches) :]
        step_ns, cpu_ns = ([end[k] - start[k] for start, end in pairwise(marks)] for k in range(2))
        return {"step_ns": step_ns, "cpu_ns": cpu_ns, "loss": sum(last) / len(last)}


def main(argv: Sequence[str]) -> int:
    """Answer commands until standard input ends."""
    artifact_file, params_file, backend = argv
    share_one_heap()  # as the device does
    try:
        meter = TrainingMeter(Path(artifact_file), Path(params_file), backend)
        _answer(loss=None)
        for line in sys.stdin:
            command, _, number = line.strip().partition(" ")
            if command != "steps" or not number.isdecimal() or not 1 <= int(number) <= STEPS_MAX:
                _say({"error": f"command {line.strip()[:40]!r}: expected steps 1..{STEPS_MAX}"})
                return 1
            _answer(**meter.steps(int(number)))
    except NonFiniteError as error:
        _say({"error": f"training diverged: {error}"})
        return 1
    except (EdgeFLError, OSError) as error:
        _say({"error": str(error)})
        return 1
    return 0


def _answer(**values: object) -> None:
    _say(values | {"peak_rss_mib": BoardSensors().process_memory().peak_kib / 1024})


def _say(values: dict[str, object]) -> None:
    print(json.dumps(values), flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
