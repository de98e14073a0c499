"""A tilt series as other programs want it."""
