"""Twins of `xpnet.core.ops` on CuPy: CUDA kernels, cuBLAS, captured steps."""
