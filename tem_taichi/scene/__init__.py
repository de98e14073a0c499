"""What YAML may say, and how it is read."""
