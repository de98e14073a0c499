"""specimen/implicit.py and hash_grid.py: a density that a network knows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from twins import hash_features

from tem_taichi.device import kernels_for_a_gpu
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.stem import STEM
from tem_taichi.instrument.tem import TEM
from tem_taichi.inverse.minimise import Optimiser, minimise
from tem_taichi.specimen import implicit
from tem_taichi.specimen.field import Sampled, Voxels
from tem_taichi.specimen.hash_grid import Levels, encoded
from tem_taichi.specimen.implicit import PUBLISHED, Implicit, Octaves, Shape, small, start

LEVELS = Levels(3, 2, 9, 64, 2)
"""All nodes of the first level have rows of their own, the others share."""
NETS = {"grids": Shape(Levels(3, 2, 8, 64), 2, 8), "octaves": Shape(Octaves(3), 3, 8, skip=2)}


def points(n, seed=0, far=1.0):
    return torch.tensor(np.random.default_rng(seed).uniform(1 - far, far, (n, 3)))


def test_features_are_trilinear_at_every_level(double):
    table = torch.tensor(np.random.default_rng(1).standard_normal((LEVELS.size, 2)))
    places = torch.cat([points(200, far=1.2), torch.eye(3).double(), torch.ones(1, 3).double()])
    assert LEVELS.table[0, 2] == 27 and (LEVELS.table[1:, 2] == 64).all()
    found = encoded(table, places, LEVELS)
    wanted = hash_features(table.numpy(), places.numpy(), LEVELS.table)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("gpu", [False, True])
def test_features_have_gradients(double, gpu):
    table = torch.tensor(np.random.default_rng(1).standard_normal((LEVELS.size, 2)))
    with kernels_for_a_gpu(gpu):
        assert torch.autograd.gradcheck(
            lambda table, places: encoded(table, places, LEVELS),
            (table.requires_grad_(), points(4).requires_grad_()))


def test_sums_are_the_same_in_every_run():
    levels = small(24).encoding
    places = points(5000).float()

    def gradient():
        table = levels.start(3).requires_grad_()
        return torch.autograd.grad(encoded(table, places, levels).square().sum(), table)[0]

    assert torch.equal(gradient(), gradient())


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_densities_have_gradients_in_all_that_is_learned(double, name, bounded):
    """And in the points; kinks of ReLU and of the grids are met with probability 0."""
    net = start(NETS[name], (10.0, 8.0, 6.0), 0.02, bounded, level=0.3)
    places = (points(6, 2) - 0.5) * torch.tensor([9.0, 7.0, 5.0])

    def density(places, *tensors):
        return replace(net, tensors=tensors).at(places)

    tensors = [(one + 0.1 * torch.randn(one.shape, generator=torch.Generator().manual_seed(n),
                                        dtype=one.dtype)).requires_grad_()
               for n, one in enumerate(net.tensors)]
    assert torch.autograd.gradcheck(density, (places.requires_grad_(), *tensors), atol=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_it_is_positive_and_nothing_beyond_its_box(name):
    net = start(NETS[name], (10.0, 8.0, 6.0), 0.02)
    places = 20 * (points(500, 3).float() - 0.5)
    found = net.at(places)
    inside = (places.abs() < torch.tensor([5.0, 4.0, 3.0])).all(1)
    assert (found[inside] > 0).all() and (found[~inside] == 0).all() and inside.any()
    bound = start(NETS[name], (10.0, 8.0, 6.0), 0.02, bounded=True)
    assert (bound.at(places) < 0.02).all()


def test_the_published_network_is_the_published_one():
    """63 inputs, nine layers of 256 with the inputs joined after the fifth, one output."""
    sizes = PUBLISHED.sizes
    assert sizes == [(256, 63), *[(256, 256)] * 4, (256, 319), *[(256, 256)] * 3, (1, 256)]


def test_a_grid_is_its_points_whatever_the_chunks(monkeypatch):
    net = start(NETS["grids"], (10.0, 8.0, 6.0), 0.02)
    shape, voxel = (9, 10, 13), 1.0
    axes = [voxel * (torch.arange(n) - n // 2) for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    wanted = net.at(torch.stack([x, y, z], -1).float())
    way = torch.rand(shape)

    def slope():
        tensors = tuple(one.clone().requires_grad_() for one in net.tensors)
        made = replace(net, tensors=tensors).grid(shape, voxel)
        return made.detach(), torch.autograd.grad((made * way).sum(), tensors)

    one, first = slope()
    monkeypatch.setattr(implicit, "CHUNK", 200)
    other, second = slope()
    for made in (one, other, net.grid(shape, voxel)):
        assert torch.allclose(made, wanted, atol=1e-8)
    for a, b in zip(first, second, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()))


def test_both_microscopes_see_it_as_its_voxels():
    net = start(small(16), (60.0,) * 3, 0.01, level=0.5)
    exposure = Exposure(tilt_angle=30.0)
    field = Sampled(net, net.size, 5.0)
    values = net.grid((13, 13, 13), 5.0)
    voxels = Sampled(Voxels(values, 5.0), net.size, 5.0)
    stem = STEM((16, 16), 5.0)
    assert torch.allclose(stem.intensity(field, exposure), stem.intensity(voxels, exposure))
    tem = TEM((16, 16), (24, 24), 5.0, slice_thickness=15.0)
    # By samples, not voxels: the net is not linear between these, and ends in a step.
    seen, wanted = (tem.intensity(one, exposure) for one in (field, voxels))
    assert (seen - wanted).std() < 0.5 * (wanted - 1).std()


def test_it_learns_a_shell():
    """300 steps by its voxels: root mean square below a tenth of the density."""
    n = 16
    z, y, x = np.meshgrid(*[np.arange(n) - n // 2] * 3, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    truth = torch.tensor(np.clip(1.5 - np.abs(radius - 5), 0, 1)).float()
    net = start(small(n, width=16, layers=1), (float(n),) * 3)
    assert isinstance(net, Implicit)
    found = minimise(lambda values: (net.with_values(values).grid((n,) * 3, 1.0) - truth)
                     .square().mean(), net.values(), Optimiser("adam", 150, rate=0.02))
    assert found.loss**0.5 < 0.1


def test_impossible_networks_are_refused():
    for make, key in ((lambda: Levels(rows=100), "rows"), (lambda: Levels(finest=2), "finest"),
                      (lambda: Shape(Octaves(2), 3, 8, skip=3), "skip"),
                      (lambda: start(NETS["grids"], (1.0, 1.0, 0.0)), "size"),
                      (lambda: encoded(torch.zeros(3, 2), points(2), LEVELS), "table")):
        with pytest.raises(ValueError, match=key):
            make()
