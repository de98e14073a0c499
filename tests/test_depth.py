"""How slices share atoms, and how thick they may be."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tem_taichi.device import as_tensor
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.multislice import fresnel_propagator, multislice, propagated
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.projection import Projection
from tem_taichi.instrument.tem import TEM
from tem_taichi.physics import wavelength
from tem_taichi.scene.load import load_scene
from tem_taichi.series.plan import plan, slices_for
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.depth import compensation, highest_frequency, thickest
from tem_taichi.specimen.kinds import kind_of
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.slicing import slices

SHAPE, PIXEL, VOLTAGE = (32, 32), 1.5, 300.0
THETA = math.pi * wavelength(VOLTAGE) * (0.5 / PIXEL) ** 2
"""Phase at the highest frequency for each A of depth."""


def carbons(positions, weight=1.0):
    n = len(positions)
    atoms = Atoms(torch.full((n,), 6), as_tensor(positions), torch.zeros(n, dtype=torch.float64),
                  as_tensor(weight) * torch.ones(n, dtype=torch.float64),
                  torch.zeros(n, dtype=torch.bool))
    pose = Poses(as_tensor([[0.0, 0, 0]]), torch.eye(3, dtype=torch.float64)[None])
    return ParticlesInIce((kind_of(atoms, "carbon"),), (pose,))


def spectrum_of(specimen, thickness, depth, **changes):
    """Of the wave in the plane of the specimen's centre, in the band, less the beam."""
    instrument = TEM(SHAPE, SHAPE, PIXEL, VOLTAGE, 0.0, slice_thickness=thickness, depth=depth,
                     **changes)
    wave, distance = instrument.exit_wave(specimen, Exposure())
    back = fresnel_propagator(SHAPE, PIXEL, wavelength(VOLTAGE), -distance)
    spectrum = torch.fft.fft2(wave - 1) * back
    k = torch.fft.fftfreq(SHAPE[0], PIXEL, dtype=torch.float64)
    return spectrum * (k[:, None] ** 2 + k**2 <= (2 / 3 * 0.5 / PIXEL) ** 2)


def misplaced(depth, thickness, phase):
    """Relative error of a weak atom's wave, rms over depths: measured, and by the formula `phase`
    of theta at each frequency."""
    found, foretold = [], []
    for z in (np.arange(12) + 0.5) / 12 * thickness:
        specimen = carbons([[0.3, -0.2, z]], weight=1e-4)
        true = spectrum_of(specimen, thickness / 100, "smooth")
        off = spectrum_of(specimen, thickness, depth) - true
        power = true.abs().square()
        found.append(float(off.abs().square().sum() / power.sum()))
        k = torch.fft.fftfreq(SHAPE[0], PIXEL, dtype=torch.float64)
        theta = THETA * thickness * (k[:, None] ** 2 + k**2) * (2 * PIXEL) ** 2
        foretold.append(float((phase(theta) ** 2 * power).sum() / power.sum()))
    return math.sqrt(np.mean(found)), math.sqrt(np.mean(foretold))


@pytest.mark.parametrize(("depth", "phase"), [
    ("nearest", lambda theta: theta / math.sqrt(12)),
    ("smooth", lambda theta: theta**2 / math.sqrt(720)),
])
def test_error_of_a_wave_is_as_derived(double, depth, phase):
    """Twelve depths in a slice give the mean square of smooth to 3 %; the next order in theta,
    0.3 at the band's edge here, is left out: 5 % for both."""
    found, foretold = misplaced(depth, 0.3 / THETA / (4 / 9), phase)
    assert found == pytest.approx(foretold, rel=0.05)


def test_smooth_slices_are_ten_times_as_thick_for_the_same_error(double):
    """1 % over the band, by the rule; for the image as for the wave of a weak object."""
    for depth in ("nearest", "smooth"):
        thickness = thickest(depth, highest_frequency(PIXEL, 1.0), VOLTAGE)
        found, _ = misplaced(depth, thickness, lambda theta: theta)
        assert 0.004 < found < 0.01
    assert thickest("smooth", 0.3, VOLTAGE) > 9 * thickest("nearest", 0.3, VOLTAGE)


def test_thickest_slice_follows_the_frequencies_of_the_image():
    unit = thickest("smooth", 0.25, 300.0)
    assert unit == pytest.approx(0.6 / (math.pi * 0.0196875 * 0.25**2), rel=1e-5)
    assert thickest("smooth", 0.125, 300.0) == pytest.approx(4 * unit)
    assert thickest("smooth", 0.25, 100.0) < 0.6 * unit  # wavelength 0.0370 A
    # What the wave's grid cannot hold is in no image; beyond the corners there are no pixels.
    for oversampling, expected in ((1.0, 1 / 6), (1.5, 0.25), (3.0, 8**-0.5), (8.0, 8**-0.5)):
        assert highest_frequency(2.0, oversampling) == pytest.approx(expected)


@pytest.mark.parametrize(("changes", "thickness", "depth"), [
    ([], 155.0, "smooth"),  # 0.6 / (pi 0.0196875 / 16)
    (["pixel_size=4"], 621.0, "smooth"),
    (["specimen.ice.granularity=1"], 150.0, "smooth"),  # a quarter of the ice
    (["interaction.depth=nearest"], 15.5, "nearest"),
    (["interaction.slice_thickness=20"], 20.0, None),
    (["interaction.slice_thickness=20", "interaction.depth=smooth"], 20.0, "smooth"),
    (["+specimen.particles.gold={fiducial: 50, count: 1}"], 155.0, "smooth"),
    (["+specimen.particles.gold={fiducial: 50, count: 1}", "pixel_size=1"], 12.9, "smooth"),
    (["pixel_size=1"], 38.7, "smooth"),
])
def test_scene_without_a_thickness_has_the_thickest(changes, thickness, depth):
    scene = load_scene(overrides=["specimen.ice.thickness=600", "specimen.ice.granularity=0",
                                  *changes])
    assert slices_for(scene) == (pytest.approx(thickness, rel=3e-3), depth)
    assert plan(scene).instrument.slice_thickness == slices_for(scene)[0]


def test_compensation_is_the_factor_of_least_error(double):
    """Against the mean over fractions, summed; 1 at k = 0, finite however thick slices are."""
    thickness = 3.0 / THETA
    factor = compensation("smooth", SHAPE, PIXEL, thickness, VOLTAGE)
    f = (torch.arange(2000) + 0.5) / 2000
    for n in (0, 1, 7, 16):
        theta = THETA * thickness * (n / 16) ** 2
        seen = (1 - f) * torch.exp(-1j * theta * f) + f * torch.exp(1j * theta * (1 - f))
        best = float(seen.real.mean() / seen.abs().square().mean())
        assert float(factor[0, n]) == pytest.approx(best, rel=1e-6)
    assert float(factor[0, 0]) == 1
    huge = compensation("smooth", SHAPE, PIXEL, 1e7, VOLTAGE)
    assert 0 <= float(huge.min()) and float(huge.max()) < 1.45 and float(huge[0, 0]) == 1
    assert compensation("nearest", SHAPE, PIXEL, thickness, VOLTAGE) is None


def test_only_waves_that_propagate_are_compensated(double):
    """A projection holds the atoms as they are, and so do slices that a user asks for."""
    specimen = carbons([[0.0, 0.0, 130.0], [2.0, 1.0, -100.0]])
    wide = 2.0 / THETA
    through = TEM(SHAPE, SHAPE, PIXEL, VOLTAGE, 0.0, slice_thickness=wide, depth="smooth")
    whole = Projection(SHAPE, SHAPE, PIXEL, VOLTAGE, 0.0, slice_thickness=wide, depth="smooth")
    views = [one.view(specimen, Exposure()) for one in (through, whole)]
    compensated, projected = (specimen.slices(v, 0, v.n_slices).sum(0) for v in views)
    plain = replace(views[0], propagates=False)
    total = specimen.slices(plain, 0, plain.n_slices).sum(0)
    assert torch.allclose(total, projected, atol=1e-10 * float(projected.max()))
    assert float((compensated - total).norm() / total.norm()) > 0.01
    assert float(compensated.sum()) == pytest.approx(float(total.sum()), rel=1e-12)


def test_ice_is_not_compensated(double):
    """Grains lie in the middle of their slice, and are not shared."""
    particles = carbons([[0.0, 0.0, 0.0]])
    ice = Ice(thickness=400.0, potential=4.48, granularity=1.0)
    instrument = TEM(SHAPE, SHAPE, PIXEL, VOLTAGE, 0.0, slice_thickness=100.0, depth="smooth")
    empty = ParticlesInIce((), (), ice)
    view = instrument.view(empty, Exposure())
    assert view.propagates
    bare = replace(view, propagates=False)
    assert torch.equal(empty.slices(view, 0, view.n_slices), empty.slices(bare, 0, bare.n_slices))
    # Beside particles only their own part changes; what they take from the ice does not.
    change, alone = ((one.slices(view, 0, view.n_slices) - one.slices(bare, 0, bare.n_slices)).real
                     for one in (replace(particles, ice=ice),
                                 replace(particles, ice=replace(ice, granularity=0.0))))
    assert float(alone.abs().max()) > 1e-3
    assert torch.allclose(change, alone, atol=1e-12 * float(ice.potential) * 100)


@pytest.mark.parametrize("z", [0.0, 13.0, 50.0, 77.0])
def test_gradient_in_z_across_slices(double, z):
    """By central differences; at a slice's centre (50 A), where it jumps, towards larger z."""
    instrument = TEM(SHAPE, SHAPE, PIXEL, VOLTAGE, 0.0, slice_thickness=100.0, depth="smooth")
    lens = Exposure(Optics(defocus=2000.0))
    beside = as_tensor([[2.0, 1.0, 160.0], [-3.0, 0.0, -160.0]])  # keeps the number of slices

    def misfit(z):
        positions = torch.cat([torch.stack([as_tensor(0.3), as_tensor(-0.2), z])[None], beside])
        image = instrument.intensity(carbons(positions), lens)
        return (image * torch.linspace(0, 1, image.numel()).view_as(image)).sum()

    place = as_tensor(z).requires_grad_()
    gradient, = torch.autograd.grad(misfit(place), place)
    step = 1e-3
    low, here, high = (float(misfit(as_tensor(z + d))) for d in (-step, 0.0, step))
    expected = (high - here) / step if z == 50 else (high - low) / (2 * step)
    # Rounding of a sum of about 500 over a step, and what bends over it.
    assert float(gradient) == pytest.approx(expected, rel=1e-4, abs=1e-9)
    if z == 50:
        assert abs((here - low) / step - expected) > 1e-3 * abs(expected)


@dataclass(frozen=True)
class Stranger:
    """A specimen that says nothing of empty slices."""

    specimen: ParticlesInIce

    def depth_range(self, view):
        return self.specimen.depth_range(view)

    def slices(self, view, first, count):
        return self.specimen.slices(view, first, count)

    def attenuation(self, view):
        return None


@pytest.mark.parametrize(("depth", "thickness", "render"), [
    ("nearest", 4.0, "atoms"), ("smooth", 4.0, "atoms"), ("smooth", 40.0, "atoms"),
    ("smooth", 4.0, "volume"), ("nearest", 40.0, "volume")])
def test_empty_slices_are_one_propagation(double, monkeypatch, depth, thickness, render):
    """Neither made nor transformed; the wave and its gradients are those through all of them."""
    asked, moves = [], []
    monkeypatch.setattr("tem_taichi.specimen.particles.slices", lambda *given: (
        asked.extend(range(given[-2], given[-2] + given[-1])) or slices(*given)))
    monkeypatch.setattr("tem_taichi.instrument.tem.propagated", lambda *given: (
        moves.append(given[2]) or propagated(*given)))
    results = []
    for wrap in (lambda specimen: specimen, Stranger):
        positions = as_tensor([[0.3, -0.2, -260.0], [2.0, 1.0, 3.0],
                               [-3.0, 0.0, 7.0], [1.0, 0.0, 240.0]]).requires_grad_()
        voltage = as_tensor(VOLTAGE).requires_grad_()
        instrument = TEM(SHAPE, SHAPE, PIXEL, voltage, 0.05, slice_thickness=thickness, depth=depth)
        kind = replace(carbons([[0.0, 0, 0], [1.0, 0, 0.5]], 500.0).kinds[0], render=render)
        apart = ParticlesInIce((kind,), (
            Poses(positions, torch.eye(3, dtype=torch.float64).expand(4, 3, 3)),))
        image = instrument.intensity(wrap(apart), Exposure(Optics(defocus=2000.0)))
        seen = set(asked), sum(moves) / thickness
        loss = (image * torch.linspace(0, 1, image.numel()).view_as(image)).sum()
        results.append((image.detach(), *torch.autograd.grad(loss, (positions, voltage)),
                        *seen))
        asked.clear(), moves.clear()
    (image, *gradients, here, gap), (expected, *others, everything, no_gap) = results
    assert float(expected.std()) > 1e-3
    assert torch.allclose(image, expected, rtol=1e-12)  # rounding of fewer transforms
    for one, other in zip(gradients, others, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10 * float(other.abs().max()))
    assert here < everything and no_gap == 0
    assert gap == len(everything) - len(here) >= (100 if thickness == 4.0 else 2)


def test_nothing_is_made_for_a_specimen_without_particles(double, monkeypatch):
    monkeypatch.setattr("tem_taichi.specimen.particles.slices", None)
    image = TEM(SHAPE, SHAPE, PIXEL).intensity(ParticlesInIce((), ()), Exposure())
    assert torch.equal(image, torch.ones_like(image))


@pytest.mark.parametrize("absorbs", [False, True])
def test_two_transforms_a_slice_there_and_back(double, monkeypatch, absorbs):
    """None for the transmission functions; on the way back two for the wave's gradient."""
    calls = []
    for name in ("fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn"):
        real = getattr(torch.fft, name)
        monkeypatch.setattr(torch.fft, name, lambda *a, real=real, **k: (
            calls.append(real.__name__) or real(*a, **k)))
    potential = torch.linspace(-10, 50, 12 * 32 * 32, dtype=torch.float64).reshape(12, 32, 32)
    if absorbs:
        potential = torch.complex(potential, 0.1 * potential.abs())
    potential.requires_grad_()
    wave = multislice(potential, 1.0, 10.0, 300.0)
    assert sorted(calls) == ["fft_fft2"] * 12 + ["fft_ifft2"] * 12
    calls.clear()
    torch.autograd.grad(wave.abs().square()[:16].sum(), potential)
    assert sorted(calls) == ["fft_fft2"] * 12 + ["fft_ifft2"] * 12
