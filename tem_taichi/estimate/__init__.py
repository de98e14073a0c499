"""Estimates of instrument and specimen from real images, each by a solver of its own."""
