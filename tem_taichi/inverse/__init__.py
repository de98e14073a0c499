"""From images back to numbers."""
