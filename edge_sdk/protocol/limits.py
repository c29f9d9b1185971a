"""Every bound on what a peer may send, by name.

Check membership and size first, allocate after, count what is refused.
"""

from __future__ import annotations

from typing import Final

NAME_CHARS_MAX: Final = 48
DIGEST_BYTES: Final = 32

# --- CBOR ---
CBOR_DEPTH_MAX: Final = 8
CBOR_ITEMS_MAX: Final = 65_536
CBOR_KEY_MAX: Final = 255
TEXT_BYTES_MAX: Final = 1_024

# --- signed messages ---
ENVELOPE_BYTES_MAX: Final = 65_536
"""A COSE_Sign1 with its payload; the largest is a reveal of a full block."""
UPDATE_ENVELOPE_BYTES_MAX: Final = 1_024
SIGNATURE_BYTES: Final = 64
"""Ed25519, and P-256 as r || s."""
PUBLIC_KEY_BYTES_MAX: Final = 65
URLS_MAX: Final = 16

# --- transfer ---
CHUNK_DATA_BYTES_MAX: Final = 65_536
CHUNK_MESSAGE_BYTES_MAX: Final = CHUNK_DATA_BYTES_MAX + 256
BLOB_BYTES_MAX: Final = 16 * 1024 * 1024
"""Largest update or model blob; four times the largest payload the brokers were measured with."""
ARTIFACT_BYTES_MAX: Final = 4 * 1024 * 1024
"""A training artifact, signature included; it holds no parameters, and a LeNet needs 10 kB."""
RESUME_RANGES_MAX: Final = 64
ASSEMBLY_FRAGMENTS_MAX: Final = 256
"""Separate byte ranges that a transfer may hold at a time: chunks in random order, not bytes."""
ASSEMBLIES_PER_DEVICE_MAX: Final = 2
ASSEMBLY_BYTES_TOTAL_MAX: Final = 256 * 1024 * 1024
ASSEMBLY_AGE_S_MAX: Final = 120
DIGEST_RETRIES_MAX: Final = 2
RESUME_INTERVAL_S: Final = 2.0

# --- ledger ---
MINERS_MAX: Final = 64
DEVICES_MAX: Final = 100_000
SHARDS_MAX: Final = 1_024
SEQ_WINDOW: Final = 64
SEQ_MAX: Final = 2**53 - 1
TX_BYTES_MAX: Final = ENVELOPE_BYTES_MAX
HEIGHT_BYTES_MAX: Final = 4 * 1024 * 1024
"""All transactions of one log height."""
HEIGHT_TXS_MAX: Final = 4_096
BLOCK_UPDATES_MAX: Final = 256
PENDING_UPDATES_MAX: Final = 4_096
PENDING_PER_DEVICE_MAX: Final = 4
STALENESS_MAX: Final = 1_024
EVIDENCE_MAX: Final = 1_024
CLASS_SCORES_MAX: Final = 64
SALT_BYTES_MIN: Final = 16
SALT_BYTES_MAX: Final = 32
POWER_MAX: Final = 1_000_000
PROOF_NODES_MAX: Final = 64

# --- numbers ---
EXPONENT_MIN: Final = -60
EXPONENT_MAX: Final = 30
EXPONENT_SPAN_MAX: Final = 24
"""Largest left shift that aligns an update with the model: bounds |a| before any sum."""
ACCUMULATOR_BITS: Final = 61
"""max|a| + W stays below 2**61, so that 2a + W fits an int64."""
MODEL_VALUE_MAX: Final = 2**30
"""|q| of a parameter; a quarter of int32 is kept free, so a convex merge of checked updates cannot saturate."""
WEIGHT_SHIFT: Final = 16
"""An undiscounted update weighs 2**16."""
SPSA_SEED_BYTES: Final = 8
SPSA_CODES_MAX: Final = 32
"""Directions of one update. With them a payload has 58 bytes at most, however large the model is."""
SCORE_MAX: Final = 1_000
SCORE_UNAVAILABLE: Final = -1
SCORE_OUT_OF_BOUNDS: Final = -2

# --- model ---
TENSORS_MAX: Final = 512
TENSOR_RANK_MAX: Final = 6
TENSOR_NAME_BYTES_MAX: Final = 128
PARAMETERS_MAX: Final = 4 * 1024 * 1024
CLASSES_MAX: Final = 1_024

# --- device ---
OUTBOX_BYTES_MAX: Final = 64 * 1024 * 1024
OUTBOX_AGE_S_MAX: Final = 7 * 24 * 3600
MODEL_DOWNLOAD_S_MAX: Final = 600
