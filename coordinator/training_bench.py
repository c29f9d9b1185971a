"""Times training steps: one process per backend and scheme, which take turns on one thread each.

What is compared lies next to each other in time: in each round every process takes as many steps, and a ratio is the
median over the rounds of (median step of the one / median step of the other), both in the processor's time of their
process, where no GPU is part of it: other programs disturb that less than the time of a clock. A process of its own per
backend also gives each backend's memory, without the others'.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from edge_sdk.errors import ConfigError, TrainingError

STEPS_PER_ROUND: Final = 10
_METER: Final = "edge_sdk.adapters.training_meter"
_ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GPUS: Final = (":cuda", ":tensorrt")
_NS_PER_MS: Final = 1e6
_END_S: Final = 10.0
REFERENCE: Final = ("torch", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured: an artifact with its parameters, on one backend."""

    model: str
    backend: str
    scheme: str
    artifact_file: Path
    params_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table and of the report."""

    model: str
    backend: str
    scheme: str
    step_ms_median: float
    ratio_to_torch_fp32: float | None
    """Median of paired ratios of processor time; None without torch."""
    ratio_to_own_fp32: float | None
    """To the same backend's float32 step; None where that was not measured."""
    peak_rss_mib: float
    """VmHWM of the process: interpreter, numpy, backend, parameters and batches, nothing of a device's transport."""
    loss_after: float


@dataclass(slots=True)
class _Runner:
    """A running meter."""

    subject: Subject
    process: subprocess.Popen[str]
    rounds_ns: list[list[int]] = field(default_factory=list)
    """By the clock, in turns."""
    rounds_cpu_ns: list[list[int]] = field(default_factory=list)
    loss: float = 0.0
    peak_rss_mib: float = 0.0

    @property
    def is_on_gpu(self) -> bool:
        """Whether processor time leaves out a part of the step."""
        return self.subject.backend.endswith(GPUS)

    def hear(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            TrainingError: the meter reports an error or has ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise TrainingError(f"its process ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise TrainingError(answer["error"])
        self.peak_rss_mib = answer["peak_rss_mib"]
        return answer

    def take(self, steps: int) -> None:
        """Let it take its turn."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"steps {steps}\n")
        self.process.stdin.flush()
        answer = self.hear()
        self.rounds_ns.append(answer["step_ns"])
        self.rounds_cpu_ns.append(answer["cpu_ns"])
        self.loss = answer["loss"]

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(_END_S)


def measure(subjects: list[Subject], *, rounds: int) -> tuple[list[Row], list[str]]:
    """Measure subjects of one model side by side.

    Args:
        subjects: Of one model, so that their steps may be compared.
        rounds: Turns of each, of ``STEPS_PER_ROUND`` steps.

    Returns:
        A row per subject that ran, and one line of text per subject that did not.
    """
    runners: list[_Runner] = []
    skipped: list[str] = []
    try:
        for subject in subjects:
            runner = _start(subject)
            try:
                runner.hear()
                runners.append(runner)
            except TrainingError as error:
                runner.stop()
                skipped.append(f"{subject.model} {subject.backend} {subject.scheme}: {error}")
        for _ in range(rounds):
            for runner in list(runners):
                try:
                    runner.take(STEPS_PER_ROUND)
                except TrainingError as error:
                    runner.stop()
                    runners.remove(runner)
                    skipped.append(f"{runner.subject.model} {runner.subject.backend} {runner.subject.scheme}: {error}")
    finally:
        for runner in runners:
            runner.stop()
    return [_row(runner, runners) for runner in runners], skipped


def _start(subject: Subject) -> _Runner:
    environment = os.environ | dict.fromkeys(_ONE_THREAD, "1")
    arguments = [str(subject.artifact_file), str(subject.params_file), subject.backend]
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", _METER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
    except OSError as error:
        raise ConfigError(f"{sys.executable} cannot be started: {error}") from error
    return _Runner(subject, process)


def _row(runner: _Runner, runners: list[_Runner]) -> Row:
    subject = runner.subject
    by_kind = {(other.subject.backend, other.subject.scheme): other for other in runners}
    return Row(
        model=subject.model,
        backend=subject.backend,
        scheme=subject.scheme,
        step_ms_median=median(ns for turn in runner.rounds_ns for ns in turn) / _NS_PER_MS,
        ratio_to_torch_fp32=_ratio(runner, by_kind.get(REFERENCE)),
        ratio_to_own_fp32=_ratio(runner, by_kind.get((subject.backend, "fp32"))),
        peak_rss_mib=runner.peak_rss_mib,
        loss_after=runner.loss,
    )


def _ratio(runner: _Runner, other: _Runner | None) -> float | None:
    """Median over the rounds of the ratio of median steps."""
    if other is None:
        return None
    if runner.is_on_gpu or other.is_on_gpu:
        pairs = zip(runner.rounds_ns, other.rounds_ns, strict=True)
    else:
        pairs = zip(runner.rounds_cpu_ns, other.rounds_cpu_ns, strict=True)
    return median(median(own) / median(reference) for own, reference in pairs)
