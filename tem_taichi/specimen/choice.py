"""How copies of a kind are drawn: atom by atom, as points, or as a volume."""

import math
from collections.abc import Sequence
from functools import cache

from tem_taichi.device import many_threads
from tem_taichi.machine import memory_limit
from tem_taichi.recompute import tensors_in
from tem_taichi.specimen.copies import n_planes
from tem_taichi.specimen.gridding import NARROWEST
from tem_taichi.specimen.kinds import Kind
from tem_taichi.specimen.points import memory_of_points
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.view import View
from tem_taichi.specimen.volumes import Box, box_for

PER_SCATTERER = 4e-7
"""Seconds that a core takes to draw a scatterer in one slice."""
PER_POINT = 1e-7
"""The same as a point, whose slice takes as long for each pixel."""
PER_COEFFICIENT = 1.2e-7
"""Seconds that a core takes for a coefficient of a plane of a volume, transform included."""

GAIN = 2.0
"""How much faster a volume must be, which is not quite the same as its atoms."""
ENOUGH = 1_000_000
"""Scatterers of all copies in all images below which no volume is made: atoms take a second."""
MANY = 100_000
"""Scatterers of all copies below which none are drawn as points: their curves take as long."""
CROWDED = 0.25
"""Stencils for each pixel of the slices that they reach, from which scatterers are points."""
SHARE = 0.1
"""Of the memory that a volume may take."""


def drawn_as_volume(kind: Kind, copies: int, view: View) -> bool:
    """Whether the copies of a kind are drawn as a volume in a view.

    Never where a gradient is asked for in the kind's own tensors, which a volume has not; else as
    `Kind.render` says; else where all of these hold: the copies in all images have at least
    1,000,000 scatterers together; a volume is at least twice as fast, by the number of scatterers
    against that of the frequencies of its planes; and its spectra take at most a tenth of the
    memory.

    Args:
        kind: of particle.
        copies: how many.
        view: its pixels and slices.
    """
    if kind.has_gradient or not copies:
        return False
    if kind.render is not None:
        return kind.render == "volume"
    n = len(kind.positions)
    if n * copies * kind.images < ENOUGH:
        return False
    box = box_for(kind, view.pixel_size)
    return (n * PER_SCATTERER > GAIN * seconds_of(box, view)
            and memory_of(box, kind) < _room())


@cache
def _room() -> float:
    """Memory that the spectra of a kind may take [bytes]: the same as long as a program runs."""
    return min(SHARE * memory_limit(), 8e9)


def drawn_as_points(kind: Kind, pose: Poses, view: View) -> bool:
    """Whether the copies of a kind are drawn as points where they are drawn as no volume.

    Where they have 100,000 scatterers or more, and a quarter as many as the slices that they can
    reach have pixels, or an eighth where each is shared by two slices: a point takes a tenth of the
    time of a stencil, but each slice a few transforms. Never where a gradient is asked for in what
    moves them or what they are, nor on a GPU, nor in a field narrower than two bands.

    Args:
        kind: of particle.
        pose: where its copies are.
        view: its pixels and slices.
    """
    if many_threads() or min(view.shape) < NARROWEST or any(
            tensor.requires_grad for tensor in tensors_in((kind, pose, view.rotation, view.shift))):
        return False
    reached = min(view.n_slices, 2 * kind.radius / view.slice_thickness + 2)
    scatterers = len(kind.positions) * len(pose.positions)
    stencils = scatterers * (2 if view.depth == "smooth" and view.n_slices > 1 else 1)
    return scatterers >= MANY and stencils >= CROWDED * math.prod(view.shape) * reached


def seconds_of(box: Box, view: View) -> float:
    """Seconds that a core takes for a copy of a volume and one channel."""
    planes = 1 + 2 * n_planes(2 * box.radius, view)
    return planes * math.pi / 8 * box.patch**2 * PER_COEFFICIENT


def memory_of(box: Box, kind: Kind) -> float:
    """Bytes that the spectra of a kind take in single precision, and what it takes to make them."""
    channels = 1 + (kind.displaced is not None) + (kind.absorbing is not None)
    return box.bytes * (2 * channels + 3)


def cost_of_copies(
    kinds: Sequence[Kind], poses: Sequence[Poses], view: View
) -> tuple[float, float]:
    """What it takes to draw all copies in a view: least seconds of a core, and bytes of volumes.

    Args:
        kinds: of particles.
        poses: where the copies of each are.
        view: its pixels and slices.
    """
    seconds = memory = 0.0
    for kind, pose in zip(kinds, poses, strict=True):
        copies = len(pose.positions)
        if drawn_as_volume(kind, copies, view):
            box = box_for(kind, view.pixel_size)
            seconds += copies * seconds_of(box, view)
            memory += memory_of(box, kind)
        elif drawn_as_points(kind, pose, view):
            seconds += (copies * len(kind.positions) + math.prod(view.shape)) * PER_POINT
            memory += memory_of_points(kind, view.shape)
        else:
            seconds += copies * len(kind.positions) * PER_SCATTERER
    return seconds, memory
