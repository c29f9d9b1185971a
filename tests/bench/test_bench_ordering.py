"""How long a height takes with four applications in processes of their own, and where the time goes."""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from typing import Any, Final

import pytest

from coordinator.ordering.chain import Chain
from coordinator.ordering.connection import AbciLink
from coordinator.ordering.sequencer import Sequencer
from coordinator.ordering.sequencer_config import SequencerConfig
from edge_sdk.adapters.system_clock import SystemClock
from tests.support.measurements import Row, of_values, record
from tests.support.ordering import Cluster

pytestmark = pytest.mark.bench

HEIGHTS: Final = 200
PARTS: Final = [
    (AbciLink, "prepare"),
    (Sequencer, "_is_accepted"),
    (Chain, "append"),
    (AbciLink, "finalize"),
    (AbciLink, "commit"),
]


def test_time_of_a_height(monkeypatch: pytest.MonkeyPatch) -> None:
    taken_ms: dict[str, list[float]] = defaultdict(list)

    def timed(owner: type, name: str) -> None:
        call = getattr(owner, name)

        async def measured(*args: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return await call(*args, **keywords)
            finally:
                taken_ms[f"{owner.__name__}.{name}"].append((time.perf_counter() - start) * 1e3)

        monkeypatch.setattr(owner, name, measured)

    async def scenario() -> None:
        async with Cluster() as cluster:
            cluster.start()
            engine = Sequencer(SequencerConfig.load(cluster.root / "sequencer.toml"), clock=SystemClock())
            stop = asyncio.Event()
            running = asyncio.create_task(engine.run(stop))
            await cluster.until_live()
            for height in range(1, HEIGHTS + 1):
                start = time.perf_counter()
                await engine.submit(os.urandom(1_000))
                while engine._chain.height < height or engine._chain.agreed is None:
                    await engine._chain.changed.wait()
                taken_ms["submit to agreed"].append((time.perf_counter() - start) * 1e3)
            stop.set()
            await running

    for owner, name in PARTS:
        timed(owner, name)
    asyncio.run(scenario())
    for place, (part, values) in enumerate(sorted(taken_ms.items()), start=1):
        p99 = of_values(values, 0.99)["figure"]
        key = f"6-ordering-{place}-{part.replace(' ', '-').lower()}"
        what = f"ordering, one height of four applications: {part}, p50"
        record(Row(key=key, what=what, unit="ms", **of_values(values), note=f"p99 {p99:.1f} ms"))
    assert len(taken_ms["submit to agreed"]) == HEIGHTS
