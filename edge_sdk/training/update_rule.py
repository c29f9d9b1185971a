"""How a gradient moves the state: momentum, gradient clipping, the proximal term. Part of an artifact.

    g  <- dL/dp + prox (p - base)                         FedProx (Li et al. 2020, arXiv:1812.06127, equation 2)
    g  <- g min(1, clip_norm / ||g||)                     norm over all trained tensors (Pascanu et al. 2013)
    u  <- momentum u + lr g,   p <- p - u                 heavy ball (Polyak 1964); u = lr g without momentum

The learning rate stands inside of u, so that u is counted in steps of the state's grid; with a constant rate this is
``torch.optim.SGD``. u and base belong to a job: u starts at zero whenever a model is loaded. A step that was measured
from another base points away from a model that many devices have changed since, and it would not be averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from edge_sdk.errors import TrainingError

MOMENTUM_MAX: Final = 0.999
CLIP_NORM_MAX: Final = 1e6
PROX_MAX: Final = 1e3
VELOCITY_UNITS: Final = 4_096.0
"""u of a quantized weight is int16 in 2**-12 of a grid step: it reaches 8 steps of the grid per training step."""
VELOCITY_MIN, VELOCITY_MAX = -32_768, 32_767


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRule:
    """Settings of the update; the default is plain SGD. Values are float32."""

    momentum: float = 0.0
    """Share of the last step that is taken again, 0 <= momentum <= MOMENTUM_MAX."""
    clip_norm: float = 0.0
    """Largest L2 norm of a step's gradient over all trained tensors, in units of the parameters; 0: no bound."""
    prox: float = 0.0
    """Weight mu of (mu / 2) ||p - base||^2 in the loss; 0: none."""

    @property
    def is_plain(self) -> bool:
        """Whether it is SGD without additions."""
        return self == PLAIN_SGD


PLAIN_SGD: Final = UpdateRule()


def check_rule(rule: UpdateRule) -> None:
    """Check the bounds.

    Raises:
        TrainingError: a setting is out of range; the text names it.
    """
    bounds = (
        ("momentum", rule.momentum, MOMENTUM_MAX),
        ("clip norm", rule.clip_norm, CLIP_NORM_MAX),
        ("prox", rule.prox, PROX_MAX),
    )
    for name, value, largest in bounds:
        if not (math.isfinite(value) and 0.0 <= value <= largest):
            raise TrainingError(f"{name} {value:g}: expected 0..{largest:g}")
