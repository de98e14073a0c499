"""damage.py: exposure and what it leaves."""

import math

import pytest
import torch

from tem_taichi.specimen.damage import critical_exposure, damping
from tem_taichi.specimen.splatting import narrow


def test_critical_exposure_is_the_published_curve(double):
    """Grant & Grigorieff 2015: 0.245 k^-1.665 + 2.81, and 0.8 of it at 200 kV."""
    k = torch.tensor([0.1, 0.25], dtype=torch.float64)
    expected = [0.245 * 0.1**-1.665 + 2.81, 0.245 * 0.25**-1.665 + 2.81]
    assert critical_exposure(k).tolist() == pytest.approx(expected, rel=1e-12)
    assert (critical_exposure(k, 200.0) / critical_exposure(k)).tolist() == pytest.approx(
        [0.8, 0.8], abs=0.005)


def test_damping_is_one_without_exposure_and_halves_powers_at_the_critical_one(double):
    assert bool((damping((8, 8), 2.0, 0.0, 300.0) == 1).all())
    k = torch.tensor(2 / 16, dtype=torch.float64)
    left = damping((8, 8), 2.0, critical_exposure(k), 300.0)
    assert float(left[2, 0]) == pytest.approx(math.exp(-0.5), rel=1e-12)
    assert float(left[0, 0]) == pytest.approx(1, rel=1e-6)


def test_a_damped_potential_has_a_gradient_in_the_exposure(double):
    generator = torch.Generator().manual_seed(0)
    slices = torch.rand(2, 12, 12, dtype=torch.float64, generator=generator)
    exposure = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda n: narrow(slices.clone(), 1.0, damping((12, 12), 2.0, n, 300.0)), (exposure,))
    constant = narrow(slices.clone(), 1.0, damping((12, 12), 2.0, 20.0, 300.0))
    graph = narrow(slices.clone(), 1.0, damping((12, 12), 2.0, exposure, 300.0)).detach()
    assert torch.allclose(constant, graph, atol=1e-14)


def test_a_factor_of_twofold_symmetry_is_the_same_in_any_transform(double, monkeypatch):
    """As a transfer function with astigmatism is: the same for k and -k, not for kx and -kx."""
    for shape in ((12, 16), (9, 14), (10, 7)):
        slices = torch.rand(3, *shape, dtype=torch.float64,
                            generator=torch.Generator().manual_seed(1))
        ky, kx = torch.fft.fftfreq(shape[0])[:, None], torch.fft.rfftfreq(shape[1])
        factor = torch.cos(30 * (kx**2 - ky**2) + 20 * kx * ky).double()
        alone = narrow(slices.clone(), 1.0, factor)
        both = narrow(torch.complex(slices[:2], slices[1:]), 1.0, factor)
        torch.testing.assert_close(both, torch.complex(alone[:2], alone[1:]), rtol=0, atol=1e-13)
        monkeypatch.setattr("tem_taichi.specimen.splatting._LARGE", 1)
        torch.testing.assert_close(narrow(slices.clone(), 1.0, factor), alone, rtol=0, atol=1e-13)
        monkeypatch.undo()


def test_slices_are_narrowed_together_as_alone(double, monkeypatch):
    """Two large ones in one complex transform, complex ones as two; and so are their gradients."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((12, 12), (9, 14), (10, 7)):
        slices = torch.rand(3, *shape, dtype=torch.float64, generator=generator)
        left = damping(shape, 2.0, 20.0, 300.0)
        alone = narrow(slices.clone(), 2.0, left)
        both = narrow(torch.complex(slices[:2], slices[1:]), 2.0, left)
        torch.testing.assert_close(both, torch.complex(alone[:2], alone[1:]), rtol=0, atol=1e-13)
        exposure = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
        graph = narrow(torch.complex(slices[:2], slices[1:]), 2.0,
                       damping(shape, 2.0, exposure, 300.0))
        torch.testing.assert_close(graph.detach(), both, rtol=0, atol=1e-13)
        with monkeypatch.context() as patch:
            patch.setattr("tem_taichi.specimen.splatting._LARGE", 1)
            torch.testing.assert_close(narrow(slices.clone(), 2.0, left), alone, rtol=0,
                                       atol=1e-13)
            assert torch.autograd.gradcheck(
                lambda s, factor=left: narrow(s.clone(), 2.0, factor), (slices.requires_grad_(),))
        complex_ones = torch.complex(slices[:1], slices[1:2]).detach().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda s, factor=left: narrow(s.clone(), 2.0, factor), (complex_ones,))
