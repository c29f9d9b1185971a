"""Publishing releases of the client: a TUF repository of plain files, its keys, and the wheels of each release."""
