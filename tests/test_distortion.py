"""distortion.py: anisotropic magnification."""

import math

import pytest
import torch

from tem_taichi.instrument.distortion import anisotropic, distort


def blob(shape, x, y, matrix=None):
    """A Gaussian at x, y from the centre; or what the matrix makes of it."""
    rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in shape)
    r = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    if matrix is not None:
        r = r @ torch.linalg.inv(matrix).T
    return torch.exp(-((r[..., 0] - x) ** 2 + (r[..., 1] - y) ** 2) / (2 * 2.5**2))


@pytest.mark.parametrize("shape", [(48, 64), (75, 81)])
@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, -70.0])
def test_a_gaussian_is_stretched_as_its_formula(double, shape, angle):
    """The Gaussian's spectrum at Nyquist is exp(-pi^2 2.5^2 / 2) = 4e-14: its series is exact."""
    matrix = anisotropic(0.1, angle)
    out = distort(blob(shape, 7.0, -4.0), matrix)
    assert float((out - blob(shape, 7.0, -4.0, matrix)).abs().max()) < 1e-11


def test_the_larger_magnification_lies_along_the_angle(double):
    matrix = anisotropic(0.1, 60.0)
    along = torch.tensor([math.cos(math.pi / 3), math.sin(math.pi / 3)], dtype=torch.float64)
    across = torch.tensor([-along[1], along[0]], dtype=torch.float64)
    assert torch.allclose(matrix @ along, 1.05 * along, rtol=1e-12)
    assert torch.allclose(matrix @ across, 0.95 * across, rtol=1e-12)


def test_gradients(double):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(7, 8, dtype=torch.float64, generator=generator).requires_grad_()
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.03, 20.0)]
    assert torch.autograd.gradcheck(lambda i, a, b: distort(i, anisotropic(a, b)), (image, *values))
