from coordinator.serving.metrics import Direction, MinerMetrics, MinerPhase, UpdateOutcome
from edge_sdk.protocol.messages import CutCause, Reason, ReceiptStatus


def test_counts_by_fixed_labels() -> None:
    metrics = MinerMetrics()
    metrics.count_update(UpdateOutcome.REFUSED, Reason.STALE)
    metrics.count_update(UpdateOutcome.REFUSED, Reason.STALE)
    metrics.count_update(UpdateOutcome.MERGED)
    metrics.count_receipt(ReceiptStatus.STORED)
    metrics.count_block(CutCause.SIZE)
    metrics.count_chunk(Direction.UP, 1000)
    metrics.count_evidence()
    metrics.count_refused_message(Reason.MALFORMED)
    metrics.count_transaction(Reason.NONE)
    metrics.set_state(height=7, version=3, pending=2)
    metrics.set_assembly_bytes(5)
    assert metrics.value("flchain_updates_total", outcome="refused", reason="stale") == 2
    assert metrics.value("flchain_updates_total", outcome="merged", reason="none") == 1
    assert metrics.value("flchain_receipts_total", status="stored", reason="none") == 1
    assert metrics.value("flchain_blocks_total", cause="size") == 1
    assert metrics.value("flchain_blocks_total", cause="tau") == 0
    assert metrics.value("flchain_chunk_bytes_total", direction="up") == 1000
    assert metrics.value("flchain_evidence_total") == 1
    assert metrics.value("flchain_messages_refused_total", reason="malformed") == 1
    assert metrics.value("flchain_transactions_total", reason="none") == 1
    assert metrics.value("flchain_pending_updates") == 2
    assert metrics.value("flchain_height") == 7
    assert metrics.value("flchain_model_version") == 3
    assert metrics.value("flchain_assembly_bytes") == 5


def test_durations_fall_into_buckets() -> None:
    metrics = MinerMetrics()
    metrics.observe(MinerPhase.SCORE, 0.3)
    metrics.observe(MinerPhase.SCORE, 500.0)
    assert metrics.value("flchain_phase_duration_seconds_bucket", phase="score", le="0.5") == 1
    assert metrics.value("flchain_phase_duration_seconds_bucket", phase="score", le="+Inf") == 2


def test_two_miners_of_one_process_do_not_mix() -> None:
    one, other = MinerMetrics(), MinerMetrics()
    one.count_evidence()
    assert other.value("flchain_evidence_total") == 0
    text, content_type = one.text()
    assert b"flchain_evidence_total 1.0" in text
    assert content_type.startswith("text/plain; version=0.0.4")
