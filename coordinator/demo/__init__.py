"""``flchain demo``: a whole fleet on one machine, and the audit of what it did."""
