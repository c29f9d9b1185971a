"""Training on the device: artifact, backends, quantization, update codecs. Nothing is imported here."""
