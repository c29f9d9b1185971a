"""Developer scripts; run them from the repository root as ``python -m tools.<name>``."""
