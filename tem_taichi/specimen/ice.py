"""Granular vitreous ice and carbon: Gaussian random fields with the structure factor of each.

A continuum scatters nothing, molecules do. Thousands of them project onto each other in a
slice, so that its potential is close to a Gaussian random field, known by its power spectrum:
that of a molecule times the structure factor of their arrangement. So do Parkhurst et al.
(2024), Ultramicroscopy 256, 113882, with a spectrum fitted to simulated water, whose ring is
at 2.9 A; that of vitreous ice is at 3.7 A.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch

from tem_taichi.bridge import differentiable, launch
from tem_taichi.checks import check, one_of, whole
from tem_taichi.device import as_tensor, current, number
from tem_taichi.grid import BAND_LIMIT, check_pixel_size
from tem_taichi.kernels.random import noise_pair
from tem_taichi.physics import SCATTERING_TO_POTENTIAL, Value
from tem_taichi.specimen.potential import peng_factors
from tem_taichi.streams import ROOM, Key

_OH, _HH = 0.976, 1.55
"""Distances within a molecule [A], those of the model of ice from which its S(k) is."""

ICE_DENSITY = 0.03075
"""Molecules in an A^3 of ice at 0.92 g/cm^3."""

CARBON_DENSITY = 0.1003
"""Atoms in an A^3 of amorphous carbon at 2.0 g/cm^3."""

# Fitted to the oxygens of the EPSR model of low-density amorphous ice at 80 K: to their g(r)
# below 8 A and its transform (refined against neutron diffraction: Soper 2019, J. Chem. Phys.
# 150, 234503; data under doi 10.5286/edata/729). Correlations beyond 8 A, and S below 0.2 / A,
# are those of a glass of 1728 mW molecules (Molinero & Moore 2009, J. Phys. Chem. B 113, 4008),
# cooled from 240 to 120 K in 2 ns.
_PLATEAU = 0.012
_SHELL = (3.5, 2.711, 0.117)  # number, distance [A], width [A] of the nearest neighbours
_PEAKS = ((0.985, 0.270, 0.0211), (0.496, 0.489, 0.0252), (-3.0, 0.405, 0.0909),
          (-0.881, 0.576, 0.0683), (2.666, 0.414, 0.133))  # height, k and width [1/A]
_HOLE = 0.117  # width [1/A]

_CARBON_DIAMETER = 1.42
"""Nearest distance of two atoms of carbon [A], a bond of graphite."""


def structure_factor(k: torch.Tensor) -> torch.Tensor:
    """S(k) of the oxygens of low-density amorphous ice.

    1 + N sin(q r) / (q r) exp(-q^2 s^2 / 2) for the nearest neighbours, q = 2 pi k, plus
    Gaussians in k. Its peaks of 1.41 at q = 1.71 / A (d = 3.7 A) and 1.77 at 3.06 / A are the
    first two rings of ice. The limit at k = 0, 0.012, is uncertain: 0.006 is that of an elastic
    solid of the modulus of ice frozen in at 136 K, 0.06 that of water.

    Args:
        k: 1/d [1/A], any shape.

    Returns:
        Tensor of that shape, positive; 1 at high k.
    """
    count, distance, width = _SHELL
    blur = torch.exp(-((2 * math.pi * k * width) ** 2) / 2)
    out = 1 + count * torch.sinc(2 * k * distance) * blur
    at_zero = 1 + count
    for height, centre, width in _PEAKS:
        for side in (centre, -centre):
            out = out + height * torch.exp(-((k - side) ** 2) / (2 * width**2))
        at_zero += 2 * height * math.exp(-(centre**2) / (2 * width**2))
    return out - (at_zero - _PLATEAU) * torch.exp(-(k**2) / (2 * _HOLE**2))


def carbon_structure_factor(k: torch.Tensor) -> torch.Tensor:
    """S(k) of amorphous carbon: of hard spheres as large as a bond is long.

    Percus & Yevick's solution in the form of Kinning & Thomas (1984), Macromolecules 17, 1712.
    It keeps atoms apart and no more; it stands in for measured rings, which it has not.

    Args:
        k: 1/d [1/A], any shape.

    Returns:
        Tensor of that shape.
    """
    x = (2 * math.pi * _CARBON_DIAMETER * k.double()).clamp(min=0.05)  # S is flat below
    part = math.pi / 6 * CARBON_DENSITY * _CARBON_DIAMETER**3
    alpha = (1 + 2 * part) ** 2 / (1 - part) ** 4
    beta = -6 * part * (1 + part / 2) ** 2 / (1 - part) ** 4
    sin, cos = torch.sin(x), torch.cos(x)
    overlap = (alpha * (sin - x * cos) / x**2
               + beta * (2 * x * sin + (2 - x**2) * cos - 2) / x**3
               + alpha * part / 2 * (-(x**4) * cos + 4 * ((3 * x**2 - 6) * cos
                                                          + (x**3 - 6 * x) * sin + 6)) / x**5)
    return (1 / (1 + 24 * part * overlap / x)).to(k.dtype)


def slab_structure_factor(
    k: torch.Tensor,
    thickness: float,
    structure: Callable[[torch.Tensor], torch.Tensor] = structure_factor,
) -> torch.Tensor:
    """S(k) in the projection of a slab with sharp faces.

    The integral of S(sqrt(k^2 + kz^2)) L sinc^2(kz L) over kz. The faces cut correlations, which
    adds 0.5 A / L to the S of ice at low k: more than its plateau in any slice.

    Args:
        k: frequencies in the plane [1/A], any shape.
        thickness: L [A], at least 1.
        structure: S of the bulk.

    Returns:
        Tensor of that shape.
    """
    n, step = 360, 1 / 6  # reaches correlations at 30 A, and frequencies of 3 / A
    z = torch.fft.fftfreq(n, d=1 / (n * step), dtype=torch.float64, device=k.device)
    weights = torch.fft.fft((1 - z.abs() / thickness).clamp(min=0)).real / n
    kz = torch.fft.fftfreq(n, d=step, dtype=torch.float64, device=k.device)
    total = (k.double()[..., None] ** 2 + kz**2).sqrt()
    return (1 + ((structure(total) - 1) * weights).sum(-1)).to(k.dtype)


def _factors(k: torch.Tensor) -> torch.Tensor:
    """Peng's scattering factors of H, C and O [A], shape (3, ...)."""
    table = torch.as_tensor(peng_factors()[[1, 6, 8]]).to(k)
    return (table[:, 0] * torch.exp(-table[:, 1] * k[..., None, None] ** 2)).sum(-1).movedim(-1, 0)


def molecule_scattering(k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a molecule of water about its oxygen, averaged over its orientations.

    `<F> = f_O + 2 f_H j(OH)` and `<F^2> = f_O^2 + 4 f_O f_H j(OH) + 2 f_H^2 (1 + j(HH))` with
    j(d) = sin(2 pi k d) / (2 pi k d) (Debye 1915) and the factors of neutral atoms.

    Args:
        k: frequencies [1/A], any shape.

    Returns:
        `<F>` [A] and `<F^2>` [A^2], each of that shape.
    """
    hydrogen, _, oxygen = _factors(k)
    bond, pair = (torch.sinc(2 * k * distance) for distance in (_OH, _HH))
    return (oxygen + 2 * hydrogen * bond,
            oxygen**2 + 4 * oxygen * hydrogen * bond + 2 * hydrogen**2 * (1 + pair))


def ice_power(k: torch.Tensor, structure: torch.Tensor | None = None) -> torch.Tensor:
    """Power spectrum of the potential of ice without its mean, per volume.

    `P = (h^2 / (2 pi m0 e))^2 density (<F^2> + <F>^2 (S - 1))`: molecules whose orientations do
    not depend on each other. A projection through a thickness L has the power L P(kx, ky, 0)
    per area [V^2 A^4].

    Args:
        k: frequencies [1/A], any shape.
        structure: S at these; by default `structure_factor`.

    Returns:
        Tensor of that shape [V^2 A^3].
    """
    mean, square = molecule_scattering(k)
    structure = structure_factor(k) if structure is None else structure
    return SCATTERING_TO_POTENTIAL**2 * ICE_DENSITY * (square + mean**2 * (structure - 1))


def carbon_power(k: torch.Tensor) -> torch.Tensor:
    """The same of amorphous carbon [V^2 A^3]."""
    atom = _factors(k)[1]
    return (SCATTERING_TO_POTENTIAL * atom) ** 2 * CARBON_DENSITY * carbon_structure_factor(k)


MATERIALS = {"ice": ice_power, "carbon": carbon_power}
"""Power spectrum of each granular material."""


def mean_potential(material: str = "ice") -> float:
    """Mean inner potential of free atoms at the material's density [V]: 4.48 of ice.

    That of carbon, 12 V, is above the 9 to 11 V measured on films: bonds contract the atoms.
    """
    one_of("material", material, tuple(MATERIALS))
    hydrogen, carbon, oxygen = (float(f) for f in _factors(torch.zeros((), dtype=torch.float64)))
    summed = {"ice": ICE_DENSITY * (oxygen + 2 * hydrogen), "carbon": CARBON_DENSITY * carbon}
    return SCATTERING_TO_POTENTIAL * summed[material]


@lru_cache(maxsize=8)
def _amplitudes(material: str, pixel_size: float) -> np.ndarray:
    """Root of the power for a thickness of 1 A, at even steps of k from 0 to the band's end."""
    # Linear in between: to 1e-4 where S is sharpest.
    k = torch.linspace(0, BAND_LIMIT / 2 / pixel_size, 4096, dtype=torch.float64)
    return np.sqrt(MATERIALS[material](k).numpy()) / pixel_size


def _draw(words, amplitudes, out):  # type: ignore[no-untyped-def]
    launch(noise_pair, *words, amplitudes, BAND_LIMIT / 2, out)


def ice_fields(
    shape: tuple[int, int],
    pixel_size: float,
    indices: Sequence[int],
    seed: int,
    stream: int,
    material: str = "ice",
) -> Iterator[torch.Tensor]:
    """The fields of `ice_slice` for a thickness of 1 A, one after another.

    One complex transform makes two, those of an even index and of the next, as its real and its
    imaginary part: it takes as long as that of a real one.

    Args:
        shape: (ny, nx).
        pixel_size: [A].
        indices: of slices, in increasing order.
        seed: of the specimen.
        stream: which of its independent fields.
        material: "ice" or "carbon".

    Yields:
        Tensors (ny, nx) [V A / sqrt(A)], every second number of a larger array.
    """
    device, key = current(), Key(seed, "ice", stream)
    check(max(shape) < 3 << 15, "shape", list(shape), "below 98304 pixels along a side")
    table = as_tensor(_amplitudes(material, pixel_size) / math.sqrt(math.prod(shape)))
    pair, wave = None, torch.empty(0)
    for index in indices:
        if index // 2 != pair:
            pair = index // 2
            wave = torch.empty(shape, dtype=device.complex_dtype, device=device.torch_device)
            differentiable(_draw, torch.view_as_real(wave),
                           key.words(pair, list(MATERIALS).index(material)), table)
            wave = torch.fft.ifft2(wave, norm="forward")  # out=wave would copy the result
        yield wave.imag if index % 2 else wave.real


def ice_slice(
    shape: tuple[int, int],
    pixel_size: float,
    slice_thickness: Value,
    seed: int,
    stream: int,
    index: int,
    strength: Value = 1.0,
    material: str = "ice",
) -> torch.Tensor:
    """Projected potential of one slice of granular ice or carbon, without its mean.

    A Gaussian random field with the power slice_thickness P(k), independent of that of all
    other slices, so that any stack of slices has exactly the power of a slab of their total
    thickness: this is what an image shows, since the Ewald sphere keeps within 0.003 / A of
    the plane kz = 0. The slices of real ice, each by itself, vary more at low k, where a part
    of them is undone by their neighbours, see `slab_structure_factor`.

    Args:
        shape: (ny, nx).
        pixel_size: [A].
        slice_thickness: [A], not negative.
        seed: of the specimen, from 0.
        stream: which of its independent fields, 0 to 2^32 - 1: one for each view, say.
        index: of the slice, of either sign.
        strength: factor of the amplitude; 1 is physical.
        material: "ice" or "carbon".

    Returns:
        Tensor (ny, nx) [V A], band-limited to 2/3 Nyquist, periodic, of mean zero; the same for
        the same arguments, and on finer pixels over the same field the same with more detail.
        Differentiable in slice_thickness and strength.

    Raises:
        ValueError: for values out of range.
    """
    pixel_size = check_pixel_size(pixel_size)
    one_of("material", material, tuple(MATERIALS))
    whole("stream", stream, 0, ROOM - 1)
    check(number(slice_thickness) >= 0, "slice_thickness", number(slice_thickness),
          "not negative [A]")
    field = next(ice_fields(shape, pixel_size, [index], seed, stream, material))
    return field * (as_tensor(strength) * as_tensor(slice_thickness).sqrt())
