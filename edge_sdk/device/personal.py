"""The board's personal model: a mix of its own last parameters and the newest global ones. It never leaves the board.

When a job ends its parameters are mixed with the base, and when a newer global model comes, with that. Examples that
are held out of training say which mix is best, and whether it is better than the global model alone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from edge_sdk.adapters.personal_file import PersonalFile, PersonalModel
from edge_sdk.device.config import DeviceConfig
from edge_sdk.errors import ConfigError, StoreError, TrainingError
from edge_sdk.protocol.messages import Codec, Genesis, ModelParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge_sdk.device.encoding import JobTrainer
    from edge_sdk.device.examples import Examples
    from edge_sdk.training.dataset import Selection
    from edge_sdk.training.personal import Mixed
    from edge_sdk.training.trainer import Trainer

log: Final = logging.getLogger(__name__)

SELF_TEST_ROWS: Final = 1_024
"""Of a replay buffer, read into memory for a new global model; a fifth of them is held out."""


class Personal:
    """Keeps the personal model; used by the work thread. A failure is logged: the fleet's work goes on without it."""

    def __init__(self, config: DeviceConfig, genesis: Genesis) -> None:
        """Keep the settings.

        Raises:
            ConfigError: jobs of this task leave no parameters of their own.
        """
        if genesis.params.codec is Codec.SPSA:
            raise ConfigError(
                f"{config.path}: [training] personal_alpha: a task with SPSA trains no model on the board"
            )
        self._config = config
        self._file = PersonalFile(config.personal_file, genesis)
        self._kept: PersonalModel | None = None

    def take_kept(self) -> PersonalModel | None:
        """The mix that was made since the last call, for the record."""
        kept, self._kept = self._kept, None
        return kept

    def split(self, examples: Examples) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows to train on, and rows held out, which no job ever sees."""
        import numpy as np

        from edge_sdk.training.personal import held_out

        mask = held_out(examples.numbers, seed=self._config.seed)
        return np.flatnonzero(~mask), np.flatnonzero(mask)

    def to_train(self, examples: Examples) -> Selection:
        """The examples that a job may see.

        Raises:
            TrainingError: there are none.
        """
        from edge_sdk.training.dataset import Selection

        return Selection(examples.dataset, self.split(examples)[0])

    def job_ended(self, trainer: JobTrainer, base: ModelParams, version: int, examples: Examples) -> None:
        """Take the parameters of a finished job, and mix them with its base."""
        from edge_sdk.training.quantize import dequantize, to_params
        from edge_sdk.training.trainer import Trainer

        assert isinstance(trainer, Trainer), "a task with SPSA was refused"
        start, delta = dequantize(base), trainer.delta()
        local = {name: start[name] + moved for name, moved in delta.items()}
        self._mix(trainer, to_params(trainer.artifact.network.tensors, local), base, version, examples)

    def model_arrived(self, trainer: Trainer, model: ModelParams, version: int, examples: Examples) -> None:
        """Mix the last own parameters with a new global model."""
        known = self._file.read()
        if known is not None:
            self._mix(trainer, known.local, model, version, examples)

    def _mix(self, trainer: Trainer, local: ModelParams, model: ModelParams, version: int, examples: Examples) -> None:
        from edge_sdk.training.personal import ALPHAS, mix
        from edge_sdk.training.quantize import dequantize

        _, rows = self.split(examples)
        if not len(rows):
            return
        alpha = self._config.personal_alpha
        alphas = ALPHAS if self._config.personal_search or alpha is None else (alpha,)
        try:
            found: Mixed = mix(trainer, dequantize(local), model, examples.dataset, rows, alphas=alphas)
            kept = PersonalModel(
                local=local,
                mix=found.params,
                version=version,
                alpha=found.alpha,
                held_out=found.personal.count,
                correct_personal=found.personal.correct,
                correct_global=found.global_.correct,
                is_better=found.is_better,
            )
            self._file.write(kept)
        except (TrainingError, StoreError) as error:
            log.warning("personal model stays as it was: %s", error)
            return
        self._kept = kept
