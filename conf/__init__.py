"""The shipped configurations: Hydra's groups."""
