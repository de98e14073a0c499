"""The experiments: all can be imported, and the README's figure can be made."""

import importlib
from pathlib import Path

import matplotlib.image
import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.mark.parametrize("name", sorted(file.stem for file in EXPERIMENTS.glob("*.py")))
def test_imports(name):
    assert callable(importlib.import_module(f"experiments.{name}").main)


def test_overview(tmp_path, monkeypatch):
    module = importlib.import_module("experiments.overview")
    monkeypatch.setattr("sys.argv", ["overview", str(tmp_path / "overview.png")])
    module.main()
    made = matplotlib.image.imread(tmp_path / "overview.png")
    shipped = matplotlib.image.imread(EXPERIMENTS / "figures" / "overview.png")
    assert made.shape == shipped.shape  # fonts and noise of another machine may differ
