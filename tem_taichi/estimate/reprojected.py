"""Shifts of a tilt series refined against what the other tilts predict of each image.

The specimen is reconstructed without an image and projected as that image should see it
(`other_tilts.predicted`); where the image lies relative to that is found by correlation, weighted
by what the prediction leaves unexplained (projection matching: Penczek et al., Ultramicroscopy 40,
33, 1992; Yang & Penczek, Ultramicroscopy 108, 2008). Unlike the model of `inverse.slab` a
reconstruction knows where in the field its matter is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi.estimate.free_poses import Free, poses_of
from tem_taichi.estimate.other_tilts import predicted
from tem_taichi.estimate.tilt_images import Grid, in_order, series_of

_FOLDS = 3
"""Every so many-th tilt is predicted by the rest."""
_STEPS = 6
"""Of Gauss and Newton towards an image's place."""
_STILL = 0.3
"""Moves, root mean square, that end the rounds [A]."""


@dataclass(frozen=True, eq=False)
class WhiteNoise:
    """Of images relative to their mean."""

    variances: Tensor
    """Of a pixel of each, (n,)."""

    def some(self, which: Sequence[int]) -> "WhiteNoise":
        """Of some of the images."""
        return WhiteNoise(self.variances[list(which)])

    def power(self, shape: tuple[int, int]) -> Tensor:
        """Of each coefficient of the rfft2, as `other_tilts.Noise.power` has it."""
        return self.variances[:, None, None].expand(-1, shape[0], shape[1] // 2 + 1)


def matched(images: NDArray, tilts: pd.DataFrame, pixel_size: float, grid: Grid, finest: float,
            variances: Tensor, mask: NDArray | None = None, rounds: int = 2,
            step: Callable[[int, int], None] = lambda done, of: None
            ) -> tuple[pd.DataFrame, float]:
    """The table with shifts that agree with what other tilts predict.

    What moves the specimen as a whole is no part of the change.

    Args:
        images: as they were recorded, (n, ny, nx).
        tilts: table of `series_of`.
        pixel_size: [A].
        grid: of the reconstruction.
        finest: detail that is compared [A].
        variances: of a pixel's noise in each image relative to its mean, (n,).
        mask: of `series_of`.
        rounds: reconstructions, at most.
        step: called after each round with what is done and how much there is.

    Returns:
        The table, and the root mean square move of the last round [A].
    """
    free, table, last = Free(poses_of(tilts), ("shifts",), 1.0), tilts.copy(), np.inf
    names = list(free.names)
    before = np.stack([free.start[name].double().cpu().numpy() for name in names])
    for turn in range(rounds):
        series = series_of(images, table, pixel_size, grid, mask)
        noise = WhiteNoise((variances / grid.bin**2).to(series.images))
        order, moves = in_order(series), np.zeros((len(tilts), 2))
        for number in range(_FOLDS):
            own = sorted(order[number::_FOLDS])
            others = sorted(set(order) - set(own))
            there = predicted(series, noise, others, own)
            for n, image in enumerate(own):
                moves[image] = displacement(series.images[image], there[n], series.weights[image],
                                            pixel_size * grid.bin, finest)
        by = np.stack([table[name].to_numpy(float) if name in table else np.zeros(len(tilts))
                       for name in names]) + moves.T - before
        own_change = free.spread.numpy().T @ by.ravel()
        after = before + (free.spread.numpy() @ own_change).reshape(2, -1)
        old = table[names].to_numpy(float).T if names[0] in table else before
        last = float(np.sqrt(((after - old)**2).mean()))
        table = table.assign(**dict(zip(names, after, strict=True)))
        step(turn + 1, rounds)
        if last < _STILL:
            break
    return table, last


def displacement(image: Tensor, there: Tensor, weight: Tensor, pixel: float, finest: float
                 ) -> NDArray[np.float64]:
    """How far an image is moved from its prediction, x and y [A].

    Args:
        image: (ny, nx).
        there: the prediction.
        weight: of the pixels, 0 = left out.
        pixel: [A].
        finest: detail that is compared [A].
    """
    ny, nx = image.shape
    window = torch.outer(*(torch.sin(torch.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
                           for n in (ny, nx))) * weight.double().cpu()
    waves, known = (np.asarray(torch.fft.rfft2(
        (one - one.mean()).double().cpu() * window).numpy()) for one in (image, there))
    ky, kx = np.fft.fftfreq(ny, pixel)[:, None], np.fft.rfftfreq(nx, pixel)[None]
    k = np.hypot(ky, kx)
    use = (k < 1 / finest) & (k > 2 / (pixel * max(ny, nx)))
    factor = np.where(use, np.where(kx > 0, 2.0, 1.0), 0.0)
    left = np.abs(waves - known)**2
    ring = (k * pixel * min(ny, nx) / 2).astype(int)
    number, power = np.bincount(ring.ravel()), np.bincount(ring.ravel(), left.ravel())
    factor = factor / np.maximum(power / np.maximum(number, 1), 1e-30)[ring]
    turn = -2j * np.pi * np.stack(np.broadcast_arrays(kx, ky))
    place = np.zeros(2)
    for _ in range(_STEPS):
        moved = known * np.exp((turn * place[:, None, None]).sum(0))
        slopes = turn * moved
        curved = np.einsum("aij,bij,ij->ab", slopes.conj(), slopes, factor).real
        side = np.einsum("aij,ij,ij->a", slopes.conj(), waves - moved, factor).real
        if not np.linalg.cond(curved) < 1e12:
            return np.zeros(2)
        place = place + np.clip(np.linalg.solve(curved, side), -finest / 4, finest / 4)
    # Beyond half a detail the phase is of another period.
    return place if np.abs(place).max() < finest else np.zeros(2)
