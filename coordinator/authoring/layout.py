"""Which values of a training step lie as (channel, batch, *space) instead of (batch, channel, *space).

With channels outermost, a 1x1 convolution and its two gradients are one matrix product each, over all examples at once,
and a depthwise convolution is a batch of products, one per channel (``conv_products``). In the usual order the runtime
multiplies example by example, or pair by pair of example and channel, and a weight gradient needs two transposed
copies. What mixes neither examples nor channels works in both orders, and stays in that of its input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.authoring.conv_products import is_product
from edge_sdk.training.network import Op

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_sdk.training.network import Network

_KEEPS_ORDER: Final = frozenset(
    {
        Op.RELU,
        Op.CLIP,
        Op.LEAKY_RELU,
        Op.SIGMOID,
        Op.TANH,
        Op.HARD_SWISH,
        Op.ADD,
        Op.MUL,
        Op.MAX_POOL,
        Op.AVERAGE_POOL,
        Op.GLOBAL_AVERAGE_POOL,
    }
)


def channel_major_values(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """Values with channels outermost: of convolutions that become products, and of what follows them.

    Only where gradients flow: a frozen convolution stays one, for which the runtime has its fastest kernels.
    """
    found: set[str] = set()
    trainable = network.trainable_values
    for node in network.nodes:
        begins = node.output in trainable and is_product(node, shapes)
        if begins or (node.op in _KEEPS_ORDER and found.intersection(node.values)):
            found.add(node.output)
    return frozenset(found)
