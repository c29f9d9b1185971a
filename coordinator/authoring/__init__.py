"""From a forward network to a trainable artifact. Runs off the device; needs the ``authoring`` extra."""
