"""Models of other programs, for comparison."""
