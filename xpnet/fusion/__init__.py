"""Generate code for each machine from one elementwise formula.

`trace` runs a formula once on symbols and returns a `Graph`. From the graph `calls` plans a list of NumPy or
PyTorch calls with `out=`, `loops` writes a loop for numba, and `cuda` writes a CUDA kernel.
"""
