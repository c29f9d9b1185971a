"""Bytes <-> values: the contract that devices and miners share. No I/O, no clock, no randomness."""
