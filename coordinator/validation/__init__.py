"""Validation of updates: folds and scores of one miner, and the verdict of all."""
