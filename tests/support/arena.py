"""One running fleet that takes one blow after the other: what each did is read from receipts, counters and models.

After every blow two honest devices send an update each, which make a block of their own: the loop goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from edge_sdk.protocol import wire
from edge_sdk.protocol.cose import SoftwareSigner
from edge_sdk.protocol.ids import Digest, MinerId
from edge_sdk.protocol.messages import ModelParams, Reason, Receipt, ReceiptStatus, UpdateManifest, Verdict
from tests.support.fleet import Fleet, Rules
from tests.support.ordering import until
from tests.support.scripted_device import WAIT_S, ScriptedDevice

STALENESS_MAX: Final = 3
BLOCK_SIZE: Final = 2
TAU_MS: Final = 4_000
"""A lone update stays undecided this long: time enough to send it again."""
MARGIN_PERMILLE: Final = 200
"""Updates are refused here for their form and sender, never for a hair of their score."""


class Arena:
    """Fleet and sessions of its devices; the last device has an ES256 key, the stranger is not enrolled."""

    def __init__(self) -> None:
        """Found the fleet; entering starts it."""
        rules = Rules(
            devices=6,
            strangers=1,
            block_size=BLOCK_SIZE,
            tau_ms=TAU_MS,
            margin_permille=MARGIN_PERMILLE,
            staleness_max=STALENESS_MAX,
        )
        self.fleet = Fleet(rules)
        self.fleet.device_signers[self.fleet.device_ids[-1]] = SoftwareSigner(generate_private_key(SECP256R1()))
        self.blob = b""
        """A well-formed update of version 0, for whoever only needs one."""
        self._numbers = itertools.count(1_000)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start processes and sessions."""
        await self._stack.enter_async_context(self.fleet)
        names = (*self.fleet.device_ids, *self.fleet.stranger_ids)
        sessions = [await self._stack.enter_async_context(ScriptedDevice(self.fleet, name)) for name in names]
        self.honest = tuple(sessions[:2])
        self.hostile, self.other, self.revoked, self.es256, self.stranger = sessions[2:]
        self.blob = wire.to_bytes(self.hostile.train(self.fleet.model, seed=1))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    def seq(self) -> int:
        """A number that no update has had."""
        return next(self._numbers)

    async def model(self) -> tuple[int, ModelParams]:
        """Newest version, once every miner serves the same."""
        documents: list[dict[str, Any]] = []
        async with httpx.AsyncClient(trust_env=False) as http:

            async def is_even() -> bool:
                documents[:] = [
                    (await http.get(f"{self.fleet.url(miner)}/v1/models/latest")).json()
                    for miner in self.fleet.miner_ids
                ]
                return len({(document["version"], document["model_root"]) for document in documents}) == 1

            await until(is_even, seconds=WAIT_S)
            blob = (await http.get(f"{self.fleet.url(self.fleet.miner_ids[0])}{documents[0]['model_path']}")).content
        return documents[0]["version"], wire.from_bytes(ModelParams, blob)

    async def manifest(self, device: ScriptedDevice, blob: bytes, **changes: Any) -> UpdateManifest:
        """An honest description of a blob over the newest version, but for the changes."""
        version, base = await self.model()
        return replace(device.manifest(blob, seq=self.seq(), base=base, base_version=version), **changes)

    async def check_loop_goes_on(self) -> int:
        """Two good updates of the newest version are merged; the newest version afterwards."""
        version, base = await self.model()
        digests = []
        for number, device in enumerate(self.honest):
            blob = wire.to_bytes(device.train(base, seed=10 * version + number, steps=3))
            digests.append(device.publish(blob, seq=self.seq(), base_version=version, base=base))
        for device, digest in zip(self.honest, digests, strict=True):
            entry = await device.until_outcome(digest)
            assert entry.verdict is Verdict.MERGED, entry
        newest, _ = await self.model()
        assert newest > version
        return newest

    async def refusals(self, device: ScriptedDevice, digest: Digest) -> dict[MinerId, Reason]:
        """Reasons in the signed receipts of all miners, once each has answered."""

        def found() -> list[Receipt]:
            receipts = [receipt for (update, _), receipt in device.receipts.items() if update == digest]
            return [receipt for receipt in receipts if receipt.status is ReceiptStatus.REFUSED]

        await self.until(lambda: len(found()) == len(self.fleet.miner_ids), "a refusal of each miner")
        return {receipt.miner_id: receipt.reason for receipt in found()}

    async def counts(self, name: str, **labels: str) -> list[float]:
        """A counter on every miner, summed over the labels that are not given."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        sums = []
        for miner in self.fleet.miner_ids:
            lines = [line for line in (await self.fleet.metrics(miner)).splitlines() if line.startswith(name)]
            sums.append(sum(float(line.rpartition(" ")[2]) for line in lines if all(text in line for text in wanted)))
        return sums

    async def refused_messages(self, reason: Reason) -> list[float]:
        """Messages that each miner dropped for a reason, without an answer."""
        return await self.counts("flchain_messages_refused_total", reason=reason.name.lower())

    async def refused_updates(self, reason: Reason) -> list[float]:
        """Updates that each miner refused for a reason, with a receipt."""
        return await self.counts("flchain_updates_total", outcome="refused", reason=reason.name.lower())

    async def until_dropped(self, reason: Reason, before: list[float], count: int = 1) -> None:
        """Wait until every miner has counted so many more dropped messages of a reason, and not one beyond."""
        goal = [value + count for value in before]

        async def is_there() -> bool:
            found = await self.refused_messages(reason)
            assert all(a <= b for a, b in zip(found, goal, strict=True)), (reason.name, before, found)
            return found == goal

        await until(is_there, seconds=WAIT_S)

    async def until(self, is_true: Callable[[], bool], what: str) -> None:
        """Wait for a condition on what the sessions have received."""
        deadline_s = time.monotonic() + WAIT_S
        while not is_true():
            assert time.monotonic() < deadline_s, f"waits for {what}"
            await asyncio.sleep(0.02)
