"""The shipped configurations: Hydra's groups, and the recipes' settings."""
