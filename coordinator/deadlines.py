"""When a miner's patience with a phase ends: the only door by which its clock reaches the ordered log.

A block is collected for ``tau_ms`` at most, once something waits; committing and revealing last ``phase_ms`` each.
While nothing waits, a block is asked for only when the newest certificate has used up two thirds of its life, so that
a board that comes after a long rest still finds a model that it may install. A tick alone decides nothing: more than
2/3 of the power must run out of patience.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from coordinator.ledger.state import State
from coordinator.rounds import open_phase
from edge_sdk.protocol.ids import MinerId
from edge_sdk.protocol.messages import Phase, TaskParams, Tick

_MILLI_PER_UNIT: Final = 1_000
RENEWAL_SHARE: Final = 3
"""The last third of a certificate's life is for its renewal."""
RENEWAL_LOOK_S: Final = 600.0
"""How often the calendar is looked at: it may be set, unlike the clock that counts a phase."""


@dataclass(slots=True)
class Deadlines:
    """Timer of one miner. It starts again with the process: a restart makes a phase longer, never shorter."""

    miner_id: MinerId
    params: TaskParams
    _place: tuple[int, Phase, int] | None = None
    _since_s: float = 0.0

    def remaining_s(self, state: State, now_s: float, *, time_s: int) -> float | None:
        """Seconds until a tick is due or the next look; 0.0 when it is due, None when none of this miner is needed now.

        ``now_s`` is monotonic, ``time_s`` seconds since 1970. Call it whenever the state has changed: the timer of a
        phase starts when it is first seen here.
        """
        phase = open_phase(state)
        place = (phase.block_index, phase.phase, phase.attempt)
        if place != self._place:
            self._place, self._since_s = place, now_s
        if self.miner_id in phase.ticked:
            return None
        if not phase.tick_is_due:
            return self._renewal_s(phase.certified_until_s, time_s)
        limit_ms = self.params.tau_ms if phase.phase is Phase.COLLECT else self.params.phase_ms
        return max(0.0, self._since_s + limit_ms / _MILLI_PER_UNIT - now_s)

    def _renewal_s(self, certified_until_s: int | None, time_s: int) -> float | None:
        if certified_until_s is None:
            return None
        due_s = certified_until_s - self.params.certificate_ttl_s // RENEWAL_SHARE
        return 0.0 if time_s >= due_s else RENEWAL_LOOK_S

    def tick(self, state: State) -> Tick:
        """Return the tick for the phase that is open now."""
        phase = open_phase(state)
        return Tick(miner_id=self.miner_id, block_index=phase.block_index, phase=phase.phase, attempt=phase.attempt)
