"""What the pixels near an edge say of the MTF, and of the edge's place and brightness.

Noise of an integrating camera is blurred as the signal is, so that white-noise weights would waste
what the sharp end of the spectrum knows. The residuals' own spectrum makes it white: images are
filtered by one over its root, then weighted by a variance that rises with the filtered mean. That
is exact for electrons that a camera blurs after they have arrived at random, and for those that it
counts after the blur. Weights only: the MTF is not read from the noise.
"""

import numpy as np
from scipy import fft

from tem_taichi.estimate.edge_curves import EdgeLikelihood, knots, splines

_FINENESS = 32
"""Points per pixel at which the edge spread function is tabulated."""
_LAG = 3.0
"""Reach of the noise's correlation that is measured [pixel], deviation of a Gaussian window."""
_ROUNDS = 3
"""Newton steps: the model is linear but for the edge's place and angle."""
_BLOCK = 8
"""Length of the stretches of the edge that count as independent [pixel]."""


class EdgePixels:
    """Counts within reach of an edge, and their model.

    place: offset [pixel], angle [rad], dark, bright, slopes of bright along x and y over the
    reach; mtf: its values at the knots. Counts are in units of the contrast.
    """

    def __init__(self, image: np.ndarray, normal: np.ndarray, offset: float, highest: float,
                 reach: float) -> None:
        ny, nx = image.shape
        y, x = (np.arange(n) - n // 2 for n in (ny, nx))
        far = normal[0] * x + normal[1] * y[:, None] - offset
        margin = 2 + 3 * highest  # the sharp end of a wrapped image, not the edge's own
        self.used = ((np.abs(far) < reach) & (np.abs(x + 0.5) < nx / 2 - margin)
                     & (np.abs(y + 0.5) < ny / 2 - margin)[:, None])
        rows, columns = np.nonzero(self.used)
        self.x, self.y, self.reach = x[columns], y[rows], reach
        # Filters act on a box with a rim of zeros, so that opposite sides do not meet.
        self.box = tuple(fft.next_fast_len(int(np.ptp(own)) + 9, real=True)
                         for own in (rows, columns))
        self.index = rows - rows.min(), columns - columns.min()
        low, high = (float(np.median(image[self.used & side])) for side in (far < 0, far > 0))
        self.unit = high - low
        self.counts = image[self.used] / self.unit
        nodes, weights = np.polynomial.legendre.leggauss(int(6 * highest * reach) + 40)
        w = (nodes + 1) * highest / 2
        self.table = np.arange(-(reach + 8) * _FINENESS, (reach + 8) * _FINENESS + 1) / _FINENESS
        self.knots = knots(highest)
        self.kernel = np.sin(2 * np.pi * np.outer(self.table, w)) @ (
            splines(self.knots, w) * (weights * highest / 2 / (np.pi * w))[:, None])
        self.place = np.array([offset, np.arctan2(*normal[::-1]), low / self.unit,
                               high / self.unit, 0, 0])
        self.mtf = 1 / (1 + 8 * self.knots**2)
        self.whitening, self.variance = np.ones(1), np.ones(1)

    def model(self) -> tuple[np.ndarray, np.ndarray]:
        """The image (pixels,) and its derivatives (pixels, 6 + n) in place and mtf[1:]."""
        dark, bright, slope_x, slope_y = self.place[2:]
        spread = 0.5 + self.kernel @ self.mtf
        tables = np.column_stack([spread, np.gradient(spread, 1 / _FINENESS), self.kernel[:, 1:]])
        across, along = self._distances()
        at = (across - self.table[0]) * _FINENESS
        index = np.clip(at.astype(int), 0, len(self.table) - 2)
        share = (at - index)[:, None]
        drawn = tables[index] * (1 - share) + tables[index + 1] * share
        edge, rise = drawn[:, 0], drawn[:, 1]
        x, y = self.x / self.reach, self.y / self.reach
        contrast = bright + slope_x * x + slope_y * y - dark
        return dark + contrast * edge, np.column_stack([
            -contrast * rise, contrast * rise * along, 1 - edge, edge, edge * x, edge * y,
            contrast[:, None] * drawn[:, 2:]])

    def solve(self) -> EdgeLikelihood:
        """Find the edge; return the likelihood of the MTF, place and brightness marginalised."""
        count = len(self.knots) - 1
        rough = np.diff(np.eye(count + 1), n=2, axis=0)
        smooth = 1e3 * rough.T @ rough  # for the steps only: no part of the likelihood
        for step in range(_ROUNDS + 1):
            image, slopes = self.model()
            residual = self.counts - image
            self._weigh(image, residual, coloured=step > 0)
            white = self._whiten(np.column_stack([slopes, residual]))
            slopes, residual = white[:, :-1], white[:, -1]
            information, score = slopes.T @ slopes, slopes.T @ residual
            if step < _ROUNDS:
                prior = np.zeros_like(information)
                prior[6:, 6:] = smooth[1:, 1:]
                change = np.linalg.solve(information + prior, score - np.append(
                    np.zeros(6), (smooth @ self.mtf)[1:]))
                self.place, self.mtf[1:] = self.place + change[:6], self.mtf[1:] + change[6:]
        blocks = self._blocks()
        scores = np.stack([np.bincount(blocks, own * residual) for own in slopes.T])
        stretches = len(np.unique(blocks))
        scatter = scores @ scores.T * stretches / max(stretches - 1, 1)
        self.settle = np.linalg.solve(information[:6, :6],
                                      np.column_stack([score[:6], information[:6, 6:]]))
        project = np.hstack([-self.settle[:, 1:].T, np.eye(count)])
        precision = project @ information[:, 6:]
        return EdgeLikelihood(self.knots, precision, project @ score + precision @ self.mtf[1:],
                              project @ scatter @ project.T)

    def finish(self, mtf: np.ndarray) -> tuple[np.ndarray, float]:
        """Image (pixels,) [counts] and misfit of an MTF at the knots, the place as it has it."""
        self.place = self.place + self.settle @ np.append(1, self.mtf[1:] - mtf[1:])
        self.mtf = mtf
        image = self.model()[0]
        white = self._whiten((self.counts - image)[:, None])[:, 0]
        across = self._distances()[0]
        bins = np.floor(across - across.min()).astype(int)
        number = np.maximum(np.bincount(bins), 1)
        total = np.bincount(bins, white)
        halves = np.bincount(bins, white * np.where(self._blocks() % 2, 1, -1))
        return image * self.unit, float((total**2 / number).mean() / (halves**2 / number).mean())

    def _distances(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances of the pixels across and along the edge."""
        cos, sin = np.cos(self.place[1]), np.sin(self.place[1])
        return cos * self.x + sin * self.y - self.place[0], cos * self.y - sin * self.x

    def _blocks(self) -> np.ndarray:
        along = self._distances()[1]
        return ((along - along.min()) / _BLOCK).astype(int)

    def _filter(self, columns: np.ndarray) -> np.ndarray:
        boxes = np.zeros((columns.shape[1], *self.box))
        boxes[(slice(None), *self.index)] = columns.T
        filtered = fft.irfft2(fft.rfft2(boxes) * self.whitening, s=self.box)
        return filtered[(slice(None), *self.index)].T

    def _whiten(self, columns: np.ndarray) -> np.ndarray:
        return self._filter(columns) / np.sqrt(self.variance)[:, None]

    def _weigh(self, image: np.ndarray, residual: np.ndarray, *, coloured: bool) -> None:
        """Set the filter and the variance behind it from residuals."""
        self.whitening = np.ones((self.box[0], self.box[1] // 2 + 1))
        if coloured:
            noise = np.zeros(self.box)
            noise[self.index] = residual / np.sqrt(self.variance)
            lag_y, lag_x = (fft.fftfreq(size, 1 / size) for size in self.box)
            window = np.exp(-(lag_y[:, None]**2 + lag_x**2) / (2 * _LAG**2))
            power = fft.rfft2(window * fft.irfft2(np.abs(fft.rfft2(noise))**2, s=self.box)).real
            # A floor where a camera records nothing: no weight is without end.
            power = np.maximum(power, 0.01 * power.mean())
            self.whitening = np.sqrt(power[0, 0] / power)
        dark, bright = self.place[2:4]
        level, noise = self._filter(np.column_stack([image - dark, residual])).T
        share = np.clip(level / (bright - dark), 0, 1)
        low, high = ((noise[side]**2).mean() for side in (share <= 0.5, share > 0.5))
        # Shot noise: variance rises linearly with the mean.
        self.variance = np.maximum(low + (high - low) * share, 1e-12)
