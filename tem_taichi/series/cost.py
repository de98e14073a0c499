"""What a simulation will take at least, said before it begins, from counts alone."""

import math
import os
from collections.abc import Callable

import numpy as np
import torch

from tem_taichi.device import current
from tem_taichi.instrument.groups import group_size
from tem_taichi.instrument.projection import Projection
from tem_taichi.instrument.tem import TEM
from tem_taichi.machine import duration, memory_limit, size
from tem_taichi.rotations import tilt_rotation
from tem_taichi.scene.settings import Scene
from tem_taichi.series.build import ice_of
from tem_taichi.series.movie import intensities
from tem_taichi.series.record import tomogram_height
from tem_taichi.specimen.choice import cost_of_copies
from tem_taichi.specimen.ice_shape import depth_range
from tem_taichi.specimen.particles import ParticlesInIce
from tem_taichi.specimen.slicing import BATCH
from tem_taichi.specimen.view import View

DAY = 86400.0
"""Of computing [s], beyond which a scene must say force: true."""

_BASE = 0.55e9
"""Memory of the program itself [bytes]."""
_PER_PIXEL, _PER_SLICE = 45.0, 19.0
"""Memory for each pixel of the wave in single precision, alone and for each slice in work [bytes],
measured with ferritins in granular ice on waves of 2520^2 pixels, 2 and 6 slices (101 and 162 in
all), and of 6804^2, 2 slices (74)."""
_PER_SCATTERER, _PER_ATOM, _PER_COPY = 250.0, 60.0, 500.0
"""Memory of a scatterer that is placed, of one of a kind, and of a copy of the kind [bytes]."""
_PER_IMAGE_PIXEL, _BESIDE = 100.0, 20.0
"""Memory for each pixel of an image, of which one is in work: its sums, halves and preview, the
others are in files; and for each pixel of the wave that is left by then [bytes], in single
precision. The slices are gone when it is made: only the larger of the two counts."""
_PER_VOXEL, _SLAB, _PER_VOXEL_OF_SLAB = 40.0, 1 << 24, 50.0
"""Memory of a voxel of the volumes of shrec and copick [bytes], how many of them are in work for
their masks, and what these take besides."""

_LEAST = 4e-8
"""Seconds for a pixel of a slice on one core: less than any scene takes."""
_ON_GPU = 200.0
"""How many cores a GPU stands for."""


def slices_of(scene: Scene, instrument: TEM, tilt_angle: float) -> int:
    """Slices of an image at a tilt [deg], from the ice alone, or 1 where only particles count."""
    if isinstance(instrument, Projection):
        return 1
    ice = ice_of(scene)
    if not ice.structured:
        return 1
    ny, nx = (n * instrument.wave_pixel for n in instrument.wave_shape)
    low, high = depth_range(ice.layer, tilt_rotation(tilt_angle, scene.tilts.axis_angle), nx, ny)
    return math.ceil((high - low) / instrument.slice_thickness) + 1


def foreseen_memory(
    scene: Scene, instrument: TEM, angles: np.ndarray,
    specimen: ParticlesInIce | None = None,
) -> tuple[float, float]:
    """Memory that a run takes, within about a third [bytes].

    Args:
        scene: what is asked for.
        instrument: its grids.
        angles: tilt of each image [deg].
        specimen: if it is built.

    Returns:
        That of the waves and the specimen, which is a GPU's where one is in use, and what images
        and volumes take on the machine, beside that unless on a GPU.
    """
    number = 8 if scene.compute.dtype == "float64" else 4
    pixels = math.prod(instrument.wave_shape)
    at_once = 1 if isinstance(instrument, Projection) else group_size(
        slices_of(scene, instrument, angles[np.abs(angles).argmax()]), pixels)
    waves = pixels * (_PER_PIXEL + _PER_SLICE * at_once) * number / 4
    images = math.prod(scene.shape) * _PER_IMAGE_PIXEL * number / 4
    if current().torch_device.type != "cuda":
        images = max(images + pixels * _BESIDE * number / 4 - waves, 0.0)
    if specimen is not None:
        waves += number / 4 * (
            min(BATCH, specimen.n_scatterers) * _PER_SCATTERER
            + sum(len(kind.positions) * _PER_ATOM for kind in specimen.kinds)
            + copies_cost(instrument, specimen)[1])
        images += sum(len(pose.positions) for pose in specimen.poses) * _PER_COPY
    voxels = voxels_of(scene)
    return waves, images + voxels * _PER_VOXEL + min(voxels, _SLAB) * _PER_VOXEL_OF_SLAB


def copies_cost(instrument: TEM, specimen: ParticlesInIce) -> tuple[float, float]:
    """Least seconds of a core for the copies of one image, and bytes of their volumes."""
    view = View(torch.eye(3), torch.zeros(2), instrument.wave_shape, instrument.wave_pixel,
                instrument.slice_thickness, voltage=instrument.voltage,
                n_slices=1 if isinstance(instrument, Projection) else 2)
    return cost_of_copies(specimen.kinds, specimen.poses, view)


def voxels_of(scene: Scene) -> float:
    """Voxels of the volumes that a scene's formats hold."""
    if not {"shrec", "copick"} & set(scene.formats):
        return 0.0
    return float(tomogram_height(scene)) * math.prod(scene.shape)


def check_memory(scene: Scene, instrument: TEM, angles: np.ndarray,
                 specimen: ParticlesInIce | None = None) -> float:
    """Memory that a run takes in all [bytes].

    Raises:
        ValueError: if the machine or container has less, which its system would otherwise answer
            by killing the program; nothing of it has been taken then.
    """
    waves, images = foreseen_memory(scene, instrument, angles, specimen)
    on_gpu = current().torch_device.type == "cuda"
    needs = [("the machine", images + _BASE + (0 if on_gpu else waves), memory_limit())]
    if on_gpu:
        needs.append(("the GPU", waves, float(torch.cuda.mem_get_info()[1])))
    for where, needed, there in needs:
        if needed > there:
            wy, wx = instrument.wave_shape
            volumes = f", volumes of {voxels_of(scene):.3g} voxels" if voxels_of(scene) else ""
            raise ValueError(
                f"shape={list(scene.shape)}: images and waves of {wy} x {wx} pixels{volumes} need "
                f"about {size(needed)} of memory, {where} has {size(there)}: lower shape, the "
                "number of copies, interaction.margin or oversampling, or enlarge "
                "interaction.slice_thickness")
    return waves + images + _BASE


def least_time(scene: Scene, instrument: TEM, angles: np.ndarray,
               specimen: ParticlesInIce | None = None) -> float:
    """Seconds that a run takes at the very least; within a factor of some five."""
    copies = copies_cost(instrument, specimen)[0] if specimen is not None else 0.0
    cores = _ON_GPU if current().torch_device.type == "cuda" else float(os.cpu_count() or 1)
    slices = over_tilts(angles, lambda n: slices_of(scene, instrument, angles[n]))
    waves = math.prod(instrument.wave_shape) * float(slices) * _LEAST
    return (waves + len(angles) * copies) / cores * (
        intensities(scene, ice_of(scene)))


def check_time(scene: Scene, seconds: float, images: int) -> None:
    """Refuse what takes longer than a day unless the scene insists.

    Raises:
        ValueError: if it does not.
    """
    if seconds > DAY and not scene.force:
        raise ValueError(
            f"force=false: {images} images take about {duration(seconds)} or more here: must be "
            "true for more than a day; or lower shape, the number of tilts or copies, or enlarge "
            "pixel_size or interaction.slice_thickness")


def over_tilts(angles: np.ndarray, of: Callable[[int], float]) -> float:
    """Sum over all images, from the least and the most tilted: linear in 1 / cos(tilt)."""
    least, most = of(int(np.abs(angles).argmin())), of(int(np.abs(angles).argmax()))
    paths = 1 / np.cos(np.deg2rad(angles.astype(float)))
    across = (paths - paths.min()) / max(float(np.ptp(paths)), 1e-9)
    return float((least + across * (most - least)).sum())
