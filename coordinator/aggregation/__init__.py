"""Aggregation: integer weights of a method, and the exact merge that every miner computes alike."""
