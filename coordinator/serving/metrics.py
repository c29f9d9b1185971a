"""Counters and gauges of one miner, in Prometheus' text format.

The registry is private to the instance: two miners in one process (tests) do not mix, and nothing is measured at
import. Every label takes its values from a fixed enum or from a route table, so a peer cannot create series.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from edge_sdk.protocol.messages import CutCause, Reason, ReceiptStatus

# Phases last from a millisecond (hash of a blob) to tau (minutes).
DURATION_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class UpdateOutcome(StrEnum):
    """What became of one update, seen from this miner."""

    STORED = "stored"  # blob and row are durable here
    DUPLICATE = "duplicate"  # known digest: same receipt again
    REFUSED = "refused"  # at admission
    MERGED = "merged"  # by a certified block
    REJECTED = "rejected"  # by a certified block


class MinerPhase(StrEnum):
    """Parts of a miner's work whose duration is observed."""

    INTAKE = "intake"  # manifest seen to receipt sent
    SCORE = "score"
    MERGE = "merge"
    CERTIFY = "certify"  # cut to certificate
    FINALIZE = "finalize"  # one log height: state transition and durable commit


class Direction(StrEnum):
    """Of chunks on the broker, seen from the miner."""

    UP = "up"
    DOWN = "down"


class MinerMetrics:
    """Metrics of one miner; ``text`` renders them."""

    def __init__(self) -> None:
        registry = CollectorRegistry(auto_describe=True)
        self._registry = registry
        self._updates = Counter("flchain_updates", "Updates by outcome.", ["outcome", "reason"], registry=registry)
        self._receipts = Counter("flchain_receipts", "Receipts sent.", ["status", "reason"], registry=registry)
        self._blocks = Counter("flchain_blocks", "Update blocks cut, by cause.", ["cause"], registry=registry)
        self._evidence = Counter("flchain_evidence", "Evidence against a device or miner.", registry=registry)
        self._chunks = Counter("flchain_chunks", "Chunks on the broker.", ["direction"], registry=registry)
        self._chunk_bytes = Counter("flchain_chunk_bytes", "Bytes in chunks.", ["direction"], registry=registry)
        self._foreign = Counter("flchain_messages_refused", "MQTT messages dropped.", ["reason"], registry=registry)
        self._transactions = Counter("flchain_transactions", "Transactions ordered.", ["reason"], registry=registry)
        self._durations = Histogram(
            "flchain_phase_duration_seconds",
            "Duration of one piece of work.",
            ["phase"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._pending = Gauge("flchain_pending_updates", "Updates waiting for a block.", registry=registry)
        self._assembly = Gauge("flchain_assembly_bytes", "Memory held for unfinished transfers.", registry=registry)
        self._version = Gauge("flchain_model_version", "Newest certified model version.", registry=registry)
        self._height = Gauge("flchain_height", "Latest committed log height.", registry=registry)
        self._enrolments = Counter(
            "flchain_enrolment_requests", "Requests to the registrar by result.", ["result"], registry=registry
        )
        self._members = Gauge("flchain_enrolment_devices", "Devices by status.", ["status"], registry=registry)
        self._alarms = Gauge("flchain_enrolment_alarms", "Alarms that nobody has cleared.", registry=registry)
        self._http = Counter("flchain_http_responses", "HTTP responses.", ["route", "status"], registry=registry)
        self._http_bytes = Counter("flchain_http_blob_bytes", "Blob bytes served over HTTP.", registry=registry)

    def count_update(self, outcome: UpdateOutcome, reason: Reason = Reason.NONE) -> None:
        """Count one update."""
        self._updates.labels(outcome.value, reason.name.lower()).inc()

    def count_receipt(self, status: ReceiptStatus, reason: Reason = Reason.NONE) -> None:
        """Count one signed receipt that was sent."""
        self._receipts.labels(status.name.lower(), reason.name.lower()).inc()

    def count_block(self, cause: CutCause) -> None:
        """Count one cut block."""
        self._blocks.labels(cause.name.lower()).inc()

    def count_evidence(self, count: int = 1) -> None:
        """Count two signed statements that cannot both be honest."""
        self._evidence.inc(count)

    def count_chunk(self, direction: Direction, size_bytes: int) -> None:
        """Count one chunk of ``size_bytes`` of data."""
        self._chunks.labels(direction.value).inc()
        self._chunk_bytes.labels(direction.value).inc(size_bytes)

    def count_refused_message(self, reason: Reason) -> None:
        """Count one MQTT message that was dropped because its sender or form is unknown."""
        self._foreign.labels(reason.name.lower()).inc()

    def count_transaction(self, reason: Reason) -> None:
        """Count one ordered transaction by the application's verdict."""
        self._transactions.labels(reason.name.lower()).inc()

    def observe(self, phase: MinerPhase, duration_s: float) -> None:
        """Record how long one piece of work took."""
        self._durations.labels(phase.value).observe(duration_s)

    def set_state(self, *, height: int, version: int, pending: int) -> None:
        """Show the committed state."""
        self._height.set(height)
        self._version.set(version)
        self._pending.set(pending)

    def set_assembly_bytes(self, size_bytes: int) -> None:
        """Show the memory held for unfinished transfers."""
        self._assembly.set(size_bytes)

    def count_enrolment(self, result: str) -> None:
        """Count one request to the registrar: ``enrolled``, ``renewed`` or a ``Refusal``."""
        self._enrolments.labels(result).inc()

    def set_fleet(self, *, devices: Mapping[str, int], alarms: int) -> None:
        """Show the registrar's devices by status, and its open alarms."""
        for status, count in devices.items():
            self._members.labels(status).set(count)
        self._alarms.set(alarms)

    def count_response(self, route: str, status: int) -> None:
        """Count one HTTP response; ``route`` is the pattern of the route table, never the path that was asked for."""
        self._http.labels(route, str(status)).inc()

    def count_blob_bytes(self, size_bytes: int) -> None:
        """Count blob bytes handed to the HTTP connection."""
        self._http_bytes.inc(size_bytes)

    def value(self, name: str, **labels: str) -> float:
        """Return one sample by its exposed name; 0.0 where nothing was counted."""
        sample = self._registry.get_sample_value(name, labels)
        return 0.0 if sample is None else sample

    def text(self) -> tuple[bytes, str]:
        """Return the exposition and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4
