"""How the numbers of an update are written: one module per way, and one reader for all of them."""
