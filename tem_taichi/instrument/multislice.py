"""Electron-specimen interaction: slices of potential to the exit wave."""

import math

import taichi as ti
import torch

from tem_taichi.arguments import (
    VOLTAGES,
    as_field,
    check_array,
    check_number,
    check_positive_number,
    to_field,
)
from tem_taichi.bridge import differentiable
from tem_taichi.device import as_tensor, current, many_threads
from tem_taichi.grid import frequencies, pixel_length
from tem_taichi.instrument.passes import Slice, Wanted, Way, room_for, transmit, transmit_adjoint
from tem_taichi.physics import interaction_constant, wavelength

_KEPT = 16
"""The wave behind each of up to so many slices is kept for the gradient, of more one of each
root."""

MODES = ("multislice", "projection", "weak_phase")


def fresnel_propagator(
    shape: tuple[int, int],
    pixel_size: float | torch.Tensor,
    wavelength: float | torch.Tensor,
    distance: float | torch.Tensor,
) -> torch.Tensor:
    """Free-space transfer function, without band limit.

    P(k) = exp(-i pi wavelength distance |k|^2) (Kirkland 2020, eq. 6.65, paraxial).

    Args:
        shape: (ny, nx).
        pixel_size: [A].
        wavelength: [A].
        distance: [A], positive downstream.

    Returns:
        Complex tensor (ny, nx) in FFT order; differentiable in all lengths.
    """
    check_number("wavelength", wavelength, "A", above=0.0, high=1.0)
    check_number("distance", distance, "A")
    rows, columns = _fresnel_factors(shape, pixel_length(pixel_size), wavelength, distance)
    return rows[:, None] * columns


def _fresnel_factors(
    shape: tuple[int, int],
    pixel_size: float | torch.Tensor,
    wavelength: float | torch.Tensor,
    distance: float | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as factors of ky and kx, complex (ny,) and (nx,), without checks."""
    def factor(n: int) -> torch.Tensor:
        angle = -math.pi * wavelength * distance * frequencies(n, pixel_size) ** 2
        return torch.polar(torch.ones_like(angle), angle)

    return factor(shape[0]), factor(shape[1])


def propagated(
    wave: torch.Tensor, pixel_size: float, distance: float, voltage: float | torch.Tensor
) -> torch.Tensor:
    """A wave some distance on, through nothing.

    Args:
        wave: complex (ny, nx).
        pixel_size: [A].
        distance: [A], positive downstream.
        voltage: [kV].

    Returns:
        Complex (ny, nx); differentiable in the wave and the voltage. The wave is overwritten where
        no gradient is asked for.
    """
    rows, columns = _fresnel_factors((wave.shape[-2], wave.shape[-1]), pixel_size,
                                     as_tensor(wavelength(voltage)), distance)
    if torch.is_grad_enabled() and (wave.requires_grad or rows.requires_grad):
        return torch.fft.ifft2(torch.fft.fft2(wave) * rows[:, None] * columns)
    return Way(rows, columns).propagate(wave, wave)


def _slice(slices, absorption, phase, decay, n):  # type: ignore[no-untyped-def]
    return Slice(slices[n], absorption[n] if len(absorption) else None, phase, decay)


@ti.ad.grad_replaced
def _interact(slices, absorption, incident, rows, columns, phase, decay, every, kept, out):  # type: ignore[no-untyped-def]
    """Multislice; keeps the wave behind every `every`-th slice in `kept`, if it has any."""
    wave, way, room = incident, Way(rows, columns), room_for(incident)
    for n in range(len(slices)):
        # In place where nothing is kept, but not in what was given.
        behind = wave if n else out
        if len(kept) and n % every == 0:
            behind = kept[n // every]
        transmit(wave, _slice(slices, absorption, phase, decay, n), behind, room)
        wave = way.propagate(behind, out)
    if wave is not out:
        out.copy_(wave)


@ti.ad.grad_for(_interact)
def _interact_adjoint(  # type: ignore[no-untyped-def]
    slices, absorption, incident, rows, columns, phase, decay, every, kept, out
):
    """Adjoint of `_interact`: waves between the kept ones are computed again."""
    grad, way, room = out.grad.clone(), Way(rows, columns), room_for(out)
    between = out.new_empty((every - 1, *out.shape))
    # Of the propagator and of single numbers one value a pixel, summed at the end.
    of_factors = None if rows.grad is None and columns.grad is None else torch.zeros_like(grad)
    of_phase, of_decay = (None if number.grad is None else torch.zeros_like(grad.real)
                          for number in (phase, decay))
    for block in reversed(range(len(kept))):
        start = block * every
        here = [_slice(slices, absorption, phase, decay, n)
                for n in range(start, min(start + every, len(slices)))]
        behind = [kept[block], *between[:len(here) - 1]]
        for n, one in enumerate(here[1:], 1):
            transmit(way.propagate(behind[n - 1], behind[n]), one, behind[n], room)
        for n, one in reversed(list(enumerate(here))):
            grad = way.adjoint(grad, behind[n], of_factors)
            transmit_adjoint(behind[n], one, grad, Wanted(
                None if slices.grad is None else slices.grad[start + n],
                None if absorption.grad is None or one.absorbing is None
                else absorption.grad[start + n], of_phase, of_decay), room)
    if incident.grad is not None:
        incident.grad += grad
    if of_factors is not None:
        of_factors /= out.numel()
        if rows.grad is not None:
            rows.grad += of_factors @ columns.conj()
        if columns.grad is not None:
            columns.grad += rows.conj() @ of_factors
    for number, found in ((phase, of_phase), (decay, of_decay)):
        if found is not None:
            number.grad += found.sum()


def _band_limited(slices, absorption, incident, propagator, phase, decay, band):  # type: ignore[no-untyped-def]
    """The same with a limit on every transmission function and propagator, plainly."""
    wave = incident
    for n, potential in enumerate(slices):
        exponent = torch.complex(-decay, phase) * potential
        if len(absorption):
            exponent = exponent - phase * absorption[n]
        transmission = torch.fft.ifft2(torch.fft.fft2(torch.exp(exponent)) * band)
        wave = torch.fft.ifft2(torch.fft.fft2(wave * transmission) * (propagator * band))
    return wave


def multislice(
    slices: torch.Tensor,
    pixel_size: float | torch.Tensor,
    slice_thickness: float | torch.Tensor,
    voltage: float | torch.Tensor,
    *,
    amplitude_contrast: float | torch.Tensor = 0.0,
    mode: str = "multislice",
    incident: torch.Tensor | None = None,
    band: torch.Tensor | None = None,
) -> torch.Tensor:
    """Exit wave of a plane wave (or another) behind a stack of slices.

    psi <- F^-1[P F(psi t_n)], t_n = exp(i sigma V_n), first slice first and propagation also
    behind the last (Kirkland 2020, ch. 6). Neither t nor P is band-limited: both are unitary
    then, no electron is lost, and waves are nearer to those of a finer grid than with the
    customary limit at 2/3 Nyquist, as long as the slices themselves keep to it.

    Args:
        slices: projected potential [V A], shape (n_slices, ny, nx), real; or complex, whose
            imaginary part absorbs where positive. Arrays are made tensors, here and below.
        pixel_size: [A].
        slice_thickness: distance between slices [A].
        voltage: [kV].
        amplitude_contrast: Q in V (sqrt(1 - Q^2) + i Q), the ratio of absorption to
            potential, within [0, 1), beside what complex slices absorb.
        mode: "multislice"; "projection", all slices as one phase object at the exit plane;
            "weak_phase", 1 + i sigma V of it.
        incident: wave before the first slice, complex (ny, nx), or (b, ny, nx) of b waves, which
            pass one after another; by default 1.
        band: factor (ny, nx), in FFT order, on the spectrum of every transmission function and
            propagator, for comparison with programs that limit them, see `grid.band_limit`;
            slower, and "multislice" only.

    Returns:
        Complex exit wave at the end of the last slice, of the incident one's shape; differentiable
        in every continuous argument. The memory for gradients grows with the square root of the
        number of slices.

    Raises:
        ValueError: for an unknown mode, a wrong shape, or values out of range.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
    slices = _stack(to_field("slices", slices, "either"))
    pixel_size = pixel_length(pixel_size)
    check_number("voltage", voltage, "kV", *VOLTAGES)
    check_number("amplitude_contrast", amplitude_contrast, "1", 0.0, below=1.0)
    check_positive_number("slice_thickness", slice_thickness, "A")
    shape = (slices.shape[1], slices.shape[2])
    if band is not None:
        band = to_field("band", band)
        check_array("band", band, shape, "1")
    incident = _checked_incident(incident, shape, slices.device)

    def behind(wave: torch.Tensor) -> torch.Tensor:
        return interact(slices, pixel_size, slice_thickness, voltage, mode=mode, incident=wave,
                        amplitude_contrast=amplitude_contrast, band=band)

    return behind(incident) if incident.ndim == 2 else torch.stack(list(map(behind, incident)))


def interact(
    slices: torch.Tensor,
    pixel_size: float | torch.Tensor,
    slice_thickness: float | torch.Tensor,
    voltage: float | torch.Tensor,
    *,
    amplitude_contrast: float | torch.Tensor,
    mode: str,
    incident: torch.Tensor,
    band: torch.Tensor | None = None,
) -> torch.Tensor:
    """`multislice` of one wave, whose values are not looked at: that would wait for a GPU.

    Args:
        slices: see `multislice`, and so is all else.
        pixel_size: [A].
        slice_thickness: [A].
        voltage: [kV].
        amplitude_contrast: Q.
        mode: of MODES.
        incident: one wave, complex (ny, nx).
        band: factor (ny, nx), or None.

    Raises:
        ValueError: for slices of a wrong shape or type.
    """
    slices = _stack(as_field("slices", slices, "either"))
    if slices.shape[1:] != incident.shape:
        raise ValueError(f"slices of shape {tuple(slices.shape)}: must be (n_slices, "
                         f"{incident.shape[0]}, {incident.shape[1]}), as the wave is")
    shape = (slices.shape[1], slices.shape[2])
    sigma = as_tensor(interaction_constant(voltage))
    contrast = as_tensor(amplitude_contrast)
    slices, absorption = (slices.real, slices.imag) if slices.is_complex() else (
        slices, slices[:0])
    phase = (sigma * (1 - contrast**2).sqrt()).reshape(1)
    decay = (sigma * contrast).reshape(1)
    if mode != "multislice":
        whole = _sum(slices)
        real, lost = phase * whole, decay * whole
        if len(absorption):
            lost = lost + sigma * _sum(absorption)
        if mode == "weak_phase":
            return incident * torch.complex(1 - lost, real)
        return incident * torch.polar(torch.exp(-lost), real)
    rows, columns = _fresnel_factors(shape, pixel_size, as_tensor(wavelength(voltage)),
                                     as_tensor(slice_thickness))
    if band is not None:
        return _band_limited(slices, absorption, incident, rows[:, None] * columns, phase, decay,
                             band)
    return _passed(slices, absorption, incident, rows, columns, phase, decay)


def _sum(slices: torch.Tensor) -> torch.Tensor:
    """Of all slices; no copy where there is but one."""
    return slices[0] if len(slices) == 1 else slices.sum(0)


def _stack(slices: torch.Tensor) -> torch.Tensor:
    if slices.ndim != 3:
        raise ValueError(f"slices of shape {tuple(slices.shape)}: must be (n_slices, ny, nx)")
    return slices


def _checked_incident(
    incident: torch.Tensor | None, shape: tuple[int, int], device: torch.device
) -> torch.Tensor:
    if incident is None:
        return torch.ones(shape, dtype=current().complex_dtype, device=device)
    incident = to_field("incident", incident, "complex")
    if incident.ndim not in (2, 3) or tuple(incident.shape[-2:]) != shape:
        raise ValueError(f"incident of shape {tuple(incident.shape)}: must be {shape}, or (b, "
                         f"{shape[0]}, {shape[1]}) of b waves")
    return incident


def _passed(
    slices: torch.Tensor, absorption: torch.Tensor, incident: torch.Tensor,
    rows: torch.Tensor, columns: torch.Tensor, phase: torch.Tensor, decay: torch.Tensor,
) -> torch.Tensor:
    """The stage, with room for the waves that its adjoint begins from."""
    needs_grad = torch.is_grad_enabled() and any(
        t.requires_grad for t in (slices, absorption, incident, rows, columns, phase, decay))
    every = 1 if len(slices) <= _KEPT else math.isqrt(len(slices))
    n_kept = -(-len(slices) // every) if needs_grad else 0
    kept = torch.empty((n_kept, *incident.shape), dtype=incident.dtype, device=slices.device)
    if many_threads():
        slices, absorption = slices.contiguous(), absorption.contiguous()
    return differentiable(_interact, torch.empty_like(incident), slices, absorption,
                          incident.contiguous(), rows, columns, phase, decay, every, kept)
