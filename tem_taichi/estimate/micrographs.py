"""Images of a transmission microscope, as fits of networks and laws of noise take them.

Those of a thin specimen: a phase object's, with the lens's defocus and its slope across a tilted
plane. The brightness of each is such that its mean is the recorded one's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tem_taichi.checks import check
from tem_taichi.device import as_tensor, number
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram_model import Lens, Model
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.specimen.rays import Rays, project


@dataclass(frozen=True, eq=False)
class Micrographs:
    """A tilt series in units of each image's noise; `stem_fit.Recorded`, of volts."""

    series: Series
    """Images and the grid."""
    exposures: Sequence[Exposure]
    """Of `tomogram_fit.exposures_of`, whose doses are one over the noise."""
    lens: Lens
    """Of all images; its model is projection."""

    def __post_init__(self) -> None:
        check(self.lens.model == "projection", "model", self.lens.model,
              "projection where a network or a law of noise is learned")

    @property
    def counts(self) -> Tensor:
        """(n, ny, nx), relative to the noise; not finite = left out."""
        doses = as_tensor([number(one.dose) for one in self.exposures])[:, None, None]
        return torch.where(self.series.weights > 0, (1 - self.series.images) * doses, torch.nan)

    @property
    def rays(self) -> Rays:
        """How they see the grid of voxels."""
        return self.series.rays

    def some(self, which: Sequence[int]) -> "Micrographs":
        """Some of them."""
        return replace(self, series=self.series.some(which),
                       exposures=[self.exposures[n] for n in which])

    def expected(self, volume: Tensor) -> Tensor:
        """Mean counts of a potential [V] on the grid, (n, ny, nx); differentiable."""
        model = Model(self.series, self.exposures, self.lens)
        seen, counts = model.of_projections(project(volume, model.rays)), self.counts
        there = counts.isfinite()
        whole = torch.where(there, counts, 0.0).sum((1, 2), keepdim=True)
        return seen * whole / torch.where(there, seen, 0.0).sum((1, 2), keepdim=True)
