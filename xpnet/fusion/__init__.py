"""One elementwise formula in, code for each machine out.

`trace` runs a formula once on symbols and returns a `Graph`. From it `calls` plans a list of NumPy or PyTorch
calls with `out=`, `loops` writes one loop for numba, and `cuda` writes one kernel.
"""
