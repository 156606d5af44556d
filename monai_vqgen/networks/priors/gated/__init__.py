"""The gated PixelCNN and its incremental pass."""
