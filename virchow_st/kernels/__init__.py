"""numba kernels, each beside a plain reference: `reference` and `sparse_reference`."""
