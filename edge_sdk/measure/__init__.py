"""Measures the board that it runs on: power by state, step time, memory, link. What has no meter is left out."""
