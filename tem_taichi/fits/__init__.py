"""Inverse problems: what images tell of detector, microscope and specimen."""
