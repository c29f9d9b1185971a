"""Look into a vendor image, and add what a board needs to enrol by itself."""
