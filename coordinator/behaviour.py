"""How a miner lies, for demonstrations and fault tests: falsifications, applied where an honest miner would speak.

Nothing here weakens a check. A lying miner runs the honest program up to the moment of its lie, so that what catches it
is the protocol of the others.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import SCORE_MAX
from edge_sdk.protocol.messages import Scores


class Behaviour(StrEnum):
    """What a miner lies about. Empty: nothing."""

    HONEST = ""
    LYING_SCORES = "lying-scores"
    LYING_RECEIPTS = "lying-receipts"
    LYING_ROOTS = "lying-roots"
    SILENT = "silent"

    def scores(self, scores: Scores) -> Scores:
        """Return what this miner commits to: a liar praises the base and condemns every update."""
        if self is not Behaviour.LYING_SCORES:
            return scores
        return replace(scores, base=SCORE_MAX, updates=(0,) * len(scores.updates))

    def root(self, root: Digest) -> Digest:
        """Return the model root that this miner signs."""
        return Digest(bytes([root[0] ^ 1]) + root[1:]) if self is Behaviour.LYING_ROOTS else root

    @property
    def is_silent(self) -> bool:
        """Whether it follows the log and says nothing."""
        return self is Behaviour.SILENT

    @property
    def receipts_without_blob(self) -> bool:
        """Whether it confirms an update when it has seen no more than the manifest, and stores nothing."""
        return self is Behaviour.LYING_RECEIPTS
