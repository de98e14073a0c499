"""A tilt series, from the scene to its images."""
