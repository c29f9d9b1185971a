"""What a miner shows to the outside: models, blobs, blocks, outcomes, health and metrics over HTTP."""
