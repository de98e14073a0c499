"""What forms an image of a specimen."""
