"""Taichi kernels; the only code that runs compiled."""
