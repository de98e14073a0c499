"""A wave through one slice and on to the next, in place, and the adjoint of both.

Between two transforms each is one pass through memory by a kernel where threads are many. A CPU
has torch's vectorised cos and sin instead, several times faster there than a scalar kernel.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tem_taichi.bridge import launch
from tem_taichi.device import many_threads
from tem_taichi.kernels import wave as kernels


class Slice(NamedTuple):
    """What a slice does to a wave: exp((i phase - decay) potential - phase absorbing)."""

    potential: Tensor
    """[V A], (ny, nx)."""
    absorbing: Tensor | None
    """Imaginary potential [V A], (ny, nx)."""
    phase: Tensor
    """[rad/(V A)], (1,)."""
    decay: Tensor
    """[1/(V A)], (1,)."""

    def transmission(self, out: Tensor | None) -> Tensor:
        """The exponential (ny, nx) by torch, written to out if it is given."""
        # Not torch's own polar form, which takes half as long again.
        angle = self.potential * self.phase
        real, imaginary = torch.cos(angle), angle.sin_()
        lost = None if self.absorbing is None else self.absorbing * -self.phase
        if bool(self.decay):
            lost = (self.potential * -self.decay if lost is None
                    else lost.sub_(self.potential * self.decay))
        if lost is not None:
            left = lost.exp_()
            real *= left
            imaginary *= left
        return torch.complex(real, imaginary, out=out)


class Wanted(NamedTuple):
    """Where gradients of a slice are added, each (ny, nx) or None."""

    potential: Tensor | None
    absorbing: Tensor | None
    phase: Tensor | None
    """One number a pixel, to be summed."""
    decay: Tensor | None
    """The same."""


def room(n: int, wave: Tensor) -> list[Tensor | None]:
    """Where `transmit` keeps n transmissions for its adjoint; kernels make them again."""
    if many_threads():
        return [None] * n
    return list(torch.empty((n, *wave.shape), dtype=wave.dtype, device=wave.device))


def transmit(wave: Tensor, here: Slice, kept: Tensor | None) -> None:
    """Take a wave (ny, nx) through a slice, in place.

    Args:
        wave: before the slice, then behind it.
        here: the slice.
        kept: where its transmission is written; None = nowhere.
    """
    if many_threads():
        launch(kernels.transmit, _pixels(wave), *_numbers(here), _pixels(wave))
        return
    for rows in _blocks(wave):
        part = Slice(here.potential[rows], None if here.absorbing is None
                     else here.absorbing[rows], here.phase, here.decay)
        wave[rows].mul_(part.transmission(None if kept is None else kept[rows]))


def _blocks(wave: Tensor) -> list[slice]:
    """Rows of a wave that stay in the cache from one step to the next."""
    n = max(1, (1 << 16) // wave.shape[1])
    return [slice(first, first + n) for first in range(0, wave.shape[0], n)]


def _times(wave: Tensor, rows: Tensor, columns: Tensor) -> None:
    """A wave times factors of its rows and columns, in place."""
    for here in _blocks(wave):
        wave[here].mul_(columns).mul_(rows[here, None])


def transmit_adjoint(
    behind: Tensor, here: Slice, kept: Tensor | None, grad: Tensor, wanted: Wanted
) -> None:
    """From the gradient of the wave behind a slice to that before it, in place.

    Args:
        behind: the wave behind the slice (ny, nx), overwritten.
        here: the slice.
        kept: its transmission as `transmit` kept it, overwritten.
        grad: (ny, nx).
        wanted: where the gradients of the slice are added.
    """
    if kept is None:
        unused = here.potential.view(-1)
        places = [(0, unused) if place is None else (1, place.view(-1)) for place in wanted]
        launch(kernels.transmit_adjoint, _pixels(behind), *_numbers(here), _pixels(grad),
               *(part for place in places for part in place))
        return
    # Conjugates are written in place: as a lazy view each would be a new array in every product.
    # With t = exp(e), grad_e = conj(wave t) grad.
    exponent = behind.conj_physical_().mul_(grad)
    if wanted.potential is not None:
        wanted.potential.add_(exponent.imag, alpha=float(here.phase))
        if bool(here.decay):
            wanted.potential.sub_(exponent.real, alpha=float(here.decay))
    if wanted.absorbing is not None:
        wanted.absorbing.sub_(exponent.real, alpha=float(here.phase))
    if wanted.phase is not None:
        wanted.phase.addcmul_(exponent.imag, here.potential)
        if here.absorbing is not None:
            wanted.phase.addcmul_(exponent.real, here.absorbing, value=-1)
    if wanted.decay is not None:
        wanted.decay.addcmul_(exponent.real, here.potential, value=-1)
    grad.mul_(kept.conj_physical_())


class Way:
    """From one slice to the next: F^-1[rows(ky) columns(kx) F psi]; what is given is overwritten.

    On a CPU results of transforms are fresh arrays: torch makes these first and copies them to
    where a result is asked for.
    """

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        """Take the factors of the propagator, complex (ny,) and (nx,)."""
        self._fused = many_threads()
        # A GPU's library scales in a pass of its own, so that the factors do it there.
        self._norm = "forward" if self._fused else "backward"
        if self._fused:
            rows = rows / (len(rows) * len(columns))
            self._rows, self._columns = (torch.view_as_real(f).contiguous()
                                         for f in (rows, columns))
        else:
            self._rows, self._columns = rows, columns

    def propagate(self, wave: Tensor) -> Tensor:
        """The wave (ny, nx) where it arrives."""
        spectrum = torch.fft.fft2(wave, out=wave if self._fused else None)
        self.multiply(spectrum)
        return torch.fft.ifft2(spectrum, norm=self._norm, out=wave if self._fused else None)

    def multiply(self, spectrum: Tensor) -> None:
        """Multiply a spectrum (ny, nx) by the propagator, in place."""
        if self._fused:
            launch(kernels.propagate, torch.view_as_real(spectrum), self._rows, self._columns)
        else:
            _times(spectrum, self._rows, self._columns)

    def adjoint(self, grad: Tensor, sent: Tensor, wanted: Tensor | None) -> Tensor:
        """From the gradient of the wave that arrives to that of the one sent.

        Args:
            grad: (ny, nx).
            sent: the wave that was sent (ny, nx).
            wanted: where the gradient of the propagator, times the pixels, is added (ny, nx).
        """
        there = torch.fft.fft2(grad, out=grad if self._fused else None)
        self.multiply_adjoint(there, there if wanted is None else torch.fft.fft2(sent), wanted)
        return torch.fft.ifft2(there, norm=self._norm, out=grad if self._fused else None)

    def multiply_adjoint(self, grad: Tensor, spectrum: Tensor, wanted: Tensor | None) -> None:
        """The adjoint of `multiply`, in place.

        Args:
            grad: (ny, nx).
            spectrum: what was multiplied, overwritten; anything where nothing is wanted.
            wanted: see `adjoint`.
        """
        if self._fused:
            launch(kernels.propagate_adjoint, torch.view_as_real(grad), self._rows,
                   self._columns, int(wanted is not None), torch.view_as_real(spectrum),
                   torch.view_as_real(grad if wanted is None else wanted))
            return
        if wanted is not None:
            wanted.addcmul_(spectrum.conj_physical_(), grad)
        _times(grad, self._rows.conj().resolve_conj(), self._columns.conj().resolve_conj())


def _pixels(wave: Tensor) -> Tensor:
    return torch.view_as_real(wave).view(-1, 2)


def _numbers(here: Slice) -> tuple[Tensor, Tensor, int, Tensor, Tensor]:
    absorbing = here.potential if here.absorbing is None else here.absorbing
    return (here.potential.view(-1), absorbing.view(-1), int(here.absorbing is not None),
            here.phase, here.decay)
