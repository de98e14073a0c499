"""How well particles are found and named, counted as in SHREC 2021, and how tomograms differ."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """Particles of a tomogram."""

    places: Array
    """(n, 3): z, y, x [voxel from the first one]; those that are listed."""
    kinds: NDArray[np.int64]
    """(n,): from 1, as in the class mask."""
    instances: NDArray[np.int32]
    """Mask: the number of a particle's row, from 1; higher ones are not listed."""
    radius: Array
    """Of each kind, the first one's at 1 [voxel]."""


@dataclass(frozen=True)
class Picks:
    """What a program found."""

    places: Array
    """(n, 3): z, y, x [voxel]."""
    kinds: NDArray[np.int64]
    """(n,): from 1."""
    scores: Array
    """(n,): higher is surer; of picks in one particle the surest counts."""


@dataclass(frozen=True)
class Counted:
    """What became of each particle and each pick of a tomogram."""

    kinds: NDArray[np.int64]
    """(n,): of the particles, from 1."""
    found_as: NDArray[np.int64]
    """(n,): kind that each particle was found as, 0 = not found."""
    false: NDArray[np.int64]
    """Kinds of picks that hit nothing, or a particle that has been found already."""
    distances: Array
    """From picks that count to their particles' places [voxel]."""


def count(picks: Picks, truth: Truth) -> Counted:
    """Match picks with particles: one hit a particle, whichever kind it is taken for.

    A pick hits the particle in whose instance mask it is, or else the nearest one within the
    radius of its kind. Further hits of a particle are false; what hits one that is not listed,
    as it is centred outside the volume, is left out.
    """
    hit = _hit(picks.places, truth)
    found_as = np.zeros(len(truth.kinds), np.int64)
    distances, false = [], []
    for n in np.argsort(-picks.scores, kind="stable"):
        one = hit[n]
        if one > len(truth.kinds):
            continue
        if one == 0 or found_as[one - 1]:
            false.append(picks.kinds[n])
            continue
        found_as[one - 1] = picks.kinds[n]
        distances.append(np.linalg.norm(picks.places[n] - truth.places[one - 1]))
    return Counted(truth.kinds, found_as, np.array(false, np.int64), np.array(distances))


def _hit(places: Array, truth: Truth) -> NDArray[np.int64]:
    """Number of the particle that each place is in, 0 = none."""
    if not len(places):
        return np.zeros(0, np.int64)
    top = np.array(truth.instances.shape) - 1
    voxels = np.clip(np.rint(places).astype(int), 0, top)
    hit = truth.instances[tuple(voxels.T)].astype(np.int64)
    if len(truth.places):
        distance, nearest = cKDTree(truth.places).query(places)
        near = distance <= truth.radius[truth.kinds[nearest]]
        hit = np.where((hit == 0) & near, nearest + 1, hit)
    return hit


def suppressed(places: NDArray, kinds: NDArray, scores: NDArray,
               radius: NDArray) -> NDArray[np.int64]:
    """Numbers of picks that no surer pick is near, surest first.

    Args:
        places: (n, 3) [voxel].
        kinds: (n,) from 1.
        scores: (n,).
        radius: by kind, of what is near a pick [voxel].
    """
    kept: list[int] = []
    for n in np.argsort(-scores, kind="stable"):
        gaps = np.linalg.norm(places[kept] - places[n], axis=1) if kept else np.zeros(0)
        if not np.any(gaps < radius[kinds[kept]]):
            kept.append(int(n))
    return np.array(kept, np.int64)


def measures(counted: list[Counted], kinds: int) -> dict[str, float]:
    """Recall, precision and F1 of finding; F1 of finding and naming by kind, and their mean.

    Args:
        counted: of tomograms.
        kinds: how many.
    """
    true = np.concatenate([one.kinds for one in counted])
    found = np.concatenate([one.found_as for one in counted])
    false = np.concatenate([one.false for one in counted])
    return _measures(true, found, false, kinds)


def _measures(true: NDArray, found: NDArray, false: NDArray, kinds: int) -> dict[str, float]:
    hits = int((found > 0).sum())
    picked = hits + len(false)
    named = {kind: _f1(int(((true == kind) & (found == kind)).sum()), int((true == kind).sum()),
                       int((found == kind).sum() + (false == kind).sum()))
             for kind in range(1, kinds + 1)}
    return {"recall": hits / max(len(true), 1), "precision": hits / max(picked, 1),
            "f1": _f1(hits, len(true), picked),
            **{f"f1_{kind}": value for kind, value in named.items()},
            "macro": float(np.mean(list(named.values())))}


def _f1(hits: int, true: int, picked: int) -> float:
    return 2 * hits / max(true + picked, 1)


def intervals(counted: list[Counted], kinds: int, rng: np.random.Generator,
              draws: int = 1000) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals of 95 % of `measures`, over tomograms and over particles within them.

    Tomograms are drawn with replacement, then their particles and false picks.
    """
    drawn = []
    for _ in range(draws):
        parts = [_again(counted[n], rng) for n in rng.integers(len(counted), size=len(counted))]
        drawn.append(measures(parts, kinds))
    low, high = (({name: float(np.percentile([one[name] for one in drawn], p))
                   for name in drawn[0]}) for p in (2.5, 97.5))
    return {name: (low[name], high[name]) for name in low}


def _again(one: Counted, rng: np.random.Generator) -> Counted:
    """Particles and false picks drawn with replacement: of all rows together."""
    rows = len(one.kinds) + len(one.false)
    drawn = rng.integers(rows, size=rows)
    particles = drawn[drawn < len(one.kinds)]
    return Counted(one.kinds[particles], one.found_as[particles],
                   one.false[drawn[drawn >= len(one.kinds)] - len(one.kinds)], one.distances)


def radial_power(volume: NDArray[np.float32], bins: int = 32) -> Array:
    """Mean power in shells of frequency up to Nyquist's, of a volume of mean 0."""
    power = np.abs(np.fft.rfftn(volume - volume.mean(dtype=np.float64))) ** 2
    shape = volume.shape
    parts = np.meshgrid(*(np.fft.fftfreq(n) for n in shape[:-1]), np.fft.rfftfreq(shape[-1]),
                        indexing="ij")
    shell = (np.sqrt(sum(part**2 for part in parts)) * 2 * bins).astype(int)
    inside = (shell < bins) & (shell + power > 0)
    return (np.bincount(shell[inside], power[inside], bins)
            / np.maximum(np.bincount(shell[inside], minlength=bins), 1))


def distances(volumes: list[NDArray[np.float32]], others: list[NDArray[np.float32]]
              ) -> dict[str, float]:
    """How two sets of tomograms differ: their spectra, and their values, each of deviation 1.

    Returns:
        spectrum: root mean square difference of the mean log10 radial power over the shells;
        values: mean absolute difference of the quantiles (Wasserstein's distance).
    """
    spectra, quantiles = [], []
    for one in (volumes, others):
        normal = [volume / volume.std(dtype=np.float64) for volume in one]
        spectra.append(np.mean([np.log10(radial_power(v, min(v.shape) // 2)[1:])
                                for v in normal], axis=0))
        quantiles.append(np.mean([np.quantile(v, (np.arange(200) + 0.5) / 200) for v in normal],
                                 axis=0))
    return {"spectrum": float(np.sqrt(np.mean((spectra[0] - spectra[1]) ** 2))),
            "values": float(np.mean(np.abs(quantiles[0] - quantiles[1])))}
