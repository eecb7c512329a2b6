"""Triton kernels, one operation a file: reference, kernel, wrapper. `dispatch` chooses between kernel and reference."""
