"""Boxes around the true particles of every image: a stack and star file for single particles.

Conventions are RELION's (Euler_angles2matrix, preprocessing.cpp, ctf.cpp): A takes the reference
to the image, so that the image's Fourier transform at (kx, ky) is the reference's at
A^T (kx, ky, 0); rlnCoordinateX, Y is the pixel at box // 2 of a box, counted from 0; a particle
lies at coordinate - rlnOrigin / pixel size; defoci are those of the particle's own height.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi.files.mrc import write_planes
from tem_taichi.files.particles import ANGLES, KIND, POSITION, star_table
from tem_taichi.rotations import euler_to_matrix, matrix_to_euler, tilt_rotation
from tem_taichi.series.record import TiltSeries

Array = NDArray[np.float64]

_BATCH = 1 << 22
"""Pixels of boxes at once: bounds the memory."""
_BACKGROUND = 0.375
"""Radius of the circle around a particle in boxes, beyond which is background; as RELION's."""


def particle_views(series: TiltSeries) -> pd.DataFrame:
    """How each particle appears in each image, whether it is within the field or not.

    Args:
        series: of which particles, alignment and defoci are known.

    Returns:
        One row a particle and image, image by image: image and copy (rows of `series.tilts` and
        `series.particles`), kind, column and row [pixel] from the image's first pixel, height
        along the beam from the specimen's centre [A], rot, tilt, psi [deg] from the particle to
        the image, and defocus_u, defocus_v [A] at its height.
    """
    particles, *_ = series.known("particles", "particles", "shift_x", "defocus_u")
    tilts = series.tilts
    n, m = len(tilts), len(particles)
    turns = np.stack([tilt_rotation(t.tilt_angle, t.axis_angle).cpu().numpy().astype(np.float64)
                      for t in tilts.itertuples()])
    points = particles[list(POSITION)].to_numpy(np.float64)
    poses = euler_to_matrix(*particles[list(ANGLES)].to_numpy(np.float64).T)
    places = np.einsum("nij,mj->nmi", turns, points)
    shifts = tilts[["shift_x", "shift_y"]].to_numpy(np.float64)
    flat = (places[..., :2] + shifts[:, None]) @ series.projector.T
    angles = matrix_to_euler(np.einsum("nij,mjk->nmik", turns, poses).reshape(-1, 3, 3))
    height = places[..., 2].ravel()
    deeper = np.zeros_like(height) if series.one_defocus else height
    image, copy = np.repeat(np.arange(n), m), np.tile(np.arange(m), n)
    ny, nx = series.shape
    return pd.DataFrame({
        "image": image, "copy": copy, KIND: particles[KIND].to_numpy()[copy],
        "column": nx // 2 + flat[..., 0].ravel() / series.pixel_size,
        "row": ny // 2 + flat[..., 1].ravel() / series.pixel_size,
        "height": height,
        **dict(zip(ANGLES, angles, strict=True)),
        "defocus_u": tilts["defocus_u"].to_numpy(np.float64)[image] + deeper,
        "defocus_v": tilts["defocus_v"].to_numpy(np.float64)[image] + deeper,
    })


def whole_boxes(views: pd.DataFrame, shape: tuple[int, int], box: int) -> pd.DataFrame:
    """Those views whose box lies within the image.

    Args:
        views: of `particle_views`.
        shape: of the images (ny, nx).
        box: side [pixel].

    Returns:
        Some rows of `views`, with the columns centre_x and centre_y: the pixel nearest to the
        particle, which is at box // 2 of the box.
    """
    ny, nx = shape
    x, y = (np.rint(views[name].to_numpy()).astype(np.int64) for name in ("column", "row"))
    left, low = x - box // 2, y - box // 2
    inside = (left >= 0) & (low >= 0) & (left + box <= nx) & (low + box <= ny)
    return views.assign(centre_x=x, centre_y=y)[inside].reset_index(drop=True)


def cut(images: NDArray, views: pd.DataFrame, box: int) -> NDArray:
    """Boxes (m, box, box) of images (n, ny, nx) for views of `whole_boxes`."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (box, box), axis=(1, 2))
    first = views[["centre_x", "centre_y"]].to_numpy() - box // 2
    return windows[views["image"].to_numpy(), first[:, 1], first[:, 0]]


def normalised(boxes: NDArray) -> NDArray[np.float32]:
    """Boxes whose background has mean 0, no slope and standard deviation 1.

    Background is what lies outside a circle of 3/4 of the box, as in RELION (normalise,
    subtractBackgroundRamp): a plane fitted to it is subtracted from the whole box. Where there
    is no contrast the deviation stays 0.

    Args:
        boxes: (m, n, n).
    """
    n = boxes.shape[-1]
    y, x = np.mgrid[:n, :n] - n // 2
    outside = np.hypot(x, y).ravel() > _BACKGROUND * n
    plane = np.stack([np.ones(n * n), x.ravel(), y.ravel()], axis=1)
    flat = boxes.reshape(-1, n * n).astype(np.float64)
    flat -= flat[:, outside] @ np.linalg.pinv(plane[outside]).T @ plane.T
    deviation = flat[:, outside].std(axis=1, keepdims=True)
    # Less than rounding leaves of single precision is no contrast.
    least = 1e-6 * np.abs(boxes).max(axis=(1, 2))[:, None]
    flat /= np.where(deviation > least, deviation, 1.0)
    return flat.reshape(boxes.shape).astype(np.float32)


def write_stack(folder: Path, series: TiltSeries, box: int | None, kind: str | None = None,
                invert: bool = True, normalise: bool = True) -> None:
    """Write `<name>_stack.mrcs` and `<name>_stack.star`.

    Boxes that reach beyond the image are left out; without any box there is only the star file.

    Args:
        folder: an existing folder, to which names of files are relative.
        series: of which particles, alignment and defoci are known.
        box: side of a box [pixel]; None = nothing is written.
        kind: name of the particles in it; None = all.
        invert: whether protein is white, as RELION expects it.
        normalise: whether as in `normalised`.

    Raises:
        ValueError: as `write_mrc`, or if what is needed is not known.
    """
    if box is None:
        return
    views = particle_views(series)
    if kind is not None:
        views = views[views[KIND] == kind]
    views = whole_boxes(views, series.shape, box)
    images = series.images.numpy()

    def boxes() -> Iterator[NDArray[np.float32]]:
        at_once = max(1, _BATCH // box**2)
        for first in range(0, len(views), at_once):
            some = cut(images, views.iloc[first:first + at_once], box)
            some = normalised(some) if normalise else some.astype(np.float32)
            yield from -some if invert else some

    file = f"{series.name}_stack.mrcs"
    if len(views):
        write_planes(folder / file, boxes(), series.pixel_size)
    text = star_table("optics", _optics(series, box)) + "\n" + star_table(
        "particles", _particles(series, views, file))
    (folder / f"{series.name}_stack.star").write_text("# version 50001\n\n" + text,
                                                      encoding="utf-8")


def _optics(series: TiltSeries, box: int) -> pd.DataFrame:
    voltage, aberration, contrast = map(float, series.known(
        "the stack", "voltage", "spherical_aberration", "amplitude_contrast"))
    return pd.DataFrame({
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnVoltage": voltage,
        "rlnSphericalAberration": aberration,
        "rlnAmplitudeContrast": contrast,
        "rlnMicrographPixelSize": float(series.pixel_size),
        "rlnImagePixelSize": float(series.pixel_size),
        "rlnImageSize": box,
        "rlnImageDimensionality": 2,
    })


def _particles(series: TiltSeries, views: pd.DataFrame, file: str) -> pd.DataFrame:
    image = views["image"].to_numpy()
    tilts = series.tilts.iloc[image].reset_index(drop=True)
    rest = {axis: series.pixel_size * (views[f"centre_{axis}"] - views[place])
            for axis, place in (("x", "column"), ("y", "row"))}
    return pd.DataFrame({
        "rlnImageName": [f"{n + 1:06d}@{file}" for n in range(len(views))],
        "rlnMicrographName": [f"{series.name}.mrc" if len(series.tilts) == 1 else
                              f"{n + 1:06d}@{series.name}.mrc" for n in image],
        "rlnCoordinateX": views["centre_x"].astype(float),
        "rlnCoordinateY": views["centre_y"].astype(float),
        "rlnAngleRot": views["rot"], "rlnAngleTilt": views["tilt"], "rlnAnglePsi": views["psi"],
        "rlnOriginXAngst": rest["x"], "rlnOriginYAngst": rest["y"],
        "rlnDefocusU": views["defocus_u"], "rlnDefocusV": views["defocus_v"],
        "rlnDefocusAngle": tilts["astigmatism_angle"],
        "rlnPhaseShift": tilts["phase_shift"],
        "rlnMicrographPreExposure": tilts["prior_dose"],
        "rlnOpticsGroup": 1,
        # Which row of the particles' table it is, from 1.
        "temCopy": views["copy"] + 1,
        "temParticle": views[KIND],
    })
