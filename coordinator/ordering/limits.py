"""Bounds of the ordering package; those of the ledger itself are in ``edge_sdk.protocol.limits``."""

from __future__ import annotations

from typing import Final

from edge_sdk.protocol.limits import HEIGHT_BYTES_MAX, HEIGHT_TXS_MAX, TX_BYTES_MAX

ABCI_FRAME_BYTES_MAX: Final = HEIGHT_BYTES_MAX + 8 * HEIGHT_TXS_MAX + 65_536
"""A proposal of the largest height: its transactions, a tag and a length for each, and the header."""
ABCI_CONNECTIONS_MAX: Final = 16
"""An engine opens four; the rest is for the time after a restart in which the old ones are not closed yet."""
ABCI_CALLS_MAX: Final = 256
"""Calls of one connection that wait for their answer."""
TX_LOG_CHARS_MAX: Final = 256
"""Of the text that explains a refusal."""
APP_HASH_BYTES_MAX: Final = 64

MEMPOOL_TXS_MAX: Final = 8_192
MEMPOOL_BYTES_MAX: Final = 32 * 1024 * 1024
MEMPOOL_KNOWN_MAX: Final = 65_536
"""Digests remembered, so that a transaction is not ordered twice."""
DECIDED_HEIGHTS_KEPT: Final = 256
"""Decided heights kept in memory for miners that lag a little; older ones are read from the log."""
DECIDED_BYTES_KEPT: Final = 32 * 1024 * 1024

GENESIS_BYTES_MAX: Final = 1024 * 1024

RPC_BODY_BYTES_MAX: Final = TX_BYTES_MAX * 4 // 3 + 4_096
"""A transaction in base64 and its JSON around it."""
RPC_BODY_TIMEOUT_S: Final = 10.0
RPC_REQUESTS_MAX: Final = 256
"""Requests served at a time; further ones get HTTP 503."""
RPC_RESPONSE_BYTES_MAX: Final = 1024 * 1024
