"""numba kernels, each beside a plain reference, and the Poisson loss once more in Triton."""
