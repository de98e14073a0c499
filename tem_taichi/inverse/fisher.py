"""How well values are known: Fisher's information, covariances and error bars."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from tem_taichi.experiment import Experiment, Likelihood
from tem_taichi.inverse.minimise import Loss, Values
from tem_taichi.inverse.problem import Problem
from tem_taichi.streams import Key

_STEP, _SHORT = 0.05, 0.5
"""Of differences, in scales, and in error bars once these are known."""
_TRIALS = 8
"""Pairs of counts over which curvatures are averaged where one does not do."""
_FLAT = 0.05
"""Slope of the loss at counts as expected over the root of its curvature that rounding may leave;
where a value changes the strength of the noise it is of the order of the root of the pixels."""
_CURVED = 0.3
"""Part of the change of an image over an error bar that may be quadratic in the value."""


def fisher(problem: Problem, values: Values) -> Tensor:
    """Fisher's information on some values in the exposures that are fitted.

    The curvature of the noise law's log-probability where the counts are just what is expected;
    images enter by central differences, since instruments are differentiable once. That is the
    information exactly where counts are Poisson's, or Gauss' of a known strength. Where a value
    changes the strength of the noise, as the dose of an integrating camera does, it is the mean
    curvature over `_TRIALS` pairs of simulated counts instead, some percent off at a thousand
    pixels. The prior's curvature is part of it.

    Args:
        problem: its counts do not matter.
        values: where, such as those of `fit`.

    Returns:
        Matrix (n, n) over all numbers of the values, tensor after tensor in the order of the
        mapping, each flattened.

    Warns:
        UserWarning: if over an error bar, with all other values known, an image is far from linear
            in a value: the bars are rough then.
    """
    point = _numbers(values)
    scales = torch.cat([torch.full((value.numel(),), float(problem.scales.get(name, 1.0)))
                        for name, value in values.items()]).to(point)
    found, _ = _information(problem, values, point, _STEP * scales)
    # Again in steps of part of an error bar: short beside curvature, long beside rounding.
    size = found.diagonal().clamp(min=1e-30).rsqrt()
    steps = torch.where(found.diagonal() > 0, torch.minimum(_SHORT * size, scales), _STEP * scales)
    found, curved = _information(problem, values, point, steps)
    for name, one in zip(_names(values), curved, strict=True):
        if one > _CURVED:
            warnings.warn(f"the images are not linear in {name} over its error bar ({one:.0%} of "
                          "their change is quadratic): error bars are rough", stacklevel=2)
            break
    return found


def _information(problem: Problem, values: Values, point: Tensor, steps: Tensor
                 ) -> tuple[Tensor, list[float]]:
    """The information, and how far images are from linear over an error bar."""
    def at(moved: Tensor) -> Values:
        return _shaped(moved, values)

    def intensity(moved: Tensor, number: int) -> Tensor:
        # Built of what asks for gradients, so that atoms are shared by slices as in the fit.
        with torch.enable_grad():
            made = problem.build(at(moved.requires_grad_()))
        with torch.no_grad():
            return made.instrument.intensity(made.specimen, made.exposures[number]).detach()

    total = torch.zeros((len(point), len(point)), dtype=point.dtype, device=point.device)
    curved = [0.0] * len(point)
    for number in problem.fitted:
        still = intensity(point.clone(), number)
        slopes = []
        for n, step in enumerate(torch.diag(steps)):
            ahead, behind = intensity(point + step, number), intensity(point - step, number)
            slopes.append((ahead - behind) / (2 * steps[n]))
            change = float((ahead - behind).norm())
            if change > 0:
                bent = float((ahead + behind - 2 * still).norm()) / change
                curved[n] = max(curved[n], bent / _SHORT)

        def loss(shift: Tensor, counts: Tensor, still: Tensor = still,
                 slopes: list[Tensor] = slopes, number: int = number) -> Tensor:
            made = problem.build(at(point + shift))
            seen = still + sum(one * slope for one, slope in zip(shift, slopes, strict=True))
            law = made.noise
            assert isinstance(law, Likelihood)
            return -law.log_prob(counts, seen, made.exposures[number].dose)

        total += _mean_curvature(loss, problem.build(at(point.clone())), still, number,
                                 torch.zeros_like(point))
    if problem.prior is not None:
        prior = problem.prior
        total += torch.autograd.functional.hessian(lambda moved: prior(at(moved)), point)
    return total, curved


def _mean_curvature(loss: Callable[[Tensor, Tensor], Tensor], made: Experiment, still: Tensor,
                    number: int, origin: Tensor) -> Tensor:
    """Mean over counts of the loss's matrix of second derivatives."""
    law, dose = made.noise, made.exposures[number].dose
    with torch.no_grad():
        mean = law.expected(still, dose).detach()
    hessian = torch.autograd.functional.hessian(lambda shift: loss(shift, mean), origin)
    slope = torch.autograd.functional.jacobian(lambda shift: loss(shift, mean), origin)
    # It is flat there unless the strength of the noise changes too, which has its own information.
    if bool((slope.abs() <= _FLAT * hessian.diagonal().abs().sqrt()).all()):
        return hessian
    total, trials = torch.zeros_like(hessian), 0
    for trial in range(_TRIALS):
        with torch.no_grad():
            counts = law.sample(still, dose, Key(trial, "trials", number)).detach()
            counts = counts.sum(0) if counts.ndim > mean.ndim else counts  # halves
        # Noise of either sign leaves nothing of what is linear in it, where counts may be so few.
        both = [counts] if float((2 * mean - counts).min()) < 0 else [counts, 2 * mean - counts]
        for one in both:
            total += torch.autograd.functional.hessian(
                lambda shift, one=one: loss(shift, one), origin)
            trials += 1
    return total / trials


def error_bars(problem: Problem, values: Values) -> Values:
    """Standard errors of fitted values, of the values' shapes: roots of the inverse information.

    Raises:
        ValueError: if the exposures do not determine a value.
    """
    variances = inverse(fisher(problem, values), values).diagonal()
    return _shaped(variances.sqrt(), values)


def covariance(loss: Loss, values: Values) -> Tensor:
    """Covariance of fitted values: the inverse of the loss's matrix of second derivatives.

    For a negative log-likelihood at its minimum this is the Cramer-Rao estimate.

    Args:
        loss: negative log of a probability density, twice differentiable.
        values: where it is least.

    Returns:
        Matrix (n, n) over all numbers of the values, tensor after tensor in the order of the
        mapping, each flattened.

    Raises:
        ValueError: if a direction exists along which the loss does not curve upwards.
    """
    hessian = torch.autograd.functional.hessian(
        lambda vector: loss(_shaped(vector, values)), _numbers(values))
    return inverse(hessian, values)


def inverse(hessian: Tensor, values: Values) -> Tensor:
    """Inverse of an information matrix over all numbers of some values.

    Raises:
        ValueError: if it is not positive in some direction; the values that matter are named.
    """
    scale = hessian.diagonal().abs().sqrt()
    names = _names(values)
    if not hessian.isfinite().all():
        raise ValueError("covariance: the second derivatives of the loss are not finite")
    if (scale == 0).any():
        flat = {name: None for name, own in zip(names, scale.tolist(), strict=True) if own == 0}
        raise ValueError(f"covariance: the loss does not depend on {', '.join(flat)}")
    # Free of units, so that the smallest eigenvalue means the same for every problem.
    curvatures, directions = torch.linalg.eigh(hessian / (scale[:, None] * scale))
    if curvatures[0] <= 20 * len(hessian) * torch.finfo(hessian.dtype).eps:
        share = directions[:, 0].abs()
        flat = {name: None for name, own in zip(names, share.tolist(), strict=True)
                if own > 0.3 * float(share.max())}
        raise ValueError(f"covariance: the loss does not determine {', '.join(flat)} (curvature "
                         f"{float(curvatures[0]):.1e} of the largest along their combination)")
    return (directions / curvatures) @ directions.T / (scale[:, None] * scale)


def _numbers(values: Values) -> Tensor:
    """All of them, tensor after tensor, each flattened."""
    return torch.cat([value.detach().flatten() for value in values.values()])


def _shaped(numbers: Tensor, values: Values) -> Values:
    """Numbers in the order of `_numbers` under the names and in the shapes of values."""
    parts = numbers.split([value.numel() for value in values.values()])
    return {name: part.reshape(value.shape)
            for (name, value), part in zip(values.items(), parts, strict=True)}


def _names(values: Values) -> list[str]:
    """Of each number."""
    return [name for name, value in values.items() for _ in range(value.numel())]
