"""Edge-server side of edge-flchain: miners that order, score, merge, certify and serve models."""
