"""Recipes of `python -m tem_taichi.fit`."""
