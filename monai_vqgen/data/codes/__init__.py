"""Codes on disk, with the fingerprint of the weights that made them."""
