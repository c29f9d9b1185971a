"""When a miner's patience with a phase ends: the only door by which its clock reaches the ordered log.

A block is collected for ``tau_ms`` at most, once something waits; committing and revealing last ``phase_ms`` each. A
tick alone decides nothing: more than 2/3 of the power must run out of patience.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.ledger.state import State, UpdateStatus
from edge_sdk.protocol.ids import MinerId
from edge_sdk.protocol.messages import Phase, TaskParams, Tick

MILLI_PER_UNIT = 1_000


@dataclass(slots=True)
class Deadlines:
    """Timer of one miner. It starts again with the process: a restart makes a phase longer, never shorter."""

    miner_id: MinerId
    params: TaskParams
    _place: tuple[int, Phase, int] | None = None
    _since_s: float = 0.0

    def observe(self, state: State, now_s: float) -> None:
        """Take in committed state; the timer starts when it is new."""
        attempt = 0 if state.round is None else state.round.attempt
        place = (state.block_index, state.phase, attempt)
        if place != self._place:
            self._place, self._since_s = place, now_s

    def remaining_s(self, state: State, now_s: float) -> float | None:
        """Seconds until a tick is due, 0.0 when it is; None when this phase needs none of this miner."""
        self.observe(state, now_s)
        round_ = state.round
        if round_ is None:
            if self.miner_id in state.core.collect_ticks or not _is_waiting(state):
                return None
            limit_ms = self.params.tau_ms
        else:
            if round_.phase not in {Phase.COMMIT, Phase.REVEAL} or self.miner_id in round_.ticks:
                return None
            limit_ms = self.params.phase_ms
        return max(0.0, self._since_s + limit_ms / MILLI_PER_UNIT - now_s)

    def tick(self, state: State) -> Tick:
        """Return the tick for the phase that is open now."""
        attempt = 0 if state.round is None else state.round.attempt
        return Tick(miner_id=self.miner_id, block_index=state.block_index, phase=state.phase, attempt=attempt)


def _is_waiting(state: State) -> bool:
    """Whether an update could go into a block now."""
    return any(update.status is UpdateStatus.PENDING for update in state.updates.values())
