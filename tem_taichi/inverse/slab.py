"""What images of a tilted slab have in common, whatever is in it.

Stretched by 1 / cos(tilt) across the tilt axis, an image shows a point at x and height z at
x + z tan(tilt). Of a slab of random matter, even on the whole, the coefficients at one frequency of
all images so stretched are then Gaussian numbers that depend on those at no other one: with q the
frequency across the axis, T the thickness and G the spectrum of the slab's projection,

    cov(F_i, F_j) = C_i C_j sqrt(G(k_i) G(k_j)) / (cos_i cos_j) sinc(q T (tan_i - tan_j)),

k_i being the frequency (q / cos_i, along) in image i and C_i its contrast transfer function. This
is what remains of a volume of which every value is allowed for: its most probable values need not
be known, and cannot hide what is wrong with the poses (Rasmussen & Williams 2006, ch. 5).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Slab:
    """Signal and noise of m frequencies in n images, and what the images show of each other."""

    across: Tensor
    """Frequency across the tilt axis, q [1/A], (m,)."""
    along: Tensor
    """[1/A], (m,)"""
    amplitude: Tensor
    """C sqrt(G) / cos, (m, n)."""
    noise: Tensor
    """Variance of the noise, (m, n)."""
    overlap: Tensor
    """Part of each image that another shows as well, (n, n), 1 on the diagonal."""
    thickness: float
    """T [A]."""

    def signal(self, tangents: Tensor) -> Tensor:
        """Covariance of the images without noise.

        Args:
            tangents: of the tilt angles, (n,).

        Returns:
            (m, n, n), real.
        """
        apart = self.thickness * (tangents[:, None] - tangents)
        shared = torch.special.sinc(self.across[:, None, None] * apart) * self.overlap
        return self.amplitude[:, :, None] * self.amplitude[:, None, :] * shared

    def covariance(self, tangents: Tensor) -> Tensor:
        """With noise, (m, n, n)."""
        return self.signal(tangents) + torch.diag_embed(self.noise)


def displacement_information(slab: Slab, signal: Tensor, inverse: Tensor,
                             values: Tensor | None = None) -> Tensor:
    """Fisher's information on where each image lies.

    For exp(2 pi i k u) on image a it is 2 (2 pi)^2 k k' (C^-1_ab C_ab - delta_ab), summed over
    frequencies: that of the covariance D C D* with a diagonal D.

    Args:
        slab: of the frequencies.
        signal: of `Slab.signal`.
        inverse: of the covariance.
        values: of the images, (m, n) complex: for the curvature that their log-probability has,
            F_a* C^-1_ab F_b - delta_ab Re F_a* (C^-1 F)_a in the brackets' place, with the mean
            above.

    Returns:
        (n, n, 2, 2) [1/A^2], of displacements across and along the axis in the stretched images.
    """
    n = inverse.shape[1]
    if values is None:
        common = inverse * (signal + torch.diag_embed(slab.noise)) - torch.eye(n).to(inverse)
    else:
        common = inverse * (values[:, :, None].conj() * values[:, None]).real
        common = common - torch.diag_embed(common.sum(2))
    k = torch.stack([slab.across, slab.along], dim=1)
    products = (k[:, :, None] * k[:, None, :]).reshape(-1, 4)
    found = 2 * (2 * torch.pi)**2 * torch.einsum("mab,mk->abk", common, products)
    # C^-1_ab C_ab is negative off the diagonal, as a common displacement tells nothing.
    return found.reshape(n, n, 2, 2)


def depth_information(slab: Slab, tangents: Tensor, inverse: Tensor, rates: Tensor) -> Tensor:
    """Fisher's information on numbers that move what lies at a height z in proportion to z.

    They change the covariance, which for a phase exp(2 pi i z rate p) on image a has q (tan_a -
    tan_b) + rate p for q (tan_a - tan_b).

    Args:
        slab: of the frequencies.
        tangents: (n,).
        inverse: of the covariance, (m, n, n).
        rates: of p kinds of numbers in each image [1/A], (p, m, n).

    Returns:
        (p, n, p, n).
    """
    turn = slab.across[:, None, None] * slab.thickness * (tangents[:, None] - tangents)
    step = 1e-3
    slope = (torch.special.sinc(turn + step) - torch.special.sinc(turn - step)) / (2 * step)
    slope = slope * slab.overlap * slab.amplitude[:, :, None] * slab.amplitude[:, None, :]
    kinds, _, n = rates.shape
    out = inverse.new_zeros((kinds, n, kinds, n))
    rows = [slope * (slab.thickness * rate)[:, :, None] for rate in rates]
    seen = [inverse @ row.transpose(1, 2) for row in rows]
    for a in range(kinds):
        for b in range(kinds):
            out[a, :, b] = 2 * (inverse * (rows[a] @ seen[b])
                                + seen[a].transpose(1, 2) * seen[b]).sum(0)
    return out
