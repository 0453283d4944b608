"""xpnet: neural networks in the Python array API standard."""

__version__ = "0.1.0"
