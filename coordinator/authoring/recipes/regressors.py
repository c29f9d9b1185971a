"""Networks whose targets are numbers.

- autoencoder: in-64-16-64-in, for anomalies: trained on normal examples, whose targets are the examples themselves; an
  example that it cannot rebuild is not normal.
- regressor: in-64-32-outputs.
"""

from __future__ import annotations

import math

from coordinator.authoring.recipes.layers import Layers
from edge_sdk.errors import ConfigError
from edge_sdk.training.network import Op


def autoencoder(layers: Layers, output_count: int) -> None:
    """Windows of sensor channels, or features."""
    if output_count != math.prod(layers.shape):
        raise ConfigError(
            f"model autoencoder for examples of shape {layers.shape}: {output_count} outputs, "
            f"expected one per value, {math.prod(layers.shape)}"
        )
    layers.head((64, 16, 64), output_count, Op.MEAN_SQUARED_ERROR)


def regressor(layers: Layers, output_count: int) -> None:
    """Features."""
    layers.head((64, 32), output_count, Op.MEAN_SQUARED_ERROR)
