"""Volumes on the voxels of a tomogram: the specimen's potential, masks and a reconstruction.

All are in the specimen's own frame, voxels of the images' pixel size, the centre at n // 2, as
high as the ice is thick.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from tem_taichi.device import as_tensor
from tem_taichi.export.reconstruction import back_project
from tem_taichi.files.mrc import write_mrc
from tem_taichi.series.record import TiltSeries, in_field
from tem_taichi.specimen.kinds import Kind
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.view import View

_SLICES = 32
_BATCH = 1_000_000
"""Slices and scatterers at once: bound the memory."""
_SLAB = 1 << 24
"""Voxels of a mask at once."""
_RADIUS, _PROBE = 2.0, 5.0
"""Of an atom, and of the ball that finds no room in what is solid [A]. Points of membranes and
globules are up to 5.3 A from their farthest neighbours."""
_LARGEST_REFERENCE = 256
"""Voxels along a side."""


@dataclass(frozen=True)
class Volumes:
    """What is in the box, voxel by voxel; each volume is made when it is first asked for."""

    series: TiltSeries
    """Of a simulation."""

    @cached_property
    def specimen(self) -> ParticlesInIce:
        """What was imaged."""
        return self.series.known("a volume", "specimen")[0]

    @cached_property
    def particles(self) -> pd.DataFrame:
        """Of the series."""
        return self.series.known("a volume", "particles")[0]

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(nz, ny, nx)."""
        return self.series.known("a volume", "height")[0], *self.series.shape

    @cached_property
    def potential(self) -> NDArray[np.float32]:
        """Of the particles, see `potential_volume` [V]."""
        return potential_volume(self.specimen, self.shape, self.series.pixel_size)

    @cached_property
    def occupancy(self) -> NDArray[np.int32]:
        """Number of the particle, see `numbers`, or 0; see `solid`."""
        voxel = self.series.pixel_size
        labels = solid(scatterer_labels(self.specimen, self.shape, voxel), voxel)
        return np.concatenate([[0], self.numbers]).astype(np.int32)[labels]

    @cached_property
    def listed(self) -> NDArray[np.bool_]:
        """Whether each particle of the table has its centre in the volume."""
        return in_field(self.series)

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """Number of each particle of the table, from 1: those listed first, then the others.

        Of the latter only a part may reach into the volume.
        """
        return np.argsort(np.argsort(~self.listed, kind="stable")) + 1

    @cached_property
    def classes(self) -> NDArray[np.int32]:
        """Number of the particle's kind, from 1 in the order of the scene, or 0."""
        counts = [len(pose.positions) for pose in self.specimen.poses]
        kinds = np.repeat(np.arange(1, len(counts) + 1), counts)
        return np.concatenate([[0], kinds[np.argsort(self.numbers)]]).astype(np.int32)[
            self.occupancy]

    @cached_property
    def reconstruction(self) -> NDArray[np.float32]:
        """See `back_project`."""
        volume = back_project(self.series.images, self.series.tilts, self.series.pixel_size,
                              self.shape[0])
        return volume.cpu().numpy().astype(np.float32)


@dataclass(frozen=True)
class Reference:
    """One particle alone, as it lies where it is not turned, its centre at n // 2."""

    potential: NDArray[np.float32]
    """Relative to the ice [V], (n, n, n)."""
    mask: NDArray[np.int8]
    """1 within the particle, (n, n, n)."""
    voxel: float
    """[A]"""


def reference(kind: Kind, ice: Ice, voxel: float) -> Reference:
    """Map and mask of a kind of particle, with a tenth of its diameter free around it.

    Args:
        kind: what it is made of.
        ice: that it displaces.
        voxel: edge [A], doubled until a box of 256 voxels is enough.
    """
    width = 2.2 * kind.radius + 20
    while width > _LARGEST_REFERENCE * voxel:
        voxel *= 2
    n = 2 * math.ceil(width / voxel / 2)
    one = ParticlesInIce((kind,), (Poses(np.zeros((1, 3)), np.eye(3)[None]),), ice)
    mask = solid(scatterer_labels(one, (n, n, n), voxel), voxel)
    return Reference(potential_volume(one, (n, n, n), voxel), mask.astype(np.int8), voxel)


def write_references(folder: Path, specimen: ParticlesInIce, voxel: float) -> None:
    """Write `<kind>.mrc` and `<kind>_mask.mrc` of each kind of particle into a new folder.

    Raises:
        ValueError: as `write_mrc`.
    """
    folder.mkdir()
    for kind in specimen.kinds:
        one = reference(kind, specimen.ice, voxel)
        write_mrc(folder / f"{kind.name}.mrc", one.potential, one.voxel, volume=True)
        write_mrc(folder / f"{kind.name}_mask.mrc", one.mask, one.voxel, volume=True)


def solid(labels: NDArray[np.int32], voxel: float) -> NDArray[np.int32]:
    """Labelled points as bodies without gaps: what is near them and no probe can enter.

    Points are widened by 2 A and a probe of 5 A, at least 1.5 voxels, which is then taken off
    from outside (a morphological closing); a voxel belongs to the nearest point's label.

    Args:
        labels: of `scatterer_labels`, (nz, ny, nx); 0 = no point.
        voxel: edge [A].

    Returns:
        Labels (nz, ny, nx).
    """
    probe = max(_PROBE, 1.5 * voxel)
    halo = math.ceil((_RADIUS + 2 * probe) / voxel) + 1
    nz, ny, nx = labels.shape
    slab = max(1, _SLAB // (ny * nx))
    filled = np.zeros_like(labels)
    for first in range(0, nz, slab):
        low = max(first - halo, 0)
        part = labels[low:first + slab + halo]
        if not part.any():
            continue
        distance, nearest = distance_transform_edt(part == 0, sampling=voxel, return_indices=True)
        wide = distance <= _RADIUS + probe
        # Beyond the volume's faces there may be more of a body; scipy needs some place outside.
        body = wide if wide.all() else distance_transform_edt(wide, sampling=voxel) > probe
        inside = slice(first - low, first - low + slab)
        filled[first:first + slab] = np.where(body, part[tuple(nearest)], 0)[inside]
    return filled


def _entrance(depth: int, voxel: float) -> float:
    """Height z [A] of the lower face of voxel 0, so that voxel depth // 2 has its middle at 0."""
    return -(depth // 2 + 0.5) * voxel


def potential_volume(specimen: ParticlesInIce, shape: tuple[int, int, int],
                     voxel: float) -> NDArray[np.float32]:
    """Potential of the particles over each voxel's width, relative to even ice [V].

    Args:
        specimen: particles, and the ice they displace; any structure of its own is left out.
        shape: (nz, ny, nx).
        voxel: edge [A].
    """
    nz, ny, nx = shape
    even = replace(specimen, ice=Ice(specimen.ice.thickness, specimen.ice.potential))
    zero = as_tensor(np.zeros(2))
    view = View(rotation=as_tensor(np.eye(3)), shift=zero, shape=(ny, nx), pixel_size=voxel,
                slice_thickness=voxel, entrance=_entrance(nz, voxel), n_slices=nz, depth="smooth")
    volume = np.empty(shape, dtype=np.float32)
    with torch.no_grad():
        for first in range(0, nz, _SLICES):
            count = min(_SLICES, nz - first)
            chunk = even.slices(view, first, count)
            volume[first:first + count] = chunk.cpu().numpy() / voxel
    return volume


def scatterer_labels(specimen: ParticlesInIce, shape: tuple[int, int, int],
                     voxel: float) -> NDArray[np.int32]:
    """Number of the particle, from 1, in each voxel that holds the middle of a scatterer; or 0.

    Args:
        specimen: particles; of two in one voxel either is taken.
        shape: (nz, ny, nx).
        voxel: edge [A].
    """
    size = np.array(shape)
    labels = np.zeros(shape, dtype=np.int32)
    offset = 1
    for kind, pose in zip(specimen.kinds, specimen.poses, strict=True):
        places = kind.positions.detach().cpu().numpy()
        at_once = max(1, _BATCH // len(places))
        for first in range(0, len(pose.positions), at_once):
            part = slice(first, first + at_once)
            centres = np.asarray(pose.positions)[part, None]
            points = places @ np.asarray(pose.rotations)[part].transpose(0, 2, 1) + centres
            voxels = np.rint(points[..., ::-1] / voxel).astype(np.int64) + size // 2
            inside = np.all((voxels >= 0) & (voxels < size), axis=-1)
            copies = np.broadcast_to(np.arange(len(points))[:, None], inside.shape)
            labels[tuple(voxels[inside].T)] = offset + first + copies[inside]
        offset += len(pose.positions)
    return labels
