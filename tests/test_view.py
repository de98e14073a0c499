"""view.py: the structure of the ice among the slices of a view."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tem_taichi import TEM, Exposure, Optics, detect
from tem_taichi.device import as_tensor
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.ice import ice_power, mean_potential
from tem_taichi.specimen.ice_shape import IceShape
from tem_taichi.specimen.kinds import kind_of
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.view import View

GRANULAR = Ice(200.0, 4.48, granularity=1.0, seed=3)


def view_of(shape=(128, 128), n_slices=10, **changes):
    return replace(View(rotation=torch.eye(3), shift=torch.zeros(2), shape=shape, pixel_size=1.0,
                        slice_thickness=20.0, entrance=-100.0, n_slices=n_slices),
                   **changes)


def test_a_stack_of_ice_has_the_power_of_its_thickness():
    stack = ParticlesInIce((), (), GRANULAR).slices(view_of((256, 256)), 0, 10)
    spectrum = torch.fft.fft2(stack.sum(0)).abs().square() / 256**2  # area = pixels here
    k = torch.fft.fftfreq(256)
    k = (k[:, None] ** 2 + k[None, :] ** 2).sqrt()
    ring = (k > 0.2) & (k < 0.3)
    expected = 200.0 * ice_power(k[ring]).mean()
    # Some 10,000 coefficients, in pairs: sqrt(2 / 10,000) = 1.4 %, three of them
    assert float(spectrum[ring].mean()) == pytest.approx(float(expected), rel=0.045)


def test_slices_do_not_depend_on_how_many_are_made_at_once():
    specimen = ParticlesInIce((), (), GRANULAR)
    whole = specimen.slices(view_of(), 0, 10)
    assert torch.equal(whole[4:6], specimen.slices(view_of(), 4, 2))
    shifted = specimen.slices(view_of(entrance=-40.0, n_slices=4), 0, 4)
    assert torch.equal(whole[3:7], shifted)  # the same depths by another count


def test_each_exposure_has_its_own_ice_and_nothing_of_the_noise():
    specimen = ParticlesInIce((), (), GRANULAR)
    one, other = (specimen.slices(view_of(stream=n), 5, 1)[0] for n in (0, 1))
    noise = detect(torch.full((128, 128), 1.0), pixel_size=1.0, dose=50.0, seed=3) - 50.0
    for second in (other, noise):
        correlation = float((one * second).mean() / (one.std() * second.std()))
        assert abs(correlation) < 4 / np.sqrt(128**2 * 0.35)  # the band holds 0.35 of the pixels


def test_particles_and_vacuum_leave_no_room_for_ice():
    """A ball of carbon atoms as dense as to displace everything, and slices beyond the slab."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-30, 30, (20_000, 3))
    points = points[np.linalg.norm(points, axis=1) < 30]
    n = len(points)
    atoms = Atoms(torch.full((n,), 6), torch.as_tensor(points).float(), torch.zeros(n),
                  torch.full((n,), 1e-6), torch.zeros(n, dtype=torch.bool))
    kind = kind_of(atoms)
    volume = 4 / 3 * np.pi * 30**3
    scale = volume / n / 16.44  # of Fraser's volume of carbon: the ball is full then
    kind = replace(kind, displaced=kind.displaced.scaled(1e6 * scale))
    specimen = ParticlesInIce((kind,), (Poses(np.zeros((1, 3)), np.eye(3)[None]),), GRANULAR)
    middle = specimen.slices(view_of(), 5, 1)[0] + 0.0
    noise = middle - middle.mean()
    y, x = np.indices((128, 128)) - 64
    inside = torch.as_tensor(np.hypot(x, y) < 18)
    outside = torch.as_tensor(np.hypot(x, y) > 45)
    # What is left inside is the graininess of 20,000 atoms at random.
    assert float(noise[inside].std()) < 0.6 * float(noise[outside].std())
    beyond = ParticlesInIce((), (), GRANULAR).slices(view_of(entrance=-300.0), 0, 10)
    assert float(beyond[:10].abs().max()) == 0.0


def test_extent_holds_the_tilted_slab():
    angle = np.deg2rad(30)
    rotation = torch.tensor([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0],
                             [-np.sin(angle), 0, np.cos(angle)]])
    view = view_of((500, 1000), rotation=rotation)
    low, high = ParticlesInIce((), (), GRANULAR).depth_range(view)
    assert high == pytest.approx(500 * np.tan(angle) + 100 / np.cos(angle), rel=1e-6)
    assert low == -high
    assert ParticlesInIce((), (), Ice(200.0, 4.48)).depth_range(view) == (0.0, 0.0)


def test_carbon_has_its_mean_potential_beside_the_hole(double):
    shape = IceShape(100.0, 100.0, 30.0, carbon_thickness=60.0)
    ice = Ice(100.0, 4.48, shape=shape)
    view = view_of(entrance=-60.0, n_slices=6, rotation=torch.eye(3, dtype=torch.float64),
                   shift=torch.zeros(2, dtype=torch.float64))
    total = ParticlesInIce((), (), ice).slices(view, 0, 6).sum(0)
    assert float(total[64, 64]) == 0.0
    assert float(total[64, 4]) == pytest.approx(60 * (mean_potential("carbon") - 4.48), rel=1e-6)


@pytest.mark.parametrize("shape", [None, IceShape(237.0, 500.0, 120.0, carbon_thickness=100.0)],
                         ids=["slab", "lens in a film"])
def test_gradient_of_the_thickness_of_granular_ice(shape, double):
    """Surfaces that cross pixels and slices. Steps of 1 A differ by percents, as an image is not
    straight over what a grain is wide: differences of 1e-4 A agree to rounding."""
    def loss(thickness):
        layer = None if shape is None else replace(shape, thickness=thickness)
        ice = Ice(thickness, 4.48, mean_free_path=3950.0, granularity=1.0, seed=3, shape=layer)
        tem = TEM((32, 32), (48, 48), 4.0, slice_thickness=40.0)
        image = tem.intensity(ParticlesInIce((), (), ice),
                              Exposure(Optics(defocus=1e4), tilt_angle=30.0))
        ramp = torch.linspace(0, 1, 32, dtype=image.dtype)
        return (image * ramp).sum() + 30 * ((image - 1) ** 2).sum()

    thickness = as_tensor(237.0).requires_grad_()
    gradient, = torch.autograd.grad(loss(thickness), thickness)
    with torch.no_grad():
        difference = (loss(as_tensor(237.0001)) - loss(as_tensor(236.9999))) / 2e-4
    assert float(difference) == pytest.approx(float(gradient), rel=1e-5)


def grains(view, **particles):
    """Structure of the ice alone, in a slice: what twice the strength adds."""
    with torch.no_grad():
        one, two = (ParticlesInIce(particles.get("kinds", ()), particles.get("poses", ()),
                                   replace(GRANULAR, granularity=strength)).slices(view, 5, 1)[0]
                    for strength in (1.0, 2.0))
    return two - one


def test_what_a_particle_takes_of_the_ice_does_not_ring():
    """Where grains are is told by its atoms as splatted: wider by a pixel, and gone beyond."""
    kind = kind_of(Atoms(torch.full((1,), 6), torch.zeros((1, 3)), torch.zeros(1), torch.ones(1),
                         torch.zeros(1, dtype=torch.bool)))
    there = grains(view_of(), kinds=(kind,), poses=(Poses(np.zeros((1, 3)), np.eye(3)[None]),))
    bare = grains(view_of())
    change = (there - bare).abs()
    y, x = np.indices((128, 128)) - 64
    away = torch.as_tensor(np.hypot(x, y) > 8)
    assert float(change.max()) > 5e-3 * float(bare.abs().max())
    # exp(-pi^2 8^2 / 38) = 6e-8 of the broadened Gaussian; what is left is rounding.
    assert float(change[away].max()) < 1e-5 * float(bare.abs().max())
