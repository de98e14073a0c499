"""Background crops of micrographs: where to cut them, and the power spectrum of their noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, signal
from torch import Tensor

_LEAST_SIDE = 32
_BLOCK = 8
"""Edge [pixel] of the blocks whose means show structure under the noise."""


@dataclass(frozen=True, eq=False)
class Background:
    """Tiles of a micrograph that look like nothing but noise.

    Attributes:
        crops: (n, size, size), the tiles themselves.
        corners: (n, 2), row and column of each tile's first pixel.
        candidates: (m, 2), the same for every tile looked at.
        structure: (m,), log of a candidate's slow variations over those of the flattest tiles;
            noise alone scatters about 0.
        flat: (m,), which candidates count as background; `crops` are from these.
    """

    crops: np.ndarray
    corners: np.ndarray
    candidates: np.ndarray
    structure: np.ndarray
    flat: np.ndarray


@dataclass(frozen=True, eq=False)
class RingSpectrum:
    """Power of the noise, averaged over rings of equal frequency.

    Attributes:
        w: (n,), mean frequency of each ring [cycles/pixel].
        power: (n,), mean of |FFT|^2 / number of pixels [counts^2].
        weight: (n,), number of independent ordinates that the mean is worth: its relative
            variance is 1/weight.
        mean: of all pixels [counts].
        dispersion: (n,), how much more the crops differ than noise of one spectrum would; 1 if
            they do not. `weight` has been divided by it.
        shared_removed: whether the crops' common image was subtracted.
    """

    w: np.ndarray
    power: np.ndarray
    weight: np.ndarray
    mean: float
    dispersion: np.ndarray
    shared_removed: bool


def pick_background(micrograph: np.ndarray | Tensor, *, size: int = 256,
                    count: int = 10) -> Background:
    """Choose tiles without visible structure: no particles, carbon, cracks or contamination.

    A tile's structure is the variance of its 8 x 8 block means after a plane is removed; tiles
    whose mean or whose variance is far from the flattest ones' are left out too. All tiles that
    noise alone could make as flat as the flattest are taken as equal, since the very lowest
    would bias the noise spectrum; among them those farthest from any structure are chosen.

    Args:
        micrograph: (ny, nx), at least `size` along both axes.
        size: edge of a tile [pixel], a multiple of 8, >= 32.
        count: number of tiles wanted, which do not overlap.

    Raises:
        ValueError: if an argument is not allowed, or fewer than `count` such tiles are found.
    """
    image = plain("micrograph", micrograph)
    if image.ndim != 2 or size % _BLOCK or size < _LEAST_SIDE or min(image.shape) < size:
        raise ValueError(f"micrograph has shape {image.shape}, size={size}: must be one image of "
                         f"at least size, a multiple of {_BLOCK} from {_LEAST_SIDE}")
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    step = size // 2
    rows, columns = (np.arange(0, n - size + 1, step) for n in image.shape)
    corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))[::step, ::step]
    blocks = windows.reshape(*windows.shape[:2], size // _BLOCK, _BLOCK, size // _BLOCK, _BLOCK
                             ).mean(axis=(-3, -1))
    slow = np.log(without_plane(blocks).var(axis=(-2, -1)) + 1e-30)
    # Scatter of a log-variance from so many independent blocks.
    error = np.sqrt(2 / (size // _BLOCK) ** 2)
    # The lowest tenth of pure noise lies 1.28 errors below its middle.
    middle = np.quantile(slow, 0.1) + 1.28 * error
    flat = np.abs(slow - middle) < 2.5 * error
    for feature in (windows.mean(axis=(-2, -1)), np.log(windows.var(axis=(-2, -1)) + 1e-30)):
        centre = np.median(feature[flat]) if flat.any() else np.median(feature)
        spread = 1.4826 * np.median(np.abs(feature[flat] - centre)) if flat.any() else 0.0
        flat &= np.abs(feature - centre) <= 4 * spread + 1e-12
    distance = ndimage.distance_transform_edt(np.pad(flat, 1, constant_values=True))[1:-1, 1:-1]
    if flat.all():
        distance = np.ones(flat.shape)
    # Of equally good tiles any, lest all lie along one side; side by side if that leaves too few.
    indices, apart = np.argwhere(flat), -distance[flat]
    mixed = np.random.default_rng(0).permutation(len(indices))
    for order in (mixed[np.argsort(apart[mixed], kind="stable")], np.argsort(apart, kind="stable")):
        chosen = _apart(indices[order], count)
        if len(chosen) == count:
            break
    if len(chosen) < count:
        raise ValueError(f"count={count}: the micrograph has only {len(chosen)} separate flat "
                         f"tiles of {size} pixels")
    taken = corners[tuple(np.array(chosen).T)]
    crops = np.stack([image[y:y + size, x:x + size] for y, x in taken])
    return Background(crops, taken, corners.reshape(-1, 2), (slow - middle).ravel(), flat.ravel())


def ring_spectrum(crops: np.ndarray | Tensor | Sequence[np.ndarray], *, taper: float = 0.1,
                  order: int = 1, shared: bool = True) -> RingSpectrum:
    """Power spectrum of the noise in crops of flat background.

    What all crops share (gain errors of the same pixels, illumination) is subtracted where there
    are three or more, then from each crop a polynomial of the coordinates. Edges are tapered to
    0 by a cosine (Tukey window), since a crop of a larger field does not continue periodically.
    The spectrum is corrected for all three, and the weights for what each of them costs.

    Args:
        crops: (n, ny, nx), sides >= 32 [counts].
        taper: fraction of each side over which the edges fade, 0 (for periodic images) to 1.
        order: of the polynomial: 0 for the mean, 1 for a plane, 2 for a parabola.
        shared: whether crops may share an image, which costs one crop's worth of information;
            False for simulated ones.

    Raises:
        ValueError: if an argument is not allowed, or the crops are not finite or are constant.
    """
    stack = _checked(crops, taper, order)
    n, ny, nx = stack.shape
    mean = float(stack.mean())
    shared = shared and n >= 3
    noise = stack - stack.mean(axis=0) if shared else stack
    basis = _polynomials(ny, nx, order)
    noise = noise - np.tensordot(np.tensordot(noise, basis, ([1, 2], [1, 2])), basis, 1)
    # At the middles of pixels, so that none of them is lost.
    along, across = (signal.windows.tukey(2 * n + 1, taper)[1::2] for n in (ny, nx))
    window = along[:, None] * across
    power = np.abs(np.fft.rfft2(noise * window)) ** 2 / (window**2).sum()
    # Of white noise the polynomials take this part of each ordinate away.
    kept = 1 - (np.abs(np.fft.rfft2(basis * window)) ** 2).sum(axis=0) / (window**2).sum()
    w = np.hypot(np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx))
    # Conjugate pairs count once; columns 0 and Nyquist hold both members.
    independent = np.ones(w.shape)
    independent[:, 0] = 0.5
    if nx % 2 == 0:
        independent[:, -1] = 0.5
    independent[kept < 0.5] = 0
    ring = np.rint(w * min(ny, nx)).astype(int).ravel()
    total = np.bincount(ring, independent.ravel())
    used = total > 0

    def mean_of(values: np.ndarray) -> np.ndarray:
        return np.bincount(ring, (values * independent).ravel())[used] / total[used]

    each = np.stack([mean_of(one / np.maximum(kept, 0.5)) for one in power])
    # A taper makes neighbours similar: Bartlett's factor of fewer independent ordinates.
    loss = window.size * (window**4).sum() / (window**2).sum() ** 2
    count = total[used] / loss
    degrees = n - 1 if shared else n
    dispersion = _dispersion(each, count)
    return RingSpectrum(w=mean_of(w), power=each.sum(axis=0) / degrees,
                        weight=degrees * count / dispersion, mean=mean, dispersion=dispersion,
                        shared_removed=shared)


def plain(name: str, image: object) -> np.ndarray:
    """Images as a float64 array; ValueError, which names them, where they are not finite."""
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    try:
        plain = np.asarray(image, dtype=float)
    except ValueError as error:
        raise ValueError(f"{name}: must be images of one size") from error
    if not np.isfinite(plain).all():
        raise ValueError(f"{name}: must be finite, {int((~np.isfinite(plain)).sum())} of "
                         f"{plain.size} pixels are not")
    return plain


def _checked(crops: object, taper: float, order: int) -> np.ndarray:
    stack = plain("crops", crops)
    if stack.ndim != 3 or len(stack) == 0 or min(stack.shape[1:]) < _LEAST_SIDE:
        raise ValueError(f"crops has shape {stack.shape}: must be (n, ny, nx), at least one image "
                         f"with sides of at least {_LEAST_SIDE} pixels")
    if not 0 <= taper <= 1:
        raise ValueError(f"taper={taper:g}: must be from 0 to 1")
    if order not in (0, 1, 2):
        raise ValueError(f"order={order}: must be 0, 1 or 2")
    constant = np.ptp(stack, axis=(1, 2)) == 0
    if constant.any():
        raise ValueError(f"crops[{int(constant.argmax())}]: is constant, must hold noise")
    if len(stack) >= 3 and (stack == stack[0]).all():
        raise ValueError("crops: are copies of one image, must hold independent noise")
    return stack


def _dispersion(each: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Ratio of the scatter between crops (n, rings) to that of equal noise, >= 1, per ring."""
    n = len(each)
    result = np.ones(len(count))
    if n < 3:
        return result
    relative = each / each.mean(axis=0)
    strength = (relative * count).sum(axis=1, keepdims=True) / count.sum()  # doses may differ
    scatter = count * ((relative - strength) ** 2).sum(axis=0) / (n - 1)
    for rings in np.array_split(np.arange(len(count)), max(1, len(count) // 15)):
        # A mean of squares of nearly normal numbers, n - 1 a ring; small counts are skewed.
        excess = (2 + 6 / count[rings]).sum() / (n - 1)
        mean = scatter[rings].mean()
        if mean > 1 + 3 * np.sqrt(excess) / len(rings):
            result[rings] = mean
    return result


def _polynomials(ny: int, nx: int, order: int) -> np.ndarray:
    """Orthonormal images (m, ny, nx) that span the polynomials up to an order."""
    y, x = np.linspace(-1, 1, ny)[:, None], np.linspace(-1, 1, nx)
    terms = [x**i * y**j for i in range(order + 1) for j in range(order + 1 - i)]
    columns = np.stack([np.broadcast_to(term, (ny, nx)).ravel() for term in terms], axis=1)
    return np.linalg.qr(columns)[0].T.reshape(-1, ny, nx)


def without_plane(blocks: np.ndarray) -> np.ndarray:
    """Images (..., ny, nx) without their mean and slope."""
    basis = _polynomials(blocks.shape[-2], blocks.shape[-1], 1)
    return blocks - np.tensordot(np.tensordot(blocks, basis, ([-2, -1], [1, 2])), basis, 1)


def _apart(indices: np.ndarray, count: int) -> list[tuple[int, int]]:
    """The first `count` index pairs of half-overlapping tiles that do not overlap."""
    chosen: list[tuple[int, int]] = []
    for row, column in indices.tolist():
        if len(chosen) < count and all(abs(row - y) > 1 or abs(column - x) > 1 for y, x in chosen):
            chosen.append((row, column))
    return chosen
