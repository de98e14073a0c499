"""How slices share scatterers along the beam, what waves make of it, and how thick slices may be.

A scatterer at depth z gives a wave at its exit the phase factor exp(i pi lambda k^2 z) at each
frequency k. Slices know it at their own depths only, one thickness D apart, and theta = pi lambda
k^2 D is all that matters. Put wholly into its slice ("nearest"), the factor is off by theta /
sqrt(12) rms. Shared linearly by the two slices about it ("smooth"), its mean depth is kept: the
error is theta^2 / 11, most of it the same attenuation wherever the scatterer is, which
`compensation` takes out; theta^2 / 27 is left.
"""

import math

import torch

from tem_taichi.grid import BAND_LIMIT, squared_frequencies
from tem_taichi.physics import Value, wavelength

DEPTHS = ("nearest", "smooth")

_THETA = {"nearest": 0.06, "smooth": 0.6}
"""Largest theta, that of the image's highest frequency, of slices as thick as 1 % allows: over a
disk of frequencies with equal signal the errors above are 1.0 and 0.6 % rms."""


def depth_for(depth: str | None, *moving: object) -> str:
    """The depth asked for; by default "smooth" where a gradient in z is asked for.

    Args:
        depth: of `depth_weights`, or None.
        *moving: what moves scatterers in z. Whether one of them requires a gradient decides, also
            under torch.no_grad, where only leaf tensors do.
    """
    wanted = any(isinstance(value, torch.Tensor) and value.requires_grad for value in moving)
    return depth or ("smooth" if wanted else "nearest")


def depth_weights(
    z: torch.Tensor, n_slices: int, depth: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which slices each scatterer belongs to, and what part of it to each of them.

    "nearest" puts a scatterer wholly into the slice that holds it: no gradient in z. "smooth"
    shares it linearly between the two slices whose centres enclose it, so that its mean depth is
    its own: its gradient in z is the difference of the two over a thickness, which jumps where it
    passes a slice's centre (there it is that towards larger z). Within half a slice of either end
    the last slice has it whole. At a doubled splat.

    Args:
        z: depth in slices from the entrance plane, shape (n,), within [0, n_slices].
        n_slices: number of slices.
        depth: "nearest" or "smooth".

    Returns:
        numbers of slices (m, n), those of a scatterer all different, and its weights in them
        (m, n), whose sum over m is 1; m is 1 or 2.

    Raises:
        ValueError: for another depth.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth={depth!r}: must be {' or '.join(map(repr, DEPTHS))}")
    if depth == "nearest" or n_slices == 1:  # a single slice has nothing to share
        layer = z.detach().floor().long().clamp(0, n_slices - 1)
        return layer[None], z.new_ones(()).expand(1, len(z))
    from_centre = z - 0.5
    first = from_centre.detach().floor().long().clamp(0, n_slices - 2)
    part = (from_centre - first).clamp(0, 1)
    return torch.stack([first, first + 1]), torch.stack([1 - part, part])


def spare(depth: str, slice_thickness: float) -> float:
    """How far beyond the outermost scatterers slices must reach [A].

    Args:
        depth: of `depth_weights`.
        slice_thickness: [A].
    """
    return slice_thickness / 2 if depth == "smooth" else 0.0


def compensation(
    depth: str, shape: tuple[int, int], pixel_size: float, slice_thickness: Value, voltage: Value
) -> torch.Tensor | None:
    """Factor on the spectrum of shared scatterers that makes up for the mean attenuation of it.

    Seen from its own depth, a linearly shared scatterer at fraction f of the way between two
    slices acts as h = (1 - f) exp(-i theta f) + f exp(i theta (1 - f)). The factor of least mean
    square error is <h> / <|h|^2> over all f, = 3 sinc^2(nu) / (2 + cos(2 pi nu)) with
    nu = theta / (2 pi) = lambda k^2 D / 2 and sinc(x) = sin(pi x) / (pi x): 1 at k = 0, about
    1 + theta^2 / 12, nowhere above 1.45, and 0 where slices are too far apart to know anything.
    For waves that propagate between slices only: a projection needs the weights alone.

    Args:
        depth: of `depth_weights`.
        shape: (ny, nx).
        pixel_size: [A].
        slice_thickness: D [A].
        voltage: [kV]; differentiable.

    Returns:
        Real tensor (ny, nx // 2 + 1) for the rfft2; None where it is 1 everywhere.
    """
    if depth == "nearest":
        return None
    nu = squared_frequencies(shape, pixel_size, half=True) * (
        wavelength(voltage) * slice_thickness / 2)
    return 3 * torch.sinc(nu) ** 2 / (2 + torch.cos(2 * math.pi * nu))


def highest_frequency(pixel_size: float, oversampling: float = 1.5) -> float:
    """Of what an image holds [1/A]: the detector's Nyquist frequency, or its corners'.

    Args:
        pixel_size: of the detector at the specimen [A].
        oversampling: detector pixels over wave pixels, whose band may end before.
    """
    return min(BAND_LIMIT * oversampling, math.sqrt(2)) * 0.5 / pixel_size


def thickest(depth: str, frequency: float, voltage: float) -> float:
    """Thickness of slices [A] that keeps the error of images below 1 % of their contrast.

    Derived for weak scattering, and images whose signal is the same at all frequencies; measured
    for protein, virions and gold in docs/slices.md.

    Args:
        depth: of `depth_weights`.
        frequency: highest of the image [1/A].
        voltage: [kV].
    """
    return _THETA[depth] / (math.pi * wavelength(voltage) * frequency**2)
