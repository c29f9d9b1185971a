"""Data sets that a demo or a study can deal out to devices: read, check, split, partition."""
