"""Anatomical phantoms, made on the spot."""
