"""Upgrades of the client's software over the air: checked metadata, two environments side by side, trial, commit."""
