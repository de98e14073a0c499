"""What scatters electrons."""
