"""What a camera records."""
