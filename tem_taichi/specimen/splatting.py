"""Widened Gaussians on a grid, and their narrowing in Fourier space.

A Gaussian that the grid does not resolve is widened by a known factor, splatted, and narrowed
again where that factor is exact: inside the band, up to the aliases of the widened one.
"""

import math
from typing import Any

import taichi as ti
import torch

from tem_taichi.bridge import differentiable, launch
from tem_taichi.device import many_threads
from tem_taichi.grid import BAND_LIMIT, squared_frequencies
from tem_taichi.kernels.potential import BAND, CELL, splat_kernels
from tem_taichi.kernels.spectrum import multiply

WIDENING = 17.0
"""Common broadening [pixel^2]: aliases stay below exp(-17 / 3) of the signal at the band edge."""

_TAIL = 2e-4
"""Fraction of a Gaussian's weight that may lie outside its stencil."""


@ti.ad.grad_replaced
def _splat(x, y, weight, broadening, kind, radius, slice_index, table, out):  # type: ignore[no-untyped-def]
    if many_threads():
        _splat_tiles(x, y, weight, broadening, kind, radius, slice_index, table, out)
        return
    ny = out.shape[1]
    y = _wrapped(y, ny)
    order, row_start = _sorted(slice_index.long() * ny + torch.floor(y + 0.5).long(),
                               len(out) * ny)
    launch(splat_kernels(table.shape[2]).splat,
           *(t[order] for t in (x, y, weight, broadening, kind, radius)),
           row_start, table, radius.amax(0, keepdim=True), -(-ny // BAND), out)


def _splat_tiles(x, y, weight, broadening, kind, radius, slice_index, table, out):  # type: ignore[no-untyped-def]
    n_slices, ny, nx = out.shape
    x, y = _wrapped(x, nx), _wrapped(y, ny)
    rows, columns = -(-ny // CELL), -(-nx // CELL)
    cell_y, cell_x = (torch.floor(c + 0.5).long().div(CELL, rounding_mode="floor")
                      for c in (y, x))
    order, cell_start = _sorted((slice_index.long() * rows + cell_y) * columns + cell_x,
                                n_slices * rows * columns)
    a, b = table[kind[order]].unbind(1)
    rate = math.pi**2 / (b + broadening[order, None])
    launch(splat_kernels(table.shape[2]).splat_tiles, x[order], y[order],
           weight[order, None] * a * rate / math.pi, rate, radius[order], cell_start,
           radius.amax(0, keepdim=True), out)


def _wrapped(x: torch.Tensor, period: int) -> torch.Tensor:
    """Coordinates put back by whole periods, so that the nearest pixel is on the grid."""
    x = x - period * torch.floor(torch.floor(x + 0.5) / period)
    return torch.where(x + 0.5 < period, x, x - period)  # which rounding may have made just that


def _sorted(key: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An order of rising keys, and where each of 0 to n begins, (n + 1,)."""
    key, order = torch.sort(key, stable=True)
    edges = torch.arange(n + 1, device=key.device)
    return order, torch.searchsorted(key, edges).int()


@ti.ad.grad_for(_splat)
def _splat_adjoint(x, y, weight, broadening, kind, radius, slice_index, table, out):  # type: ignore[no-untyped-def]
    inputs = (x, y, weight, broadening)
    launch(splat_kernels(table.shape[2]).adjoint, *inputs, kind, radius, slice_index, table,
           out.grad, broadening.grad is not None,
           *(torch.empty_like(t) if t.grad is None else t.grad for t in inputs))


def splat(
    out: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    slice_index: torch.Tensor,
    weight: torch.Tensor,
    broadening: torch.Tensor,
    kind: torch.Tensor,
    table: torch.Tensor,
) -> torch.Tensor:
    """Add widened Gaussians to slices; differentiable in x, y, weight and broadening.

    Args:
        out: slices (n_slices, ny, nx), added to.
        x: column of each scatterer [pixel], shape (n,); y: its row. Any value: periodic.
        y: see x.
        slice_index: slice of each, shape (n,); others than those of `out` add nothing.
        weight: factor of each, shape (n,).
        broadening: b [pixel^2] added to every Gaussian of the scatterer, shape (n,).
        kind: row of the table, shape (n,).
        table: a_g and b_g [pixel^2] of exp(-b_g |k|^2), shape (kinds, 2, n_gaussians).

    Returns:
        out, to be passed to `narrow`.
    """
    if len(x) == 0:
        return out
    table = table.clone()
    table[:, 1] += WIDENING
    share = _shares(table)
    wide = ((table[kind, 1] + broadening.detach()[:, None]) * share[kind]).amax(1).sqrt()
    radius = torch.ceil(wide / math.pi - 0.5).clamp_min(1).int()
    return differentiable(_splat, out, x.contiguous(), y.contiguous(), weight.contiguous(),
                          broadening.contiguous(), kind.int(), radius, slice_index.int(), table)


def _shares(table: torch.Tensor) -> torch.Tensor:
    """Logarithm of each Gaussian's share of its species over the tail that may be left out."""
    amount = table[:, 0].abs()
    return (amount / amount.sum(1, keepdim=True).clamp_min(1e-30) / _TAIL).clamp_min(1).log()


def reach(
    table: torch.Tensor, kind: torch.Tensor, broadening: torch.Tensor, pixel_size: float
) -> int:
    """Pixels from the farthest-reaching scatterer's centre within which `splat` adds something.

    Args:
        table: a_g and b_g [A^2] of exp(-b_g |k|^2), shape (kinds, 2, n_gaussians).
        kind: row of the table, shape (n,).
        broadening: b [A^2] of each, shape (n,).
        pixel_size: [A].
    """
    widest = torch.full((len(table),), -math.inf, dtype=broadening.dtype, device=broadening.device)
    widest = widest.scatter_reduce(0, kind.long(), broadening.detach(), "amax")
    there = widest > -math.inf
    b = (table[there, 1] + widest[there, None]) / pixel_size**2 + WIDENING
    return math.ceil(float((b * _shares(table[there])).max().sqrt()) / math.pi)


_LARGE = 1 << 21
"""Pixels of a slice from which two go through one complex transform. An inverse real transform then
takes as long as a complex one: torch copies its input and transforms columns one by one."""


def _multiply(factor, out):  # type: ignore[no-untyped-def]
    launch(multiply, torch.view_as_real(out), factor)


def _filtered(both: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """A complex slice with its spectrum times a factor of half of it, the same for k and -k."""
    return torch.fft.ifft2(differentiable(_multiply, torch.fft.fft2(both), factor))


def _holds(image: torch.Tensor) -> bool:
    """Whether a slice holds something; a GPU is not waited for to say so."""
    return many_threads() or bool(image.view(torch.uint8).any())  # by bytes: several times faster


class _Filter(torch.autograd.Function):
    """Multiply the spectrum of every slice by a real factor, into `out`; its own adjoint.

    `out` may be the slices, and empty ones are left as they are then.
    """

    @staticmethod
    def forward(
        ctx: Any, slices: torch.Tensor, factor: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(factor)
        slices, out = slices.detach(), out.detach()
        in_place = out.data_ptr() == slices.data_ptr()
        # One slice at a time stays in the cache.
        at_once = 2 if not slices.is_complex() and slices[0].numel() >= _LARGE else 1
        for part, into in zip(slices.split(at_once), out.split(at_once), strict=True):
            if in_place and not any(map(_holds, part)):
                continue
            if slices.is_complex():
                into[0].copy_(_filtered(part[0], factor))
            elif len(part) == 2:
                both = _filtered(torch.complex(*part), factor)
                into[0].copy_(both.real)
                into[1].copy_(both.imag)
            else:
                into[0].copy_(torch.fft.irfft2(torch.fft.rfft2(part[0]).mul_(factor),
                                               s=part.shape[1:]))
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple:
        # Not in place: others may hold the gradient.
        filtered = _Filter.apply(grads[0], *ctx.saved_tensors, torch.empty_like(grads[0]))
        return filtered, None, None


def narrow(
    splatted: torch.Tensor, scale: float = 1.0, damping: torch.Tensor | None = None
) -> torch.Tensor:
    """Undo the widening of `splat` inside the band, set the rest to zero, and scale.

    Args:
        splatted: slices (n_slices, ny, nx), overwritten; complex ones are two of them each.
        scale: constant factor of the result.
        damping: real factor of each coefficient of the rfft2, (ny, nx // 2 + 1); the same for k
            and -k.

    Returns:
        Band-limited slices in the same memory.
    """
    squared = squared_frequencies((splatted.shape[-2], splatted.shape[-1]), half=True)
    factor = scale * torch.exp(WIDENING * squared) * (squared <= (BAND_LIMIT / 2) ** 2)
    if damping is not None:
        factor = factor * damping
    if factor.requires_grad:
        shape = splatted.shape[-2:]
        if splatted.is_complex():
            return torch.complex(*(torch.fft.irfft2(torch.fft.rfft2(part) * factor, s=shape)
                                   for part in (splatted.real, splatted.imag)))
        return torch.fft.irfft2(torch.fft.rfft2(splatted) * factor, s=shape)
    return _Filter.apply(splatted, factor, splatted)
