"""Pictures by shrinking Fourier coefficients: Gaussian priors of known spectra, in closed form.

Of a coefficient y of what was recorded, with signal power P and noise power S, the posterior mean
is P / (P + S) y (Wiener). Priors differ in where P comes from. All is in electrons as the camera
blurs them; the MTF can be divided out of what is left.
"""

import torch
from torch import Tensor

from tem_taichi.estimate.noise_law import Law, transfer
from tem_taichi.noise import curves

_BORDER = 32
"""Pixels at least that lead from an edge to the opposite one."""
_ALIKE = 4.0
"""Coefficients over which regressions are averaged, standard deviation."""
_NOTHING = 1e-8
"""Of the largest power of what is known, below which nothing is."""
_FAINT = 1e-3
"""MTF below which nothing can be divided out."""


def gaussian(electrons: Tensor, law: Law, width: float, keep: bool = True) -> Tensor:
    """Blur by a Gaussian: no prior but what everybody does.

    Args:
        electrons: recorded, (ny, nx).
        law: of the noise; not looked at.
        width: standard deviation [pixel].
        keep: whether the camera's blur stays; it does in any case.
    """
    w = curves.radial_frequency(*_extended(electrons).shape)
    return _filtered(electrons, torch.exp(-2 * torch.pi**2 * width**2 * w**2))


def smooth(electrons: Tensor, law: Law, sigma: float, keep: bool = True) -> Tensor:
    """Neighbours differ by normal numbers: `inverse.priors.smooth` in closed form.

    Args:
        electrons: recorded, (ny, nx).
        law: of the noise.
        sigma: standard deviation of the differences, relative to the mean.
        keep: whether the camera's blur stays.
    """
    shape = _extended(electrons).shape
    mtf, noise = transfer(law, (shape[0], shape[1]))
    mean = electrons.mean()
    ky = torch.fft.fftfreq(shape[0], device=electrons.device)[:, None]
    kx = torch.fft.rfftfreq(shape[1], device=electrons.device)
    roughness = 4 * (torch.sin(torch.pi * ky) ** 2 + torch.sin(torch.pi * kx) ** 2)
    signal = (mtf * sigma * mean).square()
    return _filtered(electrons, signal / (signal + mean * noise * roughness), mtf, keep)


def spectral(electrons: Tensor, law: Law, width: float, keep: bool = True) -> Tensor:
    """Signal power from the image itself, less what the noise has of it.

    Args:
        electrons: recorded, (ny, nx).
        law: of the noise.
        width: standard deviation over which the spectrum is averaged [coefficients of the longer
            side], in all directions; 0 = the same on each ring.
        keep: whether the camera's blur stays.
    """
    image = _extended(electrons)
    mtf, noise = transfer(law, (image.shape[0], image.shape[1]))
    noise = noise * image.mean()
    periodogram = torch.fft.rfft2(image - image.mean()).abs().square() / image.numel()
    excess = periodogram / noise
    excess[0, 0] = 1.0
    mean = _over_rings(excess) if width == 0 else _over_neighbours(excess, image.shape, width)
    kept = (1 - 1 / mean.clamp(min=1e-9)).clamp(min=0)
    return _filtered(electrons, kept, mtf, keep)


def local(electrons: Tensor, law: Law, window: int, pilot: Tensor, keep: bool = True) -> Tensor:
    """Signal power of every window from a first estimate: spectra change from place to place.

    Windows overlap by three quarters, each with its own mean and, by that, its own noise; what
    they say of a pixel is averaged. The second step of Dabov et al. 2007 for one window.

    Args:
        electrons: recorded, (ny, nx).
        law: of the noise.
        window: side [pixel], a multiple of 8, at most half of the image's.
        pilot: a first estimate, blurred as the camera does, (ny, nx).
        keep: whether the camera's blur stays.
    """
    mtf, noise = transfer(law, (window, window))
    line = torch.hann_window(window, dtype=electrons.dtype, device=electrons.device).sqrt()
    taper = line[:, None] * line
    power = noise * taper.square().sum()
    divide = torch.ones_like(mtf) if keep else _inverse(mtf)
    step = window // 4
    ny, nx = electrons.shape
    # Whole windows, from one that ends before the image to one that begins after it.
    padding = (window, window + (-nx) % step, window, window + (-ny) % step)
    image, first = (torch.nn.functional.pad(field[None], padding, mode="reflect")[0]
                    for field in (electrons, pilot))
    out = torch.zeros_like(image)
    for top in range(0, image.shape[0] - window + 1, step):
        rows = slice(top, top + window)
        seen, known = (field[rows].unfold(1, window, step).transpose(0, 1)
                       for field in (image, first))
        mean = (known * taper).sum((-2, -1), keepdim=True) / taper.sum()
        signal = torch.fft.rfft2((known - mean) * taper).abs().square()
        shrunk = signal / (signal + power * mean.clamp(min=1e-9)) * divide
        back = torch.fft.irfft2(torch.fft.rfft2((seen - mean) * taper) * shrunk,
                                s=(window, window)) + mean * taper
        _add_windows(out, top, back * taper, step)
    # Squares of the taper sum to 2 along either axis.
    return out[window:window + ny, window:window + nx] / 4


def explained(electrons: Tensor, known: Tensor) -> Tensor:
    """What of a recording another picture explains, frequency by frequency.

    Each coefficient of the other is scaled by its regression among the neighbours, as far as that
    is more than chance: |c|^2 / (p q) has the mean 1 / n where n coefficients of powers p and q
    know nothing of each other, and the share of c that it is beyond that is kept.

    Args:
        electrons: recorded, (ny, nx).
        known: of the same picture, in any scale, with noise of its own, (ny, nx).

    Returns:
        (ny, nx), of mean 0.
    """
    one, other = (torch.fft.rfft2((image - image.mean()).double()) for image in map(
        _extended, (electrons, known)))
    shape = _extended(known).shape
    shared, power, all_power = (_over_neighbours(values, shape, _ALIKE) for values in (
        (one * other.conj()).real, other.abs().square(), one.abs().square()))
    # Of a Gaussian window in two directions, halved as Friedel's mates tell the same.
    chance = power * all_power / (2 * torch.pi * _ALIKE**2)
    sure = (1 - chance / shared.square().clamp(min=1e-30)).clamp(min=0)
    # Where there is nothing but what rounding has left, nothing is known.
    least = _NOTHING * power.max().clamp(min=1e-30)
    slope = torch.where(power > least, shared / power.clamp(min=least), 0.0).clamp(min=0) * sure
    ny, nx = electrons.shape
    part = torch.fft.irfft2(other * slope, s=shape)[:ny, :nx].to(electrons)
    return part - part.mean()


def sharpened(image: Tensor, law: Law) -> Tensor:
    """An image without noise, with the camera's blur divided out.

    Args:
        image: (ny, nx).
        law: whose MTF it is.
    """
    shape = _extended(image).shape
    mtf = transfer(law, (shape[0], shape[1]))[0]
    return _filtered(image, torch.ones_like(mtf), mtf, keep=False)


def _add_windows(out: Tensor, top: int, windows: Tensor, step: int) -> None:
    """Add windows (n, b, b) of the rows from `top` on, b / step of them over each other."""
    side = windows.shape[-1]
    for first in range(side // step):
        part = windows[first::side // step]
        if len(part):
            row = part.transpose(0, 1).reshape(side, -1)
            out[top:top + side, first * step:first * step + row.shape[1]] += row


def _extended(image: Tensor) -> Tensor:
    """The image with a border that leads from each edge to the opposite one without a jump.

    There each edge's mirror image fades into the other's: no cross in the spectrum.
    """
    for axis in (0, 1):
        n = image.shape[axis]
        border = _fast(n + min(_BORDER, n // 2)) - n
        fade = (torch.arange(border, device=image.device) + 0.5) / border
        fade = (3 * fade**2 - 2 * fade**3).to(image).unsqueeze(1 - axis)
        before = image.narrow(axis, n - border, border).flip(axis)
        after = image.narrow(axis, 0, border).flip(axis)
        # The sum of two independent noises in these shares would be too quiet in the middle.
        loud = (fade**2 + (1 - fade) ** 2).sqrt()
        mean = (1 - fade) * before.mean() + fade * after.mean()
        both = (1 - fade) * (before - before.mean()) + fade * (after - after.mean())
        image = torch.cat([image, both / loud + mean], dim=axis)
    return image


def _fast(n: int) -> int:
    """The next even number whose transform is fast."""
    while True:
        left = n
        for prime in (2, 3, 5):
            while left % prime == 0:
                left //= prime
        if left == 1 and n % 2 == 0:
            return n
        n += 1


def _filtered(electrons: Tensor, shrunk: Tensor, mtf: Tensor | None = None, keep: bool = True
              ) -> Tensor:
    """An image with its coefficients shrunk; its mean stays, and so do its electrons."""
    ny, nx = electrons.shape
    image, mean = _extended(electrons), electrons.mean()
    factor = shrunk if keep or mtf is None else shrunk * _inverse(mtf)
    out = torch.fft.irfft2(torch.fft.rfft2(image - mean) * factor, s=image.shape)[:ny, :nx]
    return out - out.mean() + mean


def _inverse(mtf: Tensor) -> Tensor:
    return torch.where(mtf > _FAINT, 1 / mtf.clamp(min=_FAINT), 0.0)


def _over_rings(values: Tensor) -> Tensor:
    """Mean of each coefficient's ring and, by Gaussian weights, of those next to it."""
    rows, half = values.shape
    side = max(rows, 2 * half - 2)
    w = curves.radial_frequency(rows, 2 * half - 2)
    ring = (w * side + 0.5).long().flatten()
    weight = torch.full_like(values, 2.0)
    weight[:, 0] = weight[:, -1] = 1
    empty = torch.zeros(int(ring.max()) + 1, dtype=torch.float64, device=values.device)
    number, total = (empty.index_add(0, ring, of.flatten().double())
                     for of in (weight, weight * values))
    offsets = torch.arange(-8, 9, device=values.device)
    kernel = torch.exp(-offsets.double() ** 2 / (2 * 2.0**2))[None, None]
    spread = [torch.nn.functional.conv1d(of[None, None], kernel, padding=8)[0, 0]
              for of in (total, number)]
    return (spread[0] / spread[1])[ring].reshape(values.shape).to(values)


def _over_neighbours(values: Tensor, shape: torch.Size, width: float) -> Tensor:
    """Mean with Gaussian weights over the neighbours of each coefficient, in all directions.

    A product with a Gaussian in real space, where the transform of a spectrum has its own mates.
    """
    side = max(shape)
    y, x = (torch.fft.fftfreq(n, 1 / n, device=values.device) for n in shape)
    squared = (y[:, None] ** 2 + x**2).to(values)
    weight = torch.exp(-2 * torch.pi**2 * (width / side) ** 2 * squared)
    correlation = torch.fft.irfft2(values.to(torch.complex64 if values.dtype == torch.float32
                                             else torch.complex128), s=tuple(shape))
    return torch.fft.rfft2(correlation * weight).real
