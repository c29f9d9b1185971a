"""Ordering of transactions: the socket protocol towards an engine, and the engine for one machine."""
