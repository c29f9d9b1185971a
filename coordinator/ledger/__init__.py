"""The ledger: registry and block rules, the store of a miner, its blobs, and the replay that verifies both."""
