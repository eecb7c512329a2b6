"""Kernels for CPUs: Python that Numba compiles (the extra `cpu`), float32, the same operations as the Triton kernels."""
