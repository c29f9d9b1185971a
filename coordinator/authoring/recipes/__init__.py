"""Networks that ship, by what they are for: each recipe appends layers to a stack."""
