"""Scanned images of a tilt series as the methods take them: counts, line integrals, exposures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi.checks import check
from tem_taichi.device import as_tensor
from tem_taichi.estimate.octree_fit import Imaging
from tem_taichi.estimate.stem_fit import Images
from tem_taichi.estimate.tilt_images import Series, binned
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.stem import SIGNALS as SIGNALS
from tem_taichi.instrument.stem import STEM
from tem_taichi.noise.looks import noise_of
from tem_taichi.specimen.rays import Rays

FAR = 20.0
"""Times the brightest pixel that the beam of a dark field has, where it is not known."""
_DARKEST = 0.01
"""Part of the beam below which a logarithm is that of noise."""


@dataclass(frozen=True, eq=False)
class Scan:
    """Images above their dark counts, and the beam's."""

    counts: Tensor
    """(n, ny, nx), binned."""
    beam: float
    """Counts of the whole beam in a pixel."""
    signal: str = "bright"
    """Of SIGNALS."""

    def some(self, rows: list[int]) -> "Scan":
        """Some of them."""
        return replace(self, counts=self.counts[rows])

    def of(self, series: Series) -> Series:
        """A series with line integrals as images, as the linear methods take them."""
        part = self.counts / self.beam
        left = part if self.signal == "bright" else 1 - part
        return replace(series, images=-left.clamp(min=_DARKEST).log())

    def images(self, series: Series, table: pd.DataFrame, convergence: float) -> Images:
        """As `stem_fit` takes them.

        Args:
            series: how they see the grid, and the weights: 0 = left out.
            table: tilt_angle and axis_angle [deg], and defocus [A], or 0.
            convergence: half of the beam's opening angle [mrad].
        """
        rays = series.rays
        defocus = table["defocus"] if "defocus" in table else pd.Series(np.zeros(len(table)))
        exposures = [Exposure(
            Optics(defocus=float(defocus.iloc[n])), tilt_angle=float(table["tilt_angle"].iloc[n]),
            axis_angle=float(table["axis_angle"].iloc[n]), shift_x=float(rays.shifts[n, 0]),
            shift_y=float(rays.shifts[n, 1]), dose=self.beam / rays.pixel**2)
            for n in range(len(table))]
        return Images(torch.where(series.weights > 0, self.counts, torch.nan), rays, exposures,
                      STEM(rays.shape, rays.pixel, self.signal, convergence=convergence))


@dataclass(frozen=True, eq=False)
class Absorbed:
    """Scanned images and normal noise; `octree_model.Explained`."""

    images: Images
    weights: Tensor
    """One over the noise's variance [1 / counts^2], 0 = left out, (n, ny, nx)."""

    @property
    def rays(self) -> Rays:
        """How images see the finest grid."""
        return self.images.rays

    def explained(self, parts: Tensor) -> tuple[float, Tensor]:
        """See `octree_model.Explained`; line integrals are plain numbers [1]."""
        counts = self.images.counts
        with torch.enable_grad():
            free = parts.detach().requires_grad_()
            left = torch.where(counts.isfinite(), self.images.seen(free) - counts, 0.0)
            total = (self.weights * left.square()).sum() / 2
        slopes, = torch.autograd.grad(total, free)
        return float(total.detach()), slopes


def imaging_of(series: Series, scan: Scan, table: pd.DataFrame, convergence: float
               ) -> tuple[Series, Imaging]:
    """A series of counts, and what explains them, for `octree_fit.fitted`.

    Noise is of one strength in each image, that which its high frequencies say.

    Args:
        series: how images see the grid, and the weights.
        scan: the images.
        table: see `Scan.images`.
        convergence: half of the beam's opening angle [mrad].
    """
    sigma = noise_of(scan.counts)[:, None, None].clamp(min=1e-6 * scan.beam)

    def imaging(of: Series, which: Sequence[int]) -> Absorbed:
        finer_by = of.rays.pixel / series.rays.pixel
        images = replace(scan, counts=of.images).images(of, table, convergence)
        weights = of.weights * (finer_by / sigma)**2
        return Absorbed(images.some(which), weights[list(which)])

    return replace(series, images=scan.counts), imaging


def scan_of(images: NDArray, size: int, signal: str, beam: float | None, dark_counts: float
            ) -> Scan:
    """Counts of a series and its beam.

    Args:
        images: (n, ny, nx).
        size: pixels a voxel.
        signal: of SIGNALS.
        beam: counts of the whole beam in a pixel, above the dark ones; None = of a bright field the
            brightest pixels', of a dark field FAR times these.
        dark_counts: of a pixel without electrons.

    Raises:
        ValueError: if no count is above the dark ones.
    """
    counts = as_tensor((binned(images, size) - dark_counts).astype(np.float32))
    if beam is None:
        some = counts.flatten()[:: max(1, counts.numel() // 100_000)]
        beam = float(torch.quantile(some, 0.99)) if signal == "bright" else FAR * float(some.max())
        check(beam > 0, "dark_counts", dark_counts, "below the images' counts")
    return Scan(counts, beam, signal)
