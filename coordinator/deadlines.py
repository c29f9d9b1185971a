"""When a miner's patience with a phase ends: the only door by which its clock reaches the ordered log.

A block is collected for ``tau_ms`` at most, once something waits; committing and revealing last ``phase_ms`` each. A
tick alone decides nothing: more than 2/3 of the power must run out of patience.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from coordinator.ledger.state import State
from coordinator.rounds import open_phase
from edge_sdk.protocol.ids import MinerId
from edge_sdk.protocol.messages import Phase, TaskParams, Tick

_MILLI_PER_UNIT: Final = 1_000


@dataclass(slots=True)
class Deadlines:
    """Timer of one miner. It starts again with the process: a restart makes a phase longer, never shorter."""

    miner_id: MinerId
    params: TaskParams
    _place: tuple[int, Phase, int] | None = None
    _since_s: float = 0.0

    def remaining_s(self, state: State, now_s: float) -> float | None:
        """Seconds until a tick is due, 0.0 when it is; None when this phase needs none of this miner now.

        Call it whenever the state has changed: the timer of a phase starts when it is first seen here.
        """
        phase = open_phase(state)
        place = (phase.block_index, phase.phase, phase.attempt)
        if place != self._place:
            self._place, self._since_s = place, now_s
        if not phase.tick_is_due or self.miner_id in phase.ticked:
            return None
        limit_ms = self.params.tau_ms if phase.phase is Phase.COLLECT else self.params.phase_ms
        return max(0.0, self._since_s + limit_ms / _MILLI_PER_UNIT - now_s)

    def tick(self, state: State) -> Tick:
        """Return the tick for the phase that is open now."""
        phase = open_phase(state)
        return Tick(miner_id=self.miner_id, block_index=phase.block_index, phase=phase.phase, attempt=phase.attempt)
