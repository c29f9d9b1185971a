"""How a board becomes a member: certificate authority, single-use claims, and the registrar that signs the registry."""
