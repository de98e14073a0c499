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

    def transmission(self, room: "Room", *, conjugate: bool = False) -> Tensor:
        """The exponential (ny, nx) or its conjugate, by torch, in some room."""
        n = len(self.potential)
        angle, real, imaginary = (part[:n] for part in room.parts)
        torch.mul(self.potential, -self.phase if conjugate else self.phase, out=angle)
        # Not torch's own polar form, which takes half as long again.
        torch.cos(angle, out=real)
        torch.sin(angle, out=imaginary)
        lost = None if self.absorbing is None else self.absorbing * -self.phase
        if bool(self.decay):
            lost = (self.potential * -self.decay if lost is None
                    else lost.sub_(self.potential * self.decay))
        if lost is not None:
            left = lost.exp_()
            real *= left
            imaginary *= left
        return torch.complex(real, imaginary, out=room.waves[0][:n])

    def part(self, rows: slice) -> "Slice":
        """Some of its rows."""
        return self._replace(
            potential=self.potential[rows],
            absorbing=None if self.absorbing is None else self.absorbing[rows])


class Wanted(NamedTuple):
    """Where gradients of a slice are added, each (ny, nx) or None."""

    potential: Tensor | None
    absorbing: Tensor | None
    phase: Tensor | None
    """One number a pixel, to be summed."""
    decay: Tensor | None
    """The same."""


class Room(NamedTuple):
    """For what is held between two passes over a block of rows: fresh arrays take as long."""

    parts: Tensor
    """Real, (3, rows, nx)."""
    waves: Tensor
    """Complex, (2, rows, nx)."""


def room_for(wave: Tensor) -> Room:
    """Room to pass waves (ny, nx) like this one."""
    block = _blocks(wave)[0].stop if not many_threads() else 0
    shape = (block, wave.shape[1])
    return Room(wave.real.new_empty((3, *shape)), wave.new_empty((2, *shape)))


def transmit(wave: Tensor, here: Slice, out: Tensor, room: Room) -> None:
    """Take a wave (ny, nx) through a slice.

    Args:
        wave: before the slice.
        here: the slice.
        out: the wave behind it is written here (ny, nx); may be the wave before it.
        room: of `room_for`.
    """
    if many_threads():
        launch(kernels.transmit, _pixels(wave), *_numbers(here), _pixels(out))
        return
    for rows in _blocks(wave):
        torch.mul(wave[rows], here.part(rows).transmission(room), out=out[rows])


def _blocks(wave: Tensor) -> list[slice]:
    """Rows of a wave that stay in the cache from one step to the next."""
    n = min(wave.shape[0], max(1, (1 << 16) // wave.shape[1]))
    return [slice(first, first + n) for first in range(0, wave.shape[0], n)]


def _times(wave: Tensor, rows: Tensor, columns: Tensor) -> None:
    """A wave times factors of its rows and columns, in place."""
    for here in _blocks(wave):
        wave[here].mul_(columns).mul_(rows[here, None])


def transmit_adjoint(
    behind: Tensor, here: Slice, grad: Tensor, wanted: Wanted, room: Room
) -> None:
    """From the gradient of the wave behind a slice to that before it, in place.

    Args:
        behind: the wave behind the slice (ny, nx).
        here: the slice.
        grad: (ny, nx).
        wanted: where the gradients of the slice are added.
        room: of `room_for`.
    """
    if many_threads():
        unused = here.potential.view(-1)
        places = [(0, unused) if place is None else (1, place.view(-1)) for place in wanted]
        launch(kernels.transmit_adjoint, _pixels(behind), *_numbers(here), _pixels(grad),
               *(part for place in places for part in place))
        return
    # To keep transmissions would take longer than to make them again where they fit the cache.
    for rows in _blocks(grad):
        part, after = here.part(rows), grad[rows]
        # With t = exp(e), grad_e = conj(wave t) grad.
        exponent = torch.conj_physical(behind[rows], out=room.waves[1][:len(after)]).mul_(after)
        _add_exponents(exponent, part, Wanted(
            *(None if place is None else place[rows] for place in wanted)))
        after.mul_(part.transmission(room, conjugate=True))


def _add_exponents(exponent: Tensor, here: Slice, wanted: Wanted) -> None:
    """Add what the gradient of a slice's exponent (ny, nx) is to what the exponent is made of."""
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


class Way:
    """From one slice to the next: F^-1[rows(ky) columns(kx) F psi].

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

    def propagate(self, wave: Tensor, room: Tensor) -> Tensor:
        """The wave (ny, nx) where it arrives: in room, which may be the wave, or a fresh array."""
        out = room if self._fused else None
        spectrum = torch.fft.fft2(wave, out=out)
        self.multiply(spectrum)
        return torch.fft.ifft2(spectrum, norm=self._norm, out=out)

    def multiply(self, spectrum: Tensor) -> None:
        """Multiply a spectrum (ny, nx) by the propagator, in place."""
        if self._fused:
            launch(kernels.propagate, torch.view_as_real(spectrum), self._rows, self._columns)
        else:
            _times(spectrum, self._rows, self._columns)

    def adjoint(self, grad: Tensor, sent: Tensor, wanted: Tensor | None) -> Tensor:
        """From the gradient of the wave that arrives to that of the one sent.

        Args:
            grad: (ny, nx), which may be overwritten.
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
