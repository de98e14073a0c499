"""Renderings as pictures: coloured, with a scale bar and axes, and as a GIF that turns."""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tem_taichi.estimate.rendering import Transfer, View, field_of, rendered
from tem_taichi.scale_bar import scale_bar_length

_MOST = 1e8
"""Voxels of a turned volume: some 1.5 GB are then taken."""
_MILLISECONDS = 80
"""Of a frame."""
_AXES = {"x": (235, 90, 80), "y": (100, 190, 90), "z": (90, 140, 235)}


@dataclass(frozen=True)
class Style:
    """Of a picture."""

    colours: tuple[str, str] = ("peru", "lemonchiffon")
    """Of matter at the first and at the second level, as matplotlib names them."""
    background: str = "black"
    size: int = 400
    """Of the longer side [pixel]."""


def picture(volume: Tensor, voxel: float, transfer: Transfer, view: View, style: Style
            ) -> Image.Image:
    """A volume rendered, with a scale bar in nm and the directions of its axes.

    Args:
        volume: (nz, ny, nx).
        voxel: [A].
        transfer: from values to what is seen.
        view: from where.
        style: colours and size.
    """
    first, second, behind = (torch.tensor(to_rgb(name), dtype=volume.dtype, device=volume.device)
                             for name in (*style.colours, style.background))
    light = rendered(volume, voxel, transfer, view).coloured(first, second, behind)
    values = (255 * light.clamp(0, 1)).round().flip(0).byte().cpu().numpy()
    image = Image.fromarray(values)
    scale = style.size / max(image.size)
    image = image.resize((round(scale * image.width), round(scale * image.height)),
                         Image.Resampling.BICUBIC)
    _scale_bar(image, voxel / scale, style)
    _directions(image, view)
    return image


def fitting(volume: Tensor, voxel: float, size: int, elevation: float = 0.0
            ) -> tuple[Tensor, float]:
    """A volume and its voxel [A], averaged over as many voxels as a pixel of a picture holds.

    Args:
        volume: (nz, ny, nx).
        voxel: [A].
        size: of the picture's longer side [pixel].
        elevation: of `View`.
    """
    rows, columns = field_of(_shape(volume), elevation)
    count = max(math.ceil(max(rows, columns) / size),
                math.ceil((rows * columns * max(rows, columns) / _MOST) ** (1 / 3)))
    # Of a thin volume, whose planes are few, only as many as it has.
    count = min(count, *volume.shape)
    if count < 2:
        return volume, voxel
    return torch.nn.functional.avg_pool3d(volume[None, None], count)[0, 0], voxel * count


def _shape(volume: Tensor) -> tuple[int, int, int]:
    nz, ny, nx = volume.shape
    return nz, ny, nx


def turns(view: View, frames: int) -> list[View]:
    """Views all around, evenly: after the last one comes the first."""
    return [replace(view, turn=view.turn + 360 * n / frames) for n in range(frames)]


def gif(pictures: Iterable[Image.Image]) -> bytes:
    """A GIF that goes round for ever, all pictures in the same 256 colours."""
    frames = list(pictures)
    some = frames[::max(1, len(frames) // 8)]
    width, height = frames[0].size
    # All around, and the axes' colours, which are too rare to be chosen.
    sheet = Image.new("RGB", (width, height * (len(some) + 1)))
    for number, frame in enumerate(some):
        sheet.paste(frame, (0, number * height))
    for number, colour in enumerate(_AXES.values()):
        sheet.paste(colour, (number * width // 3, len(some) * height, (number + 1) * width // 3,
                             (len(some) + 1) * height))
    palette = sheet.quantize(256, method=Image.Quantize.MEDIANCUT)
    drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    drawn[0].save(file, "gif", save_all=True, append_images=drawn[1:], loop=0,
                  duration=_MILLISECONDS)
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    file = io.BytesIO()
    image.save(file, "png", optimize=True)
    return file.getvalue()


def _scale_bar(image: Image.Image, pixel: float, style: Style) -> None:
    """At the lower left; rays being parallel, it is true at all depths."""
    length = scale_bar_length(image.width * pixel / 10)
    width, margin = length * 10 / pixel, max(image.size) // 30
    colour = "black" if np.mean(to_rgb(style.background)) > 0.5 else "white"
    draw = ImageDraw.Draw(image)
    y = image.height - margin
    draw.rectangle((margin, y - max(1, margin // 4), margin + width, y), fill=colour)
    draw.text((margin, y - margin // 2), f"{length:g} nm", fill=colour, anchor="ls",
              font=ImageFont.load_default(margin))


def _directions(image: Image.Image, view: View) -> None:
    """Axes of the volume at the lower right."""
    length = max(image.size) / 16
    middle = np.array([image.width - 1.5 * length, image.height - 1.5 * length])
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(length / 2)
    matrix = view.matrix().numpy()
    for column in np.argsort(matrix[2]):  # what points towards the viewer last
        name, colour = [*_AXES.items()][column]
        end = middle + length * np.array([1, -1]) * matrix[:2, column]
        draw.line((*middle, *end), fill=colour, width=max(1, round(length / 14)))
        text = middle + 1.3 * (end - middle)
        if np.hypot(*(end - middle)) > 0.2 * length:
            draw.text(tuple(text), name, fill=colour, anchor="mm", font=font)
