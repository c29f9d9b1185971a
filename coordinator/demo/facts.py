"""Puts together what is known of a finished run: the auditor's counts, the run records, the ledgers, the curve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Final

from coordinator.datasets.task import measure_of
from coordinator.demo.auditor import LEDGER, audit
from coordinator.demo.baseline import Baseline
from coordinator.demo.founding import Fleet
from coordinator.demo.layout import Role
from coordinator.demo.observer import Point
from coordinator.demo.personal import measure_personal
from coordinator.demo.records import RunPhase, read_runs
from coordinator.demo.report import NS_PER_S, BlockTimes, DeviceMemory, RunFacts
from coordinator.ledger.blobs import BlobStore
from coordinator.ledger.places import BLOBS_FOLDER
from coordinator.ledger.replay import verify_directory
from coordinator.ledger.rows import BlockRow
from coordinator.ledger.store import LedgerStore
from coordinator.serving.metrics import MinerPhase
from edge_sdk.errors import CorruptLedgerError
from edge_sdk.protocol.limits import BLOB_BYTES_MAX
from edge_sdk.protocol.messages import ModelParams, Verdict
from edge_sdk.protocol.wire import from_bytes

ENGINE: Final = "local"
KIB_PER_MIB: Final = 1024
MEMORY_PHASE: Final = "memory"


def gather_facts(
    fleet: Fleet, *, curve: Sequence[Point], baseline: Baseline, start_ns: int
) -> tuple[RunFacts, str | None]:
    """Audit the files of a run whose processes have all ended.

    Returns:
        The facts, with a wall time of 0 since the run goes on; and what is wrong with the ledgers, or None.

    Raises:
        CorruptStoreError: a device's file cannot be read.
        CorruptLedgerError: a ledger cannot be read at all.
    """
    root, options = fleet.workspace.root, fleet.options
    problem: str | None = None
    try:
        verify_directory(root)
    except CorruptLedgerError as error:
        problem = str(error)
    hostile = frozenset(device.device_id for device in fleet.devices if device.role is Role.HOSTILE)
    counts = audit(root, fleet.genesis, hostile=hostile)
    miner_phases, device_phases = read_runs(root / "miners"), read_runs(root / "devices")
    rows = list(longest_ledger(sorted((root / "miners").glob(f"*/{LEDGER}"))))
    certified = [row for row in rows if row.certificate is not None]
    last = certified[-1].certificate if certified else None
    facts = RunFacts(
        dataset=options.dataset,
        model=options.model,
        partition=str(options.partition),
        board=options.board,
        broker=fleet.broker_kind.value,
        engine=ENGINE,
        seed=options.seed,
        devices=options.devices,
        miners=options.miners,
        wall_s=0.0,
        start_ns=start_ns,
        curve=[(point.seconds, point.version, point.accuracy) for point in curve],
        measure=measure_of(fleet.material.data),
        codec=str(options.codec),
        parameter_count=sum(math.prod(tensor.shape) for tensor in fleet.material.params.tensors),
        baseline=baseline,
        audit=counts,
        memory=device_memory(device_phases),
        blocks=block_times(rows, miner_phases, start_ns=start_ns),
        device_phases=device_phases,
        miner_phases=miner_phases,
        model_version=0 if last is None else last.statement.version,
        model_root=(fleet.genesis.model_root if last is None else last.statement.model_root).hex(),
        ledger_verified=problem is None,
        personal=[] if options.personal is None else measure_personal(fleet),
    )
    return facts, problem


def newest_model(root: Path) -> tuple[int, ModelParams] | None:
    """Version and parameters of the newest certified model of a run whose processes have ended; None before the first.

    Raises:
        CorruptLedgerError: a ledger cannot be read at all.
    """
    ledgers = sorted((root / "miners").glob(f"*/{LEDGER}"))
    certified = [row.certificate for row in longest_ledger(ledgers) if row.certificate is not None]
    for path in ledgers if certified else ():
        statement = certified[-1].statement
        with closing(LedgerStore.open(path, read_only=True)) as store:
            row = store.model(statement.version)
        blobs = BlobStore(path.parent / BLOBS_FOLDER, read_only=True)
        if row is None or row.model_root != statement.model_root or not blobs.has(row.blob_digest):
            continue
        return statement.version, from_bytes(ModelParams, blobs.get(row.blob_digest), bytes_max=BLOB_BYTES_MAX)
    return None


def longest_ledger(paths: Iterable[Path]) -> Iterator[BlockRow]:
    """Blocks of the miner that is furthest; the ledgers of the others are its beginnings."""
    best: tuple[BlockRow, ...] = ()
    for path in paths:
        with closing(LedgerStore.open(path, read_only=True)) as store:
            rows = tuple(_blocks(store))
        if len([row for row in rows if row.certificate]) >= len([row for row in best if row.certificate]):
            best = rows
    return iter(best)


def _blocks(store: LedgerStore) -> Iterator[BlockRow]:
    first = 1
    while page := store.blocks(first):
        yield from page
        first = page[-1].header.index + 1


def block_times(rows: Iterable[BlockRow], phases: Iterable[RunPhase], *, start_ns: int) -> list[BlockTimes]:
    """Cut and certificate of every block, each at the first miner that recorded it."""
    cuts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for phase in phases:
        if phase.phase == MinerPhase.CERTIFY:
            index = int(phase.ids["block_index"])
            cuts[index] = min(cuts.get(index, phase.start_ns), phase.start_ns)
            ends[index] = min(ends.get(index, phase.end_ns), phase.end_ns)
        elif phase.phase == "cut":
            index = int(phase.ids["block_index"])
            cuts[index] = min(cuts.get(index, phase.start_ns), phase.start_ns)
    times: list[BlockTimes] = []
    for row in rows:
        index = row.header.index
        verdicts = [entry.verdict for entry in row.entries]
        times.append(
            BlockTimes(
                index=index,
                cause=row.header.cause,
                cut_s=_seconds(cuts, index, start_ns) or 0.0,
                certified_s=_seconds(ends, index, start_ns),
                merged=verdicts.count(Verdict.MERGED),
                refused=verdicts.count(Verdict.REFUSED),
            )
        )
    return times


def _seconds(moments: Mapping[int, int], index: int, start_ns: int) -> float | None:
    return None if index not in moments else (moments[index] - start_ns) / NS_PER_S


def device_memory(phases: Iterable[RunPhase]) -> DeviceMemory:
    """Resident memory of the devices as each wrote it down itself, from /proc; the worst device counts."""
    idle: dict[str, float] = {}
    peaks: list[float] = []
    after: dict[str, list[float]] = {}
    for phase in phases:
        if phase.phase != MEMORY_PHASE:
            continue
        rss_mib, peak_mib = phase.ids["rss_kib"] / KIB_PER_MIB, phase.ids["peak_kib"] / KIB_PER_MIB
        peaks.append(peak_mib)
        match phase.ids["moment"]:
            case "connected":
                idle.setdefault(phase.actor, rss_mib)  # later sessions of the process come after training
            case "released":
                after.setdefault(phase.actor, []).append(rss_mib)
    return DeviceMemory(
        idle=max(idle.values(), default=0.0),
        training_peak=max(peaks, default=0.0),
        idle_after=max((median(values) for values in after.values()), default=0.0),
    )
