"""Volumes, slices and captures on disk: read to the last byte, written whole."""
