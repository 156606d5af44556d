"""Quantizers: latent vectors to codes and back, behind one small protocol."""
