"""One training job on the board: pinned base, resumable steps, and the update that comes of it.

The base is copied out of the model slots when the job starts, so that a newer model can be installed meanwhile. A
checkpoint every few seconds holds the state after whole steps; with the same seed the job goes on with the same
batches. numpy and the training runtime are imported here on first use, and what they hold is given back when the job
is over.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_sdk.adapters import failpoints
from edge_sdk.adapters.durable_files import make_private_directory, read_file, write_file
from edge_sdk.adapters.slots import decode_model
from edge_sdk.device import adversary, encoding
from edge_sdk.device.config import DeviceConfig
from edge_sdk.device.examples import LocalExamples
from edge_sdk.device.personal import SELF_TEST_ROWS, Personal
from edge_sdk.errors import CorruptStoreError, DecodeError, EdgeFLError, TrainingError
from edge_sdk.protocol import codec, cose
from edge_sdk.protocol.digest import sha256, update_digest
from edge_sdk.protocol.ids import Digest, check_digest
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX, BLOB_BYTES_MAX
from edge_sdk.protocol.messages import Domain, EnergyQuality, Genesis, ModelParams, UpdateManifest
from edge_sdk.protocol.wire import to_bytes

if TYPE_CHECKING:
    from edge_sdk.device.encoding import JobTrainer
    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.dataset import ArrayDataset
    from edge_sdk.training.trainer import Trainer

log: Final = logging.getLogger(__name__)

Q24: Final = 2**24
Q16: Final = 2**16
SELF_TEST_EXAMPLES: Final = 64
PAUSE_POLL_S: Final = 0.5
_INFO_BYTES_MAX: Final = 256


class StoppedError(EdgeFLError):
    """The process is asked to end; the checkpoint is on the disk."""


@dataclass(frozen=True, slots=True)
class PinnedBase:
    """What a job trains from."""

    version: int
    root: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUpdate:
    """A signed update in memory, ready for the outbox."""

    digest: Digest
    seq: int
    base_version: int
    expiry_height: int
    envelope: bytes
    blob: bytes
    residual: bytes


class JobFiles:
    """``base/``: the pinned model, which one it is, and the checkpoint."""

    def __init__(self, directory: Path) -> None:
        """Name the files."""
        self._directory = directory
        self._info = directory / "info.cbor"
        self.model = directory / "model.cbor"
        self._state = directory / "state.cbor"

    def pin(self, base: PinnedBase, blob: bytes) -> None:
        """Start a job: the info file comes last and makes it count."""
        self.drop()
        make_private_directory(self._directory)
        write_file(self.model, blob)
        write_file(self._info, codec.encode({1: base.version, 2: base.root}))

    def pinned(self) -> PinnedBase | None:
        """The base of an unfinished job.

        Raises:
            CorruptStoreError: the info file is not one.
        """
        data = read_file(self._info, bytes_max=_INFO_BYTES_MAX)
        if data is None:
            return None
        try:
            match codec.decode(data, bytes_max=_INFO_BYTES_MAX):
                case {1: int(version), 2: bytes(root)}:
                    return PinnedBase(version, check_digest(root))
        except DecodeError as error:
            raise CorruptStoreError(f"{self._info}: {error}; delete {self._directory} to train anew") from error
        raise CorruptStoreError(f"{self._info}: not a job; delete {self._directory} to train anew")

    def save_state(self, state: bytes, trained_ms: int) -> None:
        """Replace the checkpoint."""
        write_file(self._state, codec.encode({1: state, 2: trained_ms}))
        failpoints.hit("device.after_checkpoint")

    def saved_state(self) -> tuple[bytes, int] | None:
        """The checkpoint and the milliseconds that it took; None before the first, or when it cannot be read."""
        data = read_file(self._state, bytes_max=2 * BLOB_BYTES_MAX)
        if data is None:
            return None
        try:
            match codec.decode(data, bytes_max=2 * BLOB_BYTES_MAX):
                case {1: bytes(state), 2: int(trained_ms)}:
                    return state, trained_ms
        except DecodeError:
            return None  # it is only time that is lost
        return None

    def drop(self) -> None:
        """Forget the job."""
        self._info.unlink(missing_ok=True)
        shutil.rmtree(self._directory, ignore_errors=True)


class Trainers:
    """Runs jobs, self-tests and the arithmetic of residuals. Used by the work thread only, except ``gate``."""

    def __init__(self, config: DeviceConfig, genesis: Genesis, *, stopping: threading.Event) -> None:
        """Keep the settings; nothing heavy is imported yet."""
        self._config = config
        self._genesis = genesis
        self._stopping = stopping
        self.files = JobFiles(config.job_dir)
        self._examples_here = LocalExamples(config)
        self.personal = Personal(config, genesis) if config.is_personal else None
        """Keeps the personal model, where this board is to have one."""
        self.gate = threading.Event()
        """Set while the governor lets a job run."""
        self.gate.set()
        self._artifact: Artifact | None = None
        self._is_author_told = False
        self._trainer: JobTrainer | None = None
        self._base: ModelParams | None = None
        self._examples = 0
        self._trained_ms = 0
        self.energy_mj = 0
        """Of the job's training, for the manifest."""
        self.energy_quality = EnergyQuality.MODELLED

    @property
    def steps(self) -> int:
        """Local steps of a job."""
        return self._config.steps or self._genesis.params.local_steps

    def count_examples(self) -> int:
        """Number of local examples, all of them checked.

        Raises:
            TrainingError: artifact or data cannot be used.
        """
        return self._examples_here.count(self._load_artifact())

    def self_test(self, params: ModelParams, version: int) -> float:
        """Mean loss of a model on a few local examples; while there are none yet, on one of zeros.

        Raises:
            TrainingError: it does not fit the artifact or gives a value that is not finite.
            StoreError: the examples cannot be read.
        """
        artifact = self._load_artifact()
        examples = self._examples_here.some(artifact, SELF_TEST_EXAMPLES if self.personal is None else SELF_TEST_ROWS)
        trainer = self._new_trainer(artifact)
        try:
            trainer.load(params)
            dataset = _zeros(artifact) if examples is None else examples.dataset
            rows = slice(0, SELF_TEST_EXAMPLES)
            loss = trainer.evaluate(params, dataset.features(rows), dataset.y[rows]).loss_mean
            if self.personal is not None and examples is not None:
                self.personal.model_arrived(trainer, params, version, examples)
            return loss
        finally:
            trainer.release()

    def train(self, base: PinnedBase) -> int:
        """Run the job to its end, from its checkpoint if there is one.

        Returns:
            Steps done in this call.

        Raises:
            StoppedError: the process ends; a checkpoint is saved.
            TrainingError: no update can come of it.
        """
        import numpy as np

        blob = read_file(self.files.model, bytes_max=BLOB_BYTES_MAX) or b""
        try:
            self._base = decode_model(blob, base.root)
        except DecodeError as error:
            raise TrainingError(f"pinned base: {error}") from error
        artifact = self._load_artifact()
        examples = self._examples_here.of_job(artifact)
        dataset = examples.dataset
        adversary.corrupt_dataset(self._config.byzantine, dataset, artifact.network.class_count)
        trainer = encoding.new_trainer(
            artifact,
            self._genesis.params,
            backend=self._config.backend,
            device_id=self._config.device_id,
            root=base.root,
            kind=self._config.byzantine,
        )
        trainer.load(self._base)
        used = dataset if self.personal is None else self.personal.to_train(examples)
        self._trainer, self._trained_ms, self._examples = trainer, 0, len(used)
        self._restore(trainer)
        start_step = trainer.steps_done
        if start_step < self.steps:
            honest_rate = self._config.learning_rate or self._genesis.params.learning_rate_q24 / Q24
            trainer.train(
                used,
                steps=self.steps,
                lr=adversary.learning_rate(self._config.byzantine, honest_rate),
                rng=np.random.default_rng(self._seed(base)),
                on_step=_Pacer(self, trainer),
                start_step=start_step,
            )
            self._checkpoint(trainer)
        if self.personal is not None:
            self.personal.job_ended(trainer, self._base, base.version, examples)
        return self.steps - start_step

    def make_update(
        self, base: PinnedBase, seq: int, expiry_height: int, *, residual: bytes | None, signer: cose.Signer
    ) -> MadeUpdate:
        """Turn the finished job into a signed update, and give its memory back.

        Raises:
            TrainingError: the delta is not finite or cannot be written.
        """
        import numpy as np

        trainer = self._trainer
        if trainer is None or self._base is None:
            raise TrainingError("no finished job")
        params = self._genesis.params
        encoded = encoding.encode(
            trainer,
            self._base,
            params,
            residual=residual,
            kind=self._config.byzantine,
            rng=np.random.default_rng(self._seed(base)),
        )
        blob = to_bytes(encoded.payload)
        manifest = UpdateManifest(
            task=self._genesis.task,
            chain_id=self._genesis.chain_id,
            device_id=self._config.device_id,
            seq=seq,
            base_version=base.version,
            base_root=base.root,
            codec=params.codec,
            blob_bytes=len(blob),
            blob_digest=sha256(blob),
            example_count=min(self._examples, params.example_count_max),
            local_steps=self.steps,
            training_ms=self._trained_ms,
            energy_mj=self.energy_mj,
            energy_quality=self.energy_quality,
            expiry_height=expiry_height,
        )
        envelope = cose.sign(
            to_bytes(manifest),
            signer=signer,
            domain=Domain.UPDATE,
            chain_id=self._genesis.chain_id,
            sender=self._config.device_id,
        )
        self.release()
        return MadeUpdate(
            digest=update_digest(envelope),
            seq=seq,
            base_version=base.version,
            expiry_height=expiry_height,
            envelope=envelope,
            blob=blob,
            residual=encoded.residual,
        )

    def returned_residual(self, residual: bytes | None, blob: bytes, model: ModelParams) -> bytes:
        """The residual with the delta of a refused update added, its norm bounded by the clip.

        Raises:
            DecodeError: stored bytes do not fit the artifact.
        """
        return encoding.returned_residual(
            self._load_artifact(), self._genesis.params, residual=residual, blob=blob, model=model
        )

    def release(self) -> None:
        """Give back what training held."""
        if self._trainer is not None:
            self._trainer.release()
        self._trainer, self._base, self._artifact = None, None, None

    # --- inside ---

    def pace(self, trainer: JobTrainer, clock: _Pacer) -> None:
        """After each step: save, wait while paused, stop."""
        if clock.is_checkpoint_due(self._config.checkpoint_s):
            self._checkpoint(trainer)
        is_held = not self.gate.is_set()
        if is_held or self._stopping.is_set():
            self._checkpoint(trainer)
        while not self.gate.wait(PAUSE_POLL_S) and not self._stopping.is_set():
            pass
        if self._stopping.is_set():
            raise StoppedError("stopped between two steps")

    def count_ms(self, duration_s: float) -> None:
        """Add training time; a played slow board takes it again as often as configured."""
        extra_s = duration_s * (self._config.slowdown - 1.0)
        if extra_s > 0:
            self._stopping.wait(extra_s)
        self._trained_ms += round((duration_s + extra_s) * 1_000)

    def _checkpoint(self, trainer: JobTrainer) -> None:
        self.files.save_state(trainer.state_bytes(), self._trained_ms)

    def _restore(self, trainer: JobTrainer) -> None:
        saved = self.files.saved_state()
        if saved is None:
            return
        state, trained_ms = saved
        try:
            trainer.restore(state)
        except DecodeError:
            return  # of another artifact or base: begin at the first step
        self._trained_ms = trained_ms

    def _seed(self, base: PinnedBase) -> list[int]:
        """The same at a resumption; different for each device and base."""
        name = int.from_bytes(hashlib.sha256(self._config.device_id.encode()).digest()[:8])
        return [self._config.seed, name, base.version]

    def _load_artifact(self) -> Artifact:
        from edge_sdk.training.artifact import Artifact

        if self._artifact is None:
            data = read_file(self._config.artifact_file, bytes_max=ARTIFACT_BYTES_MAX)
            if data is None:
                raise TrainingError(f"{self._config.artifact_file}: there is no artifact")
            try:
                artifact = Artifact.load(
                    data, digest=self._genesis.artifact_digest, author=self._genesis.artifact_author
                )
            except DecodeError as error:
                raise TrainingError(f"{self._config.artifact_file}: {error}") from error
            encoding.check_form(artifact, self._genesis.params)
            if not self._is_author_told:
                self._is_author_told = True
                log.info("artifact %s, signed by %s", artifact.name, artifact.authored_by)
            self._artifact = artifact
        return self._artifact

    def _new_trainer(self, artifact: Artifact) -> Trainer:
        from edge_sdk.training.trainer import Trainer

        return Trainer(artifact, backend=self._config.backend)


def _zeros(artifact: Artifact) -> ArrayDataset:
    """One example for a board that has seen none: shows that a model computes finite numbers."""
    import numpy as np

    from edge_sdk.training.dataset import ArrayDataset

    network = artifact.network
    y = np.zeros(1, np.int64) if network.is_classifier else np.zeros((1, network.class_count), np.float32)
    return ArrayDataset(
        np.zeros((1, *network.input_shape), np.float32),
        y,
        input_shape=network.input_shape,
        class_count=network.class_count,
        has_labels=network.is_classifier,
    )


class _Pacer:
    """``on_step`` of a job: counts time between steps without the pauses."""

    def __init__(self, trainers: Trainers, trainer: JobTrainer) -> None:
        self._trainers = trainers
        self._trainer = trainer
        self._step_s = self._saved_s = time.monotonic()

    def __call__(self, step: int, loss: float) -> Any:  # noqa: ARG002 - the trainer's callback
        self._trainers.count_ms(time.monotonic() - self._step_s)
        failpoints.hit("device.mid_training")
        self._trainers.pace(self._trainer, self)
        self._step_s = time.monotonic()

    def is_checkpoint_due(self, interval_s: float) -> bool:
        """Whether the last checkpoint is older than the interval; restarts the count if so."""
        now_s = time.monotonic()
        if now_s - self._saved_s < interval_s:
            return False
        self._saved_s = now_s
        return True
