"""What network and law of noise are fitted to scanned images by rays through some of their pixels.

A coarse network and a fine one are learned together, as published (Kniesel et al. 2022, after
Mildenhall et al. 2020): the fine one is asked for where the coarse one is dense. No grid is made
before the end, so that a step takes the same however large the specimen is.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tem_taichi.checks import check
from tem_taichi.device import as_tensor, number, present
from tem_taichi.estimate.stem_task import Images, Plan, Recorded, Task, network_in
from tem_taichi.inverse.minimise import Terms, Values
from tem_taichi.specimen.ray_points import Along, lines_of
from tem_taichi.streams import Key

_COARSE = "coarse "
"""What names of the coarse network's numbers begin with."""
_SOME = 20_000
"""Pixels from which a law of noise is learned, and by which images held out judge, at most."""
_GOLDEN = (5**0.5 - 1) / 2


class RayTask(Task):
    """Images, and what explains them by named numbers; a step sees some of their pixels."""

    def __init__(self, images: Recorded, plan: Plan, along: Along) -> None:
        super().__init__(images, plan)
        if not isinstance(images, Images):
            raise ValueError("along: is there for scanned images alone")
        stem = images.instrument
        check(not present(stem.convergence) and not present(stem.probe), "convergence",
              stem.convergence, "0 [mrad] with rays, each of which is a line")
        self.scanned, self.along = images, along
        self.coarse = network_in(images.rays, plan, self.unit, plan.seed + 1)
        if along.fine:
            self.start |= {_COARSE + name: one for name, one in self.coarse.values().items()}
        self.doses = as_tensor([number(one.dose) * images.rays.pixel**2
                                for one in images.exposures])
        self.pixels: dict[int, np.ndarray] = {}

    @property
    def batch(self) -> int:
        """Parts that a step sees."""
        return 1

    def parts(self, images: Sequence[int], held: bool) -> Sequence[int]:
        """Numbers of some rays each, all pixels of the images in turn; of those held out some."""
        per, rays = self.scanned.counts[0].numel(), self.along.rays
        whole = per * len(images)
        step = max(1, round(_GOLDEN * whole))
        while math.gcd(step, whole) > 1:  # so that each pixel has its turn once
            step += 1
        found = []
        for first in range(0, min(whole, _SOME) if held else whole, rays):
            part = (np.arange(first, min(first + rays, whole)) * step) % whole
            found.append(2 * (first // rays) + held)
            self.pixels[found[-1]] = np.asarray(images)[part // per] * per + part % per
        return found

    def terms(self, loss: str, shown: Sequence[int]) -> Terms:
        """Of the loss of a pixel by some rays, of both networks."""
        def terms(now: Values, which: Sequence[int]) -> Iterator[Tensor]:
            for part in which:
                counts, clean, coarse = self.seen(now, part)
                found = self.misfit(loss, now, counts, clean)
                if coarse is not None:
                    plain = "l2" if loss == "flow" else loss
                    found = found + self.misfit(plain, now, counts, coarse)
                yield found / (len(counts) * len(which))

        return terms

    def judge(self, loss: str) -> Terms:
        """The same of rays held out, of the fine network alone."""
        def judge(now: Values, which: Sequence[int]) -> Iterator[Tensor]:
            for part in which:
                counts, clean, _ = self.seen(now, part)
                yield self.misfit(loss, now, counts, clean) / (len(counts) * len(which))

        return judge

    def pairs(self, values: Values, shown: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What is expected of some pixels and their counts."""
        some = self.parts(shown, False)[:math.ceil(_SOME / self.along.rays)]
        found = [self.seen(values, part) for part in some]
        return torch.cat([clean for _, clean, _ in found]), torch.cat([one[0] for one in found])

    def seen(self, values: Values, part: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Counts of a part's pixels, and what the fine and the coarse network expect there."""
        images, along = self.scanned, self.along
        ny, nx = images.rays.shape
        pixels = torch.as_tensor(self.pixels[part], device=images.counts.device)
        image, place = pixels // (ny * nx), pixels % (ny * nx)
        assert self.network is not None
        fine = self.network.with_values(values)
        lines = lines_of(images.rays, image, place // nx, place % nx, fine.size)
        # The same places of a ray each time: an interrupted fit goes on as it would have.
        draw = Key(self.plan.seed, "rays", part).generator()
        places = lines.even(along.coarse, draw)
        coarse = None
        if along.fine:
            first = self.coarse.with_values({
                name.removeprefix(_COARSE): one for name, one in values.items()
                if name.startswith(_COARSE)})
            density = first.at(lines.at(places))
            coarse = self._recorded((density * lines.lengths(places)).sum(1), image)
            places = lines.dense(places, density, along.fine, draw)
        passed = (fine.at(lines.at(places)) * lines.lengths(places)).sum(1)
        return images.counts.reshape(-1)[pixels], self._recorded(passed, image), coarse

    def _recorded(self, integrals: Tensor, image: Tensor) -> Tensor:
        """Mean counts of line integrals [1], (n,)."""
        stem, first = self.scanned.instrument, self.scanned.exposures[0]
        return stem.recorded(torch.exp(-integrals), first) * self.doses[image]
