"""Twins of `xpnet.core.ops` on NumPy, with or without numba, and their threads."""
