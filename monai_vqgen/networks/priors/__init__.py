"""Priors: autoregressive distributions over grids of codes."""
