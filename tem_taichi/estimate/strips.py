"""Error bars that need no even specimen: by how much strips of the field disagree about the poses.

A strip along the tilt axis shows, at all tilts, matter that no other strip shows. Where the model
holds, the slopes of the strips' log-likelihoods at the best poses are independent, and the sum of
their products J is Fisher's information. Where it does not, the covariance of the poses is
H^-1 J H^-1 with H the curvature found (Huber 1967; White, Econometrica 50, 1, 1982). What all
strips have wrong in common they cannot tell.
"""

import torch
from torch import Tensor

STRIPS = 8
_SOFT = 0.3
"""Of the step from strip to strip, relative to a strip's width."""


def strips_of(windows: Tensor, pixel: float, poses: dict[str, Tensor], count: int = STRIPS
              ) -> list[Tensor]:
    """Windows of strips across the tilt axis, each with as much of the images' squared windows.

    Args:
        windows: of the images, (n, ny, nx).
        pixel: [A].
        poses: shift_x, shift_y [A] and axis_angle [deg], each (n,).
        count: of the strips, at least 3.

    Returns:
        One of (n, ny, nx) for each strip; their squares add up to 1.
    """
    ny, nx = windows.shape[1:]
    axis = torch.deg2rad(poses["axis_angle"].detach())[:, None, None]
    x, y = ((torch.arange(size, device=windows.device) - size // 2) * pixel for size in (nx, ny))
    along = (torch.cos(axis) * (y[:, None] - poses["shift_y"].detach()[:, None, None])
             - torch.sin(axis) * (x - poses["shift_x"].detach()[:, None, None]))
    order = along.flatten().argsort()
    mass = windows.flatten()[order].double().square().cumsum(0)
    at = torch.searchsorted(mass, mass[-1] * torch.arange(1, count).to(mass) / count)
    edges = along.flatten()[order[at.clamp(max=len(mass) - 1)]]
    soft = _SOFT * (edges[-1] - edges[0]).clamp(min=pixel) / (count - 2)
    turns = [torch.ones_like(along), *(((along - edge) / soft + 0.5).clamp(0, 1)
                                       for edge in edges), torch.zeros_like(along)]
    return [torch.sin(torch.pi / 2 * turns[n]) * torch.cos(torch.pi / 2 * turns[n + 1])
            for n in range(count)]


def spread_of(slopes: Tensor) -> Tensor:
    """J, the sum of the products of slopes, as it were if the best poses had no part in them.

    Args:
        slopes: of the strips, (strips, p).

    Returns:
        (p, p)
    """
    count = len(slopes)
    apart = slopes - slopes.mean(0)
    return apart.T @ apart * count / (count - 1)


def excess(spread: Tensor, information: Tensor) -> tuple[float, float]:
    """How much more the strips disagree than the model says, and what chance allows.

    Args:
        spread: of `spread_of` for STRIPS, (p, p).
        information: the model's of the same numbers, (p, p), with the prior's.

    Returns:
        Mean ratio of the variances, 1 where the model holds, and its standard deviation there.
    """
    known = len(information)
    ratio = float(torch.trace(torch.linalg.solve(information, spread))) / known
    return ratio, (2 / (known * (STRIPS - 1)))**0.5
