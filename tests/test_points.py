"""Atoms of large particles drawn as points against the same atoms drawn one by one."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tem_taichi.device import as_tensor, kernels_for_a_gpu
from tem_taichi.physics import SCATTERING_TO_POTENTIAL
from tem_taichi.rotations import random_rotations, rotation_from_vector, tilt_rotation
from tem_taichi.specimen import choice, gridding, points, slicing
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.choice import cost_of_copies, drawn_as_points
from tem_taichi.specimen.depth import depth_weights
from tem_taichi.specimen.kinds import kind_of
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.view import View


def mixed(n=3000, reach=110.0, b_factors=(0.0, 300.0), seed=0):
    """Atoms of many elements in a ball of a field, about its edges too."""
    rng = np.random.default_rng(seed)
    at = rng.standard_normal((n, 3))
    at *= reach * rng.uniform(0, 1, (n, 1)) ** (1 / 3) / np.linalg.norm(at, axis=1)[:, None]
    share = [.4, .3, .1, .15, .02, .02, .01]
    return kind_of(Atoms(rng.choice([1, 6, 7, 8, 15, 16, 79], n, p=share), at,
                         rng.uniform(*b_factors, n), rng.uniform(0.3, 1, n),
                         rng.uniform(size=n) < 0.1))


def poses(n=3, reach=120.0, seed=1):
    rng = np.random.default_rng(seed)
    return Poses(rng.uniform(-reach, reach, (n, 3)), random_rotations(n, rng))


def seen(pixel, n_slices=4, depth="smooth", shape=None, **how):
    """A field of about 200 A, smaller than the copies reach."""
    n = 2 * math.ceil(100 / pixel)
    shape = shape or (max(n, 32), max(n + 6, 38))
    thickness = 520 / n_slices
    return View(tilt_rotation(40.0, 20.0), as_tensor([7.0, -4.0]), shape, pixel, thickness,
                entrance=-260.0, n_slices=n_slices, depth=depth, **how)


def both(specimen, view, monkeypatch, first=0, count=None):
    """Slices as points, and with a stencil for each atom."""
    found = []
    for as_points in (True, False):
        monkeypatch.setattr(slicing, "drawn_as_points", lambda *_, answer=as_points: answer)
        found.append(specimen.slices(view, first, count or view.n_slices))
    assert not torch.equal(*found)
    return found


def difference(found, expected):
    return float((found - expected).norm() / expected.norm())


def exact(kind, pose, view):
    """Slices by the sum over all atoms of their transforms."""
    ny, nx = view.shape
    ky, kx = np.fft.fftfreq(ny), np.fft.fftfreq(nx)
    squared = as_tensor(ky[:, None] ** 2 + kx**2)
    group = kind.group
    a, b = group.table[group.kind].unbind(1)
    out = torch.zeros((view.n_slices, ny, nx), dtype=torch.complex128)
    for centre, rotation in zip(as_tensor(pose.positions), as_tensor(pose.rotations), strict=True):
        at = (kind.positions @ rotation.T + centre) @ view.rotation.T
        x, y = ((at[:, i] + view.shift[i]) / view.pixel_size + n // 2
                for i, n in ((0, nx), (1, ny)))
        z = (at[:, 2] - view.entrance) / view.slice_thickness
        inside = (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)
        for layer, share in zip(*depth_weights(z, view.n_slices, view.depth), strict=True):
            weight = group.weight * share * inside
            for g in range(a.shape[1]):
                # Few values of b are alike: a grid of them, each right to 1e-8.
                for n in range(view.n_slices):
                    there = torch.nonzero((layer == n) & inside).flatten()
                    factor = torch.exp(-(b[there, g] + group.broadening[there])
                                       / view.pixel_size**2 * squared[..., None])
                    phase = torch.exp(-2j * math.pi * (
                        as_tensor(ky)[:, None, None] * y[there]
                        + as_tensor(kx)[:, None] * x[there]))
                    out[n] += (factor * phase * (weight[there] * a[there, g])).sum(-1)
    out = out * (squared <= 1 / 9) * SCATTERING_TO_POTENTIAL / view.pixel_size**2
    return torch.fft.ifft2(out).real


@pytest.mark.parametrize("depth", ["smooth", "nearest"])
@pytest.mark.parametrize("pixel", [2.0, 4.0, 10.0])
def test_exact(double, depth, pixel, monkeypatch):
    """Found 3e-5, aliases of six taps; scattering factors may be off by up to 1e-4."""
    kind, pose = mixed(150), poses(2)
    view = seen(pixel, 2, depth, (40, 46))
    monkeypatch.setattr(slicing, "drawn_as_points", lambda *_: True)
    found = scene(kind, pose).slices(view, 0, 2)
    assert difference(found, exact(kind, pose, view)) < 1e-4


def scene(kind, pose, **ice):
    return ParticlesInIce((kind,), (pose,), Ice(**{"potential": 0.0, **ice}))


@pytest.mark.parametrize("b_factors", [(0.0, 0.0), (20.0, 20.0), (0.0, 300.0)])
@pytest.mark.parametrize("pixel", [2.0, 3.3, 5.0, 10.0])
def test_as_drawn_one_by_one(pixel, b_factors, monkeypatch):
    """Below 1e-3, the accuracy of stencils."""
    found, expected = both(scene(mixed(b_factors=b_factors), poses(), potential=4.5), seen(pixel),
                           monkeypatch)
    assert difference(found, expected) < 1e-3


@pytest.mark.parametrize("how", [
    {"exposure": 20.0, "propagates": True}, {"depth": "nearest"}, {"n_slices": 1},
    {"shape": (47, 51)}, {"shape": (33, 64)}, {"shape": (48, 36), "n_slices": 9}])
def test_in_other_views(how, monkeypatch):
    """Odd numbers of bands and of pixels, and one slice."""
    found, expected = both(scene(mixed(), poses()), seen(5.0, **how), monkeypatch)
    assert difference(found, expected) < 1e-3


@pytest.mark.parametrize("stronger", [0.0, 1.3])
def test_absorbing(stronger, monkeypatch):
    found, expected = both(
        scene(mixed(), poses(), potential=4.5, mean_free_path=3000.0,
              particle_absorption=stronger), seen(5.0, amplitude_contrast=None), monkeypatch)
    assert expected.is_complex()
    assert difference(found.real, expected.real) < 1e-3
    assert difference(found.imag, expected.imag) < 1e-3


def test_what_is_displaced_of_granular_ice(monkeypatch):
    """It stays widened: what the band leaves out is there too, where aliases are larger."""
    kind, view = mixed(), seen(5.0)
    monkeypatch.setattr(slicing, "drawn_as_points", lambda *_: True)
    names = ["group", "displaced"]
    found = slicing._splatted((kind,), (poses(),), view, 0, 4, names, slicing.VACUUM)
    monkeypatch.setattr(slicing, "drawn_as_points", lambda *_: False)
    expected = slicing._splatted((kind,), (poses(),), view, 0, 4, names, slicing.VACUUM)
    assert difference(found["displaced"], expected["displaced"]) < 2e-3
    found, expected = both(scene(kind, poses(), potential=4.5, granularity=1.0,
                                 thickness=200.0), view, monkeypatch)
    assert difference(found, expected) < 1e-3


@pytest.mark.parametrize("room", [1, 1 << 26])
def test_some_slices_at_a_time_and_twice_are_the_same(room, monkeypatch):
    """In batches too, which change nothing but the order of the sum."""
    kind, pose, view = mixed(), poses(5), seen(5.0, 6)
    monkeypatch.setattr(slicing, "drawn_as_points", lambda *_: True)
    whole = scene(kind, pose).slices(view, 0, 6)
    assert torch.equal(scene(kind, pose).slices(view, 0, 6), whole)
    monkeypatch.setattr(points, "_ROOM", room)
    monkeypatch.setattr(gridding, "_AT_ONCE", 2 * 1500)
    parts = torch.cat([scene(kind, pose).slices(view, first, 2) for first in (0, 2, 4)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=3e-6 * float(whole.abs().max()))


def test_gradients_are_asked_of_stencils(double, monkeypatch):
    """Whatever of an atom's place or factor wants one; a kind beside it needs none."""
    monkeypatch.setattr(choice, "CROWDED", 0.0)
    monkeypatch.setattr(choice, "MANY", 0)
    view, kind, pose = seen(5.0, 3), mixed(60), poses(2)
    assert drawn_as_points(kind, pose, view)

    def leaf(value):
        return as_tensor(value).clone().requires_grad_()

    group = kind.group
    for moving in (replace(kind, positions=leaf(kind.positions)),
                   replace(kind, group=replace(group, broadening=leaf(group.broadening))),
                   replace(kind, group=replace(group, weight=leaf(group.weight))),
                   replace(kind, displaced=replace(kind.displaced, weight=leaf(group.weight)))):
        assert not drawn_as_points(moving, pose, view)
    for name in ("positions", "rotations"):
        assert not drawn_as_points(kind, replace(pose, **{name: leaf(getattr(pose, name))}), view)
    for name in ("rotation", "shift"):
        assert not drawn_as_points(kind, pose, replace(view, **{name: leaf(getattr(view, name))}))
    with kernels_for_a_gpu():
        assert not drawn_as_points(kind, pose, view)

    other = mixed(50, seed=5)
    weights = torch.rand((3, *view.shape), dtype=torch.float64)

    def loss(vectors, positions, potential, first):
        still, moved = pose, Poses(positions, rotation_from_vector(vectors))
        order = (kind, other) if first else (other, kind)
        specimen = ParticlesInIce(order, (still, moved), Ice(potential=potential))
        return (specimen.slices(view, 0, 3) * weights).sum()

    values = [leaf([[0.3, -0.2, 0.5]]), leaf([[11.0, -8.0, 5.0]]), leaf(4.5)]
    for first in (True, False):
        assert torch.autograd.gradcheck(lambda *v, f=first: loss(*v, f), values, atol=1e-3,
                                        rtol=1e-4)


def test_the_rule():
    kind, view = mixed(50_000), seen(5.0, 1, shape=(512, 1000), depth="nearest")
    assert drawn_as_points(kind, poses(3), view)
    assert not drawn_as_points(kind, poses(2), view)  # 128,000 are a quarter of the pixels
    assert not drawn_as_points(kind, poses(3), replace(view, n_slices=2))
    assert drawn_as_points(kind, poses(8), replace(view, n_slices=9))  # it reaches three at most
    assert drawn_as_points(kind, poses(4), replace(view, n_slices=9, depth="smooth"))
    small = replace(view, shape=(64, 64))
    assert drawn_as_points(kind, poses(2), small)
    assert not drawn_as_points(kind, poses(1), small)  # fewer than 100,000
    assert not drawn_as_points(kind, poses(9), replace(view, shape=(31, 64)))
    seconds, memory = cost_of_copies([replace(kind, render="atoms")], [poses(3)], view)
    assert seconds == pytest.approx((150_000 + 512_000) * choice.PER_POINT)
    assert memory >= 4 * 3 * 50_000
