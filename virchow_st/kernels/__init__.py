"""Compiled numerical kernels (numba), each with a plain NumPy reference of the same name.

The multi-scale Poisson loss has a second kernel in Triton, for GPUs. `kernels.table` pairs every
kernel with its reference; the tests and the benchmark both run from that table.
"""
