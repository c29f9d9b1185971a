"""Device side of edge-flchain: train quantized models locally, publish signed updates, verify models before install."""

__version__ = "0.1.0"
