"""What density and law of noise are fitted to scanned images, by whole images of a grid."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from tem_taichi.checks import check, one_of, whole
from tem_taichi.device import as_tensor, number
from tem_taichi.estimate.tomogram_fit import noise_of
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.stem import STEM
from tem_taichi.inverse.minimise import Terms, Values
from tem_taichi.inverse.priors import total_variation
from tem_taichi.noise.flow import Flow, Layers, layers, learned
from tem_taichi.specimen.implicit import PUBLISHED, Implicit, Shape, small, start
from tem_taichi.specimen.ray_points import Along
from tem_taichi.specimen.rays import Rays, project

LOSSES = ("l2", "l1", "flow")
_CORNER = 0.01
"""Differences of voxels, in units, that cost their square rather than themselves."""
RATES = {"voxels": 0.2, "implicit": 0.003}
"""Length of a first step of what is learned. With 0.01 networks end where they explain less of the
images held out, and in other places for other first weights."""


class Recorded(Protocol):
    """Images, and what is expected of them."""

    @property
    def counts(self) -> Tensor:
        """(n, ny, nx); not finite = left out."""

    @property
    def rays(self) -> Rays:
        """How they see the grid of voxels."""

    @property
    def exposures(self) -> Sequence[Exposure]:
        """Whose tilts are their order."""

    def some(self, which: Sequence[int]) -> Self:
        """Some of them."""

    def expected(self, volume: Tensor) -> Tensor:
        """Mean counts of what a grid holds, (n, ny, nx); differentiable."""


@dataclass(frozen=True, eq=False)
class Images:
    """Recorded images, and how they were taken; `Recorded`."""

    counts: Tensor
    """(n, ny, nx); not finite = left out."""
    rays: Rays
    """How they see the grid of voxels."""
    exposures: Sequence[Exposure]
    """Tilts, shifts, defoci and doses; dose pixel^2 are the counts of the whole beam."""
    instrument: STEM

    def some(self, which: Sequence[int]) -> "Images":
        """Some of them."""
        rows = list(which)
        return replace(self, counts=self.counts[rows], rays=self.rays.some(rows),
                       exposures=[self.exposures[n] for n in rows])

    def expected(self, volume: Tensor, instrument: STEM | None = None) -> Tensor:
        """Mean counts of a density [1/A] on the grid, (n, ny, nx); differentiable."""
        return self.seen(project(volume, self.rays), instrument)

    def seen(self, parts: Tensor, instrument: STEM | None = None) -> Tensor:
        """Mean counts of line integrals, (n, ny, nx); differentiable."""
        stem = instrument or self.instrument
        passed = torch.exp(-parts)
        area = self.rays.pixel**2
        return torch.stack([stem.recorded(one, exposure) * (as_tensor(exposure.dose) * area)
                            for one, exposure in zip(passed, self.exposures, strict=True)])


@dataclass(frozen=True)
class Plan:
    """How a density is found."""

    specimen: str = "implicit"
    """voxels, or implicit: a network."""
    loss: str = "flow"
    """Of LOSSES."""
    network: Shape | None = None
    """None = `implicit.small` of the grid's longest side."""
    tv: float | None = 0.0
    """Strength of the total variation: what a difference of neighbours by the unit costs [1]; None
    = that which explains the images held out best."""
    passes: int = 60
    """Through all images, at most."""
    batch: int = 8
    """Images a step."""
    rate: float | None = None
    """Of Adam, which falls to 0 by a cosine; None = 0.003 of a network, 0.2 of voxels."""
    warm: int = 20
    """Passes of least squares before a law of noise is learned too."""
    law: tuple[int, int, int] = (4, 4, 16)
    """Layers of the flow that do not know the clean value, that do, and features of the latter."""
    law_steps: int = 300
    """Of the law alone, from what the density leaves of the images, each time that it begins."""
    law_rate: float = 0.5
    """Rate of the law's numbers over that of the specimen's; 0 = the law stays as it is."""
    turns: int = 0
    """How often specimen and law are found by turns instead; 0 = both at once."""
    bounded: bool = False
    """Of implicit: sigmoids from 0 to `unit` rather than softpluses."""
    unit: float | None = None
    """Of the density [1/A], which other images than scanned ones need; None = what takes the
    darkest ray's part along half of the grid."""
    free_cone: bool = False
    """Whether the beam's convergence is found too, from the instrument's on."""
    along: Along | None = None
    """Of implicit: points of rays through some pixels that a step asks for; None = all voxels of
    the grid, and whole images."""
    patience: int = 8
    """Passes without a better explanation of what is held out, after which a fit ends."""
    seed: int = 0
    """Of the network's first weights and of the order of images."""

    def __post_init__(self) -> None:
        one_of("specimen", self.specimen, tuple(RATES))
        one_of("loss", self.loss, LOSSES)
        for name, least in (("passes", 1), ("batch", 1), ("warm", 0), ("turns", 0),
                            ("patience", 1), ("law_steps", 1)):
            whole(name, getattr(self, name), least, 10**6)
        check(self.tv is None or self.tv >= 0, "tv", self.tv, "at least 0")
        check(self.law_rate >= 0, "law_rate", self.law_rate, "at least 0")
        if self.along is not None:
            for name, plain in (("specimen", "implicit"), ("tv", 0.0), ("free_cone", False)):
                check(getattr(self, name) == plain, name, getattr(self, name),
                      f"{plain} with rays that are seen along points")


def network_of(name: str, grid: tuple[int, int, int], width: int) -> Shape:
    """A network by its name: small, for a grid's voxels, or published.

    Args:
        name: small or published.
        grid: voxels (nz, ny, nx).
        width: features of a layer of the small one.
    """
    return PUBLISHED if name == "published" else small(max(grid), width)


def network_in(rays: Rays, plan: Plan, unit: float, seed: int) -> Implicit:
    """A network at its start, in the box of a grid.

    Args:
        rays: with the grid.
        plan: which network.
        unit: of what it says.
        seed: of its first weights.
    """
    z, y, x = (rays.voxel * n for n in rays.grid)
    return start(plan.network or small(max(rays.grid)), (x, y, z), unit, plan.bounded, seed)


def unit_of(images: Images) -> float:
    """A density that takes as much along half of the grid as the rays of most matter lose [1/A]."""
    rays, stem = images.rays, images.instrument
    doses = as_tensor([number(one.dose) for one in images.exposures])[:, None, None]
    part = images.counts / (doses * rays.pixel**2) - number(stem.offset)
    part = part[part.isfinite()]
    left = torch.quantile(part[:: max(1, len(part) // 100_000)],
                          0.01 if stem.signal == "bright" else 0.99)
    passed = float(left) if stem.signal == "bright" else 1 - float(left)
    lost = -math.log(min(max(passed, 1e-3), 1 - 1e-4))
    return lost / (rays.voxel * min(rays.grid[0], rays.grid[2], rays.grid[1]) / 2)


class Task:
    """Images, and what explains them by named numbers; a step sees some of them, whole."""

    def __init__(self, images: Recorded, plan: Plan) -> None:
        self.images, self.plan = images, plan
        scanned = images if isinstance(images, Images) else None
        if plan.unit is None and scanned is None:
            raise ValueError("unit=None: must be given of images that are not scanned")
        self.unit = plan.unit or (1.0 if scanned is None else unit_of(scanned))
        rays, counts = images.rays, images.counts
        self.network: Implicit | None = None
        if plan.specimen == "implicit":
            self.network = network_in(rays, plan, self.unit, plan.seed)
            self.start: Values = self.network.values()
        else:
            # Softplus of -3 is 0.05: next to nothing, and it still moves.
            self.start = {"voxels": as_tensor(torch.full(rays.grid, -3.0))}
        if plan.free_cone:
            cone = 0.0 if scanned is None else number(scanned.instrument.convergence)
            check(cone > 0, "convergence", cone, "above 0 [mrad], where it is to be found")
            self.start["cone"] = as_tensor(math.log(cone))
        filled = torch.where(counts.isfinite(), counts, torch.nanmedian(counts))
        self.sigma = max(float(noise_of(filled).median()), 1e-6 * float(filled.abs().max()), 1e-30)
        some = filled.flatten()[:: max(1, filled.numel() // 100_000)]
        low, high = (float(torch.quantile(some, q)) for q in (0.001, 0.999))
        made = layers(plan.law[0], plan.law[1], plan.law[2], seed=plan.seed)
        self.flow = Flow(1.0, made, self.sigma, low, max(high, low + self.sigma))

    def volume(self, values: Values) -> Tensor:
        """Density on the grid [1/A]."""
        if self.network is not None:
            return self.network.with_values(values).grid(self.images.rays.grid,
                                                         self.images.rays.voxel)
        return self.unit * torch.nn.functional.softplus(values["voxels"])

    def told(self, values: Values) -> Recorded:
        """The images, with what is found of their instrument."""
        images = self.images
        if "cone" not in values:
            return images
        assert isinstance(images, Images)
        return replace(images, instrument=replace(images.instrument,
                                                  convergence=values["cone"].exp()))

    def misfit(self, loss: str, values: Values, counts: Tensor, clean: Tensor) -> Tensor:
        """Of some pixels, summed.

        Args:
            loss: of LOSSES.
            values: with those of the law.
            counts: of any shape; not finite = left out.
            clean: what is expected there.
        """
        if loss == "flow":
            return -self.law(values).log_density(counts, clean).sum()
        left = torch.where(counts.isfinite(), counts - clean, 0.0) / self.sigma
        return left.abs().sum() if loss == "l1" else left.square().sum() / 2

    def law(self, values: Values) -> Flow:
        """The flow at some values."""
        given = {name: values[name] for name in Layers._fields if name in values}
        return learned(self.flow, Layers(**given)) if given else self.flow

    @property
    def batch(self) -> int:
        """Parts that a step sees."""
        return self.plan.batch

    def parts(self, images: Sequence[int], held: bool) -> Sequence[int]:
        """What a pass goes through for some images, those held out or others."""
        return images

    def terms(self, loss: str, shown: Sequence[int]) -> Terms:
        """Of the loss of a pixel by the parts of a step."""
        pixels, tv = self.images.counts[0].numel(), self.plan.tv

        def terms(now: Values, which: Sequence[int]) -> Iterator[Tensor]:
            volume = self.volume(now)
            found = self._misfit(loss, now, which, volume) / (pixels * len(which))
            if tv:
                varied = total_variation(volume / self.unit, 1 / tv, _CORNER)
                found = found + varied / (pixels * len(shown))
            yield found

        return terms

    def judge(self, loss: str) -> Terms:
        """The same of parts held out, without a prior."""
        pixels = self.images.counts[0].numel()

        def judge(now: Values, which: Sequence[int]) -> Iterator[Tensor]:
            yield self._misfit(loss, now, which, self.volume(now)) / (pixels * len(which))

        return judge

    def _misfit(self, loss: str, values: Values, which: Sequence[int], volume: Tensor) -> Tensor:
        images = self.told(values).some(which)
        return self.misfit(loss, values, images.counts, images.expected(volume))

    def pairs(self, values: Values, shown: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What is expected of images and their counts, from which a law of noise is learned."""
        images = self.told(values).some(shown)
        return images.expected(self.volume(values)), images.counts
