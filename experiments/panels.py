"""What the experiments' figures share: letters, axes in nanometres, true colour at 200 dpi."""

import io
import string
from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo

DPI = 200
WIDTH = 7.0  # [inch], a page's


def letter(panels: Iterable[Axes]) -> None:
    """Write a, b, c ... at the upper left of each panel."""
    for axes, name in zip(panels, string.ascii_lowercase, strict=False):
        axes.annotate(name, (0, 1), (-8, 4), xycoords="axes fraction", weight="bold", fontsize=9,
                      textcoords="offset points", ha="right", va="bottom")


def in_nanometres(axes: Axes, half: float) -> None:
    """Label both axes of an image of +-half [nm], so that few ticks are enough."""
    step = max(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if s <= half)
    axes.set(xlabel="x [nm]", ylabel="y [nm]", xticks=[-step, 0, step], yticks=[-step, 0, step])
    small(axes)


def small(axes: Axes) -> None:
    """Letters that fit a page's width."""
    axes.xaxis.label.set_size(8)
    axes.yaxis.label.set_size(8)
    axes.tick_params(which="both", labelsize=7)


def save(figure: Figure, file: Path, **said: str) -> None:
    """Write a PNG in true colour or grey, the same bytes from the same figure, with texts in it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    texts = PngInfo()
    for name, text in said.items():
        texts.add_text(name, text)
    picture = Image.open(drawn).convert("RGB")
    grey = picture.convert("L")
    if ImageChops.difference(picture, grey.convert("RGB")).getbbox() is None:
        picture = grey  # half of the bytes
    picture.save(file, "png", optimize=True, pnginfo=texts)
    print(f"wrote {file}")


def main() -> None:
    """Nothing to run: see the modules that draw."""
