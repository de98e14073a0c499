"""Pictures of a data set's samples, and the page that shows them all in one file."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tem_taichi.export.preview import block_mean, filter_width
from tem_taichi.export.reconstruction import back_project
from tem_taichi.files.io import write_whole
from tem_taichi.files.mrc import read_image_stack, read_volume
from tem_taichi.files.particles import KIND, read_placements
from tem_taichi.scale_bar import scale_bar

_INCHES, _DOTS = 2.2, 90
"""Of a panel."""
_DEEP = 8
"""Planes of a tomogram whose mean is drawn."""
_SMOOTH = 1.5
"""Deviation of the Gaussian that a tomogram's slice is smoothed by [voxel]."""
_MOST = 256
"""Pixels along a panel."""
_COLOURS = colormaps["tab10"].colors  # type: ignore[attr-defined]


def colour(number: int) -> tuple[float, float, float]:
    """Of a kind of particle by its number, from 1 as in the masks."""
    return _COLOURS[(number - 1) % len(_COLOURS)]


def draw_sample(path: Path, name: str, folder: Path, tomogram: Path | None = None) -> None:
    """Draw two tilts and the middle of the tomogram, plain and with its labels.

    Labels are the outlines of shrec's class mask, or, without it, the particles' centres within
    the planes drawn.

    Args:
        path: JPEG to write.
        name: of the sample.
        folder: of its output.
        tomogram: MRC to draw; None = the back-projection of the images.
    """
    images, pixel_size = read_image_stack(folder / f"{name}.mrc", finite=True)
    clean = read_image_stack(folder / f"{name}_noise_free.mrc", finite=True)[0]
    tilts = pd.read_csv(folder / f"{name}_tilts.csv")
    assert pixel_size is not None
    angles = tilts["tilt_angle"].to_numpy()
    chosen = [int(np.abs(angles).argmin()), int(np.abs(angles).argmax())]
    plane, voxel = _plane(images, tilts, pixel_size, tomogram)
    ny, nx = plane.shape
    figure = Figure(figsize=(4 * _INCHES, _INCHES * ny / nx + 0.15), dpi=_DOTS,
                    layout="constrained")
    panels = figure.subplots(1, 4)
    width = filter_width([images[n] for n in chosen], [clean[n] for n in chosen])
    for axes, n in zip(panels[:2], chosen, strict=True):
        _show(axes, gaussian_filter(images[n].astype(float), width, mode="nearest"), pixel_size)
        axes.set_title(f"{angles[n] + 0.0:.0f}°", fontsize=8)
    for axes, title in zip(panels[2:], ("slice", "labels"), strict=True):
        _show(axes, gaussian_filter(plane, _SMOOTH), voxel)
        axes.set_title(title, fontsize=8)
    scale_bar(panels[0], nx * voxel / 10, ny * voxel / 10)
    _draw_labels(panels[3], name, folder, plane.shape, voxel)
    figure.savefig(path, format="jpeg", pil_kwargs={"quality": 85})


def _plane(images: NDArray, tilts: pd.DataFrame, pixel_size: float,
           tomogram: Path | None) -> tuple[NDArray[np.float64], float]:
    """Mean of the middle planes of a tomogram, matter dark, and its voxel."""
    if tomogram is None:
        import torch

        volume = back_project(torch.as_tensor(images), tilts, pixel_size, _DEEP)
        return volume.cpu().numpy().mean(axis=0, dtype=np.float64), pixel_size
    matter, voxel = read_volume(tomogram)
    first = max(len(matter) // 2 - _DEEP // 2, 0)
    return -matter[first:first + _DEEP].mean(axis=0, dtype=np.float64), voxel


def _show(axes: Axes, image: NDArray, pixel_size: float) -> None:
    ny, nx = image.shape
    small = block_mean(image, _MOST)
    low, high = np.percentile(small, (1, 99))
    axes.imshow(small, cmap="gray", vmin=low, vmax=max(high, low + 1e-30), origin="lower",
                extent=(0, nx * pixel_size / 10, 0, ny * pixel_size / 10))
    axes.set(xticks=[], yticks=[])


def _draw_labels(axes: Axes, name: str, folder: Path, shape: tuple[int, ...],
                 voxel: float) -> None:
    """Outlines of the kinds in the tomogram's middle plane, or points."""
    mask = folder / "shrec" / "model_0" / "class_mask.mrc"
    kinds = kinds_of(folder)
    if mask.is_file() and kinds:
        classes, side = read_volume(mask)
        middle = classes[len(classes) // 2]
        y, x = ((np.arange(n) + 0.5) * side / 10 for n in middle.shape)
        for number in range(1, len(kinds) + 1):
            if (middle == number).any():
                axes.contour(x, y, middle == number, [0.5], colors=[colour(number)],
                             linewidths=0.8)
        return
    table = read_placements(folder / f"{name}_particles.star")
    near = table[np.abs(table["z"]) < _DEEP * voxel / 2]
    names = list(dict.fromkeys(table.get(KIND, [])))
    ny, nx = shape
    axes.scatter((near["x"] / voxel + nx // 2 + 0.5) * voxel / 10,
                 (near["y"] / voxel + ny // 2 + 0.5) * voxel / 10, s=8, facecolors="none",
                 edgecolors=[colour(names.index(kind) + 1) for kind in near[KIND]])


def kinds_of(folder: Path) -> list[str]:
    """Names of the kinds by their number in the masks, where shrec's table is there."""
    table = folder / "shrec" / "model_0" / "class_conversion_table.txt"
    if not table.is_file():
        return []
    return [line.split()[0] for line in table.read_text(encoding="utf-8").splitlines() if line]


_STYLE = """body{font:14px sans-serif;margin:2em;max-width:80em;color:#222;background:#fff}
img{max-width:100%;height:auto;display:block}section{margin:1.5em 0;border-top:1px solid #ccc}
h2{font-size:1.1em;margin:.6em 0}dl{display:flex;flex-wrap:wrap;gap:.2em 1.2em;margin:.4em 0}
dt{color:#666}dd{margin:0 0 0 .3em}dl div{display:flex}.kind{padding:0 .5em;color:#fff}"""


def write_gallery(path: Path, title: str, about: Sequence[str], kinds: Sequence[str],
                  samples: pd.DataFrame, pictures: Mapping[str, Path]) -> None:
    """Write a page of all samples that needs no other file: its pictures are in it.

    Args:
        path: HTML file to write; appears whole or not at all.
        title: of the page.
        about: paragraphs on top.
        kinds: names in the order of their numbers, for the colours.
        samples: a row each: name, the folder it links to, and what to tell of it.
        pictures: of samples, by their names.
    """
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}"
             f"</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>"]
    parts += [f"<p>{html.escape(line)}</p>" for line in about]
    parts.append("<p>" + " ".join(
        f'<span class=kind style="background:{to_hex(colour(number))}">{html.escape(kind)}</span>'
        for number, kind in enumerate(kinds, 1)) + "</p>")
    for row in samples.to_dict("records"):
        name = str(row.pop("name"))
        folder = html.escape(str(row.pop("folder")), quote=True)
        told = "".join(f"<div><dt>{html.escape(str(key))}</dt><dd>{html.escape(_plain(value))}"
                       "</dd></div>" for key, value in row.items())
        parts.append(f'<section id="{html.escape(name, quote=True)}"><h2><a href="{folder}/">'
                     f"{html.escape(name)}</a></h2><dl>{told}</dl>")
        if (picture := pictures.get(name)) is not None and picture.is_file():
            data = base64.b64encode(picture.read_bytes()).decode()
            parts.append(f'<img loading=lazy alt="{html.escape(name, quote=True)}" '
                         f'src="data:image/jpeg;base64,{data}">')
        parts.append("</section>")
    write_whole(path, "\n".join(parts) + "</html>\n")


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else str(value)
