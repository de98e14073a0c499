"""How far a series is from a real one: power, variance over mean, and a classifier of tiles."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import kurtosis, skew

TILE, STEP, BLOCKS = 64, 32, 4
BANDS = np.array([1 / 1000, 1 / 400, 1 / 200, 1 / 100, 1 / 70, 1 / 50, 1 / 40])
"""Edges of the bands of power [1/A]."""


@dataclass(frozen=True)
class Apart:
    """What a series is from another."""

    power: np.ndarray
    """Ratio of power over squared mean in bands, the mean over tilts."""
    variance: np.ndarray
    """Ratio of variance over mean, of each tilt."""
    auc: float
    """Of the classifier on tiles that it was not trained on, 0.5 = alike."""


def apart(series: np.ndarray, real: np.ndarray, pixel_size: float) -> Apart:
    """A series against another of the same tilts.

    Args:
        series: counts (n, ny, nx), judged.
        real: counts (n, ny, nx), the measure.
        pixel_size: [A].
    """
    power, against = (banded_power(stack, pixel_size) for stack in (series, real))
    ratio = [stack.var(axis=(1, 2)) / stack.mean(axis=(1, 2)) for stack in (series, real)]
    return Apart((power / against).mean(axis=0), ratio[0] / ratio[1], tile_auc(series, real))


def banded_power(stack: np.ndarray, pixel_size: float) -> np.ndarray:
    """Power of whole images over their means, in `BANDS`, (n, bands).

    Rows and columns are brought to zero at the rim by a cosine over a tenth of each side.
    """
    n, ny, nx = stack.shape
    window = np.outer(*(_window(side) for side in (ny, nx)))
    k = np.hypot(np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx)) / pixel_size
    weight = np.full(k.shape, 2.0)
    weight[:, 0] = 1.0
    band = np.digitize(k, BANDS)
    out = np.empty((n, len(BANDS) - 1))
    for row, image in zip(out, stack.astype(float), strict=True):
        mean = (image * window).sum() / window.sum()
        power = np.abs(np.fft.rfft2((image - mean) * window)) ** 2 * weight
        total = np.bincount(band.ravel(), power.ravel(), len(BANDS) + 1)
        count = np.bincount(band.ravel(), weight.ravel(), len(BANDS) + 1)
        row[:] = (total / count)[1:-1] / (window**2).sum() / mean
    return out


def _window(side: int) -> np.ndarray:
    edge = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5) / (side / 10)
    return np.sin(np.pi / 2 * np.minimum(edge, 1)) ** 2


def tile_auc(series: np.ndarray, real: np.ndarray) -> float:
    """Area under the ROC curve of a classifier between tiles of two series of the same tilts.

    Logistic regression on the spectrum, moments, histogram and gradients of a tile of `TILE` pixels
    relative to those of all at its tilt, and their squares and products; of `BLOCKS` blocks of
    columns each is judged by what the others teach.
    """
    rows, places = zip(*(_tiles(stack) for stack in (series, real)), strict=True)
    x = np.concatenate(rows, axis=1)  # (tilts, tiles, features)
    centre, spread = np.median(x, axis=1, keepdims=True), x.std(axis=1, keepdims=True) + 1e-9
    x = np.clip((x - centre) / spread, -4, 4)
    label = np.repeat([0.0, 1.0], [len(place) for place in places])
    label = np.broadcast_to(label, x.shape[:2])
    block = np.concatenate(places)
    score = np.empty(label.shape)
    for one in range(BLOCKS):
        test = block == one
        score[:, test] = _judged(x[:, ~test], label[:, ~test], x[:, test])
    return _auc(score.ravel(), label.ravel())


def _tiles(stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (tilts, tiles, features), and the block of each tile."""
    ny, nx = stack.shape[1:]
    width = nx // BLOCKS
    corners = [(y, block * width + x, block) for block in range(BLOCKS)
               for y in range(0, ny - TILE + 1, STEP) for x in range(0, width - TILE + 1, STEP)]
    found = [features(np.stack([stack[:, y:y + TILE, x:x + TILE]]).astype(float)[0],
                      stack.mean(axis=(1, 2))) for y, x, _ in corners]
    return np.stack(found, axis=1), np.array([block for *_, block in corners])


def features(tiles: np.ndarray, means: np.ndarray) -> np.ndarray:
    """What a classifier sees of tiles.

    Args:
        tiles: (n, `TILE`, `TILE`) [counts].
        means: of the images they are from [counts], (n,).

    Returns:
        (n, features).
    """
    n = len(tiles)
    flat = tiles.reshape(n, -1)
    mean = flat.mean(axis=1)
    window = np.hanning(TILE + 2)[1:-1]
    power = np.abs(np.fft.rfft2((tiles - mean[:, None, None]) * np.outer(window, window))) ** 2
    k = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE))
    edges = np.r_[0.5 / TILE, 1.5 / TILE, 2.5 / TILE, 4.5 / TILE, np.linspace(0.1, 0.5, 11), 0.71]
    ring = np.digitize(k, edges).ravel()
    rings = np.stack([power.reshape(n, -1)[:, ring == one].mean(axis=1)
                      for one in range(1, len(edges))], axis=1)
    level = np.quantile(flat, [0.001, 0.01, 0.1, 0.9, 0.99, 0.999], axis=1).T - mean[:, None]
    fine = tiles.reshape(n, TILE // 4, 4, TILE // 4, 4).mean(axis=(2, 4)).reshape(n, -1)
    local = tiles.reshape(n, TILE // 8, 8, TILE // 8, 8).var(axis=(2, 4)).reshape(n, -1)
    return np.concatenate([
        np.log(rings / mean[:, None] + 1e-12), level / np.sqrt(mean)[:, None],
        np.log(mean / means)[:, None], skew(flat, axis=1)[:, None], kurtosis(flat, axis=1)[:, None],
        skew(fine, axis=1)[:, None], kurtosis(fine, axis=1)[:, None],
        np.log(local.std(axis=1) / local.mean(axis=1) + 1e-9)[:, None]], axis=1)


def _judged(x: np.ndarray, label: np.ndarray, test: np.ndarray, ridge: float = 3.0) -> np.ndarray:
    """Scores of test tiles (tilts, tiles) by logistic regression on the others."""
    def terms(rows: np.ndarray) -> torch.Tensor:
        upper = np.triu_indices(rows.shape[-1])
        more = rows[..., upper[0]] * rows[..., upper[1]]
        return torch.from_numpy(np.concatenate([rows, more], axis=-1).reshape(
            -1, rows.shape[-1] + len(upper[0]))).float()

    known, truth = terms(x), torch.from_numpy(label.ravel().copy()).float()
    scale = known.std(dim=0) + 1e-6
    weight = torch.zeros(known.shape[1], requires_grad=True)
    offset = torch.zeros(1, requires_grad=True)
    search = torch.optim.LBFGS([weight, offset], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        search.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(
            known / scale @ weight + offset, truth, reduction="sum") + ridge * weight.square().sum()
        value.backward()
        return value

    search.step(loss)
    with torch.no_grad():
        return (terms(test) / scale @ weight + offset).numpy().reshape(test.shape[:2])


def _auc(score: np.ndarray, label: np.ndarray) -> float:
    """Part of pairs that are in order."""
    rank = np.empty(len(score))
    rank[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    ones = label > 0.5
    count = ones.sum()
    return float((rank[ones].sum() - count * (count + 1) / 2) / (count * (~ones).sum()))
