"""experiment.py: any specimen, instrument and noise law that have the methods work together."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tem_taichi.batches import expected_image
from tem_taichi.device import as_tensor
from tem_taichi.experiment import Experiment, expected, images, negative_log_prob
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics, ctf
from tem_taichi.instrument.projection import Projection
from tem_taichi.instrument.tem import TEM
from tem_taichi.noise.camera import Camera
from tem_taichi.noise.detector import Detector, detect
from tem_taichi.noise.gaussian import Gaussian
from tem_taichi.noise.likelihood import log_prob
from tem_taichi.physics import SCATTERING_TO_POTENTIAL, interaction_constant
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.field import Sampled, Voxels, voxels
from tem_taichi.specimen.particles import Ice, ParticlesInIce, kind_of
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.potential import peng_table
from tem_taichi.streams import Key

GRID = (48, 48)
LENS = Optics(defocus=4000.0)
EXPOSURES = [Exposure(LENS, tilt, -8.0, 2.0, -3.0, dose=20.0, stream=n)
             for n, tilt in enumerate((0.0, 30.0))]


IRON = np.random.default_rng(3).uniform(-14, 14, (20, 3))


def particles(ice=None, b_factor=60.0):
    atoms = Atoms(np.full(20, 26), IRON, np.full(20, b_factor), np.ones(20),
                  np.zeros(20, dtype=bool))
    return ParticlesInIce((kind_of(atoms),), (Poses(np.zeros((1, 3)), np.eye(3)[None]),),
                          ice or Ice())


def ball(n=24, voxel=2.0):
    """A smooth ball beside the centre, of no symmetry that a wrong axis or sign would keep."""
    z, y, x = np.meshgrid(*[(np.arange(n) - n // 2) * voxel] * 3, indexing="ij")
    return 8 * np.exp(-((x - 6) ** 2 + (y + 4) ** 2 / 2 + (z - 3) ** 2 / 3) / 50)


SPECIMENS = {"particles": particles, "voxels": lambda: voxels(as_tensor(ball()), 2.0)}
INSTRUMENTS = {
    "multislice": lambda: TEM(GRID, GRID, 1.5, slice_thickness=8.0),
    "projection": lambda: Projection(GRID, GRID, 1.5),
    "linear": lambda: Projection(GRID, GRID, 1.5, linear=True),
}
LAWS = {
    "camera": lambda: Camera(1.5),
    "coloured, cropped": lambda: Camera(1.5, Detector("integrating", mtf=[0.4, 0.2, 0.1, 3, 9],
                                                      dqe=0.6), (40, 36)),
    "gaussian": lambda: Gaussian(1.5, 6.0),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("instrument", INSTRUMENTS)
@pytest.mark.parametrize("specimen", SPECIMENS)
def test_any_three_make_images_and_explain_them(double, specimen, instrument, law):
    made = Experiment(SPECIMENS[specimen](), INSTRUMENTS[instrument](), LAWS[law](), EXPOSURES)
    recorded = list(images(made, 5))
    again = list(images(replace(made, exposures=EXPOSURES[1:]), 5))
    assert torch.equal(again[0].counts, recorded[1].counts)  # whatever else is recorded
    for n, image in enumerate(recorded):
        assert torch.equal(image.expected, expected(made, n))
        # Their difference is noise: of mean 0 within four standard errors
        noise = image.counts - image.expected
        assert abs(float(noise.mean())) < 4 * float(noise.std()) / math.sqrt(noise.numel())
    counts = torch.stack([image.counts for image in recorded])
    # The sum of the parts; and the truth explains its counts better than another defocus does.
    whole = float(negative_log_prob(made, counts))
    parts = [float(negative_log_prob(made, counts, [n])) for n in (0, 1)]
    assert whole == pytest.approx(sum(parts), rel=1e-12)
    wrong = [replace(e, optics=Optics(defocus=9000.0)) for e in EXPOSURES]
    assert whole < float(negative_log_prob(replace(made, exposures=wrong), counts))


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_a_voxel_has_a_gradient_through_every_instrument(double, instrument):
    values = as_tensor(ball()).requires_grad_()
    angle, defocus = as_tensor(30.0).requires_grad_(), as_tensor(4000.0).requires_grad_()
    truth = Experiment(voxels(as_tensor(1.3 * ball()), 2.0), INSTRUMENTS[instrument](),
                       Gaussian(1.5, 6.0), EXPOSURES[1:])
    counts = torch.stack([image.counts for image in images(truth, 1)])

    def loss(values, angle, defocus):
        exposure = replace(EXPOSURES[1], tilt_angle=angle, optics=Optics(defocus=defocus))
        return negative_log_prob(replace(
            truth, specimen=voxels(values, 2.0), exposures=[exposure]), counts)

    given = (values, angle, defocus)
    gradients = torch.autograd.grad(loss(*given), given)
    for n, step in enumerate((1e-4, 1e-5, 1e-2)):
        way = torch.zeros_like(given[n])
        way.view(-1)[torch.argmax(gradients[n].abs().reshape(-1))] = step
        with torch.no_grad():
            ends = [float(loss(*(v + sign * way if i == n else v for i, v in enumerate(given))))
                    for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        # Steps leave curvature times step^2 and rounding over step: 1e-6 of these slopes. Within
        # 1e-5 A of tilt a ray may cross to the next voxel, where linear interpolation has a corner.
        assert float((gradients[n] * way).sum()) / step == pytest.approx(slope, rel=1e-4)


def test_voxels_of_particles_look_like_the_particles(double):
    """The same atoms as a density in space, from the formula of their Gaussians; tilted."""
    b_factor, voxel, n = 200.0, 0.75, 64
    specimen = particles(b_factor=b_factor)
    axis = (torch.arange(n) - n // 2).double() * voxel
    grid = torch.zeros(n, n, n, dtype=torch.float64)
    for x, y, z in IRON:
        squared = ((axis - z) ** 2)[:, None, None] + ((axis - y) ** 2)[:, None] + (axis - x) ** 2
        for weight, b in peng_table()[26].T:
            width = b + b_factor / 4
            grid += weight * (math.pi / width) ** 1.5 * torch.exp(-math.pi**2 * squared / width)
    grid *= SCATTERING_TO_POTENTIAL
    instrument = TEM(GRID, GRID, 1.5, slice_thickness=4.0, amplitude_contrast=0.0)
    ours, theirs, mirrored = (
        instrument.intensity(one, EXPOSURES[1]) - 1
        for one in (voxels(grid, voxel), specimen, voxels(grid.flip(0), voxel)))
    # Detail beyond the pixels' Nyquist frequency, exp(-50 / 9) of the amplitude, is aliased, and
    # linear interpolation damps what is at half of it by (sinc 1/8)^2, 5 %.
    assert float((ours - theirs).norm() / theirs.norm()) < 0.07
    assert float((mirrored - theirs).norm() / theirs.norm()) > 0.5


def test_the_linear_projection_is_that_of_the_ctf(double):
    """1 + 2 F^-1[CTF F(sigma V)], on a specimen of no depth and so weak that nothing is cut."""
    flat = ball()
    flat[:11], flat[14:] = 0, 0
    specimen, contrast = voxels(as_tensor(1e-3 * flat), 2.0), 0.1
    instrument = Projection(GRID, GRID, 1.5, 300.0, contrast, linear=True)
    image = instrument.intensity(specimen, Exposure(LENS))
    view = instrument.view(specimen, Exposure(LENS))
    phase = float(interaction_constant(300.0)) * specimen.slices(view, 0, 1)[0]
    transfer = ctf(GRID, 1.5, 300.0, LENS, contrast)
    mine = 1 + 2 * torch.fft.ifft2(torch.fft.fft2(phase) * transfer).real
    # float64 sums of 2,000 terms
    assert float((image - mine).abs().max()) < 1e-12 * float((mine - 1).abs().max()) + 1e-13


def test_a_camera_is_its_detector(double):
    """Counts and likelihood of the functions that were there before."""
    detector = Detector("counting", gain=2.0, mtf=[0.4, 0.2, 0.1, 3, 9], dqe=0.8)
    instrument, exposure = TEM(GRID, GRID, 1.5), EXPOSURES[1]
    intensity = instrument.intensity(particles(), exposure)
    law = Camera(1.5, detector)
    counts = law.sample(intensity, 20.0, Key(5, "noise", 1))
    assert torch.equal(counts, detect(intensity, pixel_size=1.5, dose=20.0, detector=detector,
                                      seed=5, stream=1))
    assert torch.equal(law.expected(intensity, exposure.dose),
                       expected_image(particles(), instrument, exposure, detector))
    assert float(law.log_prob(counts, intensity, 20.0)) == float(log_prob(
        counts, intensity, pixel_size=1.5, dose=20.0, detector=detector))
    halves = replace(law, halves=True).sample(intensity, 20.0, Key(5, "noise", 1))
    assert torch.allclose(halves.sum(0), counts, rtol=1e-12)


def test_gaussian_noise_has_its_strength(double):
    law, flat = Gaussian(2.0, 5.0), torch.ones(200, 200, dtype=torch.float64)
    counts = law.sample(flat, 3.0, Key(1, "noise"))
    assert torch.equal(counts, law.sample(flat, 3.0, Key(1, "noise")))
    # Standard errors 5 / 200 and 5 / (200 sqrt 2), four of each
    assert float(counts.mean()) == pytest.approx(12.0, abs=0.1)
    assert float(counts.std()) == pytest.approx(5.0, abs=0.07)
    normal = torch.distributions.Normal(torch.full_like(flat, 12.0), 5.0)
    assert float(law.log_prob(counts, flat, 3.0)) == pytest.approx(
        float(normal.log_prob(counts).sum()), rel=1e-12)


@dataclass(frozen=True)
class Stripes:
    """A specimen of a stranger: three methods are all it takes."""

    strength: torch.Tensor

    def depth_range(self, view):
        return -5.0, 5.0

    def slices(self, view, first, count):
        x = torch.arange(view.shape[1]) * (2 * math.pi / 8)
        return (self.strength * torch.cos(x)).expand(count, *view.shape)

    def attenuation(self, view):
        return None


class SamplesOnly:
    """A noise law without a likelihood, as a style is."""

    def expected(self, intensity, dose):
        return intensity * dose

    def sample(self, intensity, dose, key):
        return intensity * dose + as_tensor(key.generator().laplace(size=tuple(intensity.shape)))


def test_a_strangers_parts_need_nothing_else():
    strength = torch.tensor(3.0, requires_grad=True)
    made = Experiment(Stripes(strength), TEM((32, 32), (32, 32), 1.0), Gaussian(1.0, 1.0),
                      [Exposure(LENS, dose=50.0)])
    counts = torch.stack([image.counts for image in images(made, 0)])
    negative_log_prob(replace(made, specimen=Stripes(strength * 1.1)), counts).backward()
    assert float(strength.grad) != 0
    mute = replace(made, noise=SamplesOnly())
    assert next(images(mute, 0)).counts.shape == (32, 32)
    with pytest.raises(ValueError, match="noise=SamplesOnly: must have log_prob"):
        negative_log_prob(mute, counts)
    with pytest.raises(ValueError, match="counts of 1 images: must be one for each of the 2"):
        negative_log_prob(replace(made, exposures=EXPOSURES), counts)


@pytest.mark.parametrize("n", [8, 9])
@pytest.mark.parametrize("make", [TEM, Projection])
def test_slices_hold_all_of_a_grid(double, n, make):
    """Also its ends, where it falls to 0 within a voxel: samples a voxel apart add up exactly."""
    specimen = voxels(torch.ones(n, n, n, dtype=torch.float64), 2.0)
    view = (instrument := make(GRID, GRID, 2.0, slice_thickness=4.0)).view(specimen, Exposure())
    assert float(specimen.slices(view, 0, view.n_slices).sum()) * instrument.wave_pixel**2 == (
        pytest.approx(n**3 * 2.0**3, rel=1e-12))


class Module(torch.nn.Module):
    """A field whose parameter no dataclass holds."""

    def __init__(self):
        super().__init__()
        self.strength = torch.nn.Parameter(torch.tensor(2.0))

    def at(self, points):
        return self.strength * torch.exp(-points.square().sum(-1) / 100)


@dataclass(frozen=True)
class Held:
    """The same, of a tensor in a dataclass."""

    strength: torch.Tensor

    def at(self, points):
        return self.strength * torch.exp(-points.square().sum(-1) / 100)


@pytest.mark.parametrize("thickness", [8.0, 1.0])
def test_no_gradient_of_a_field_is_lost_where_slices_are_computed_again(thickness):
    """At 1 A there are 40 slices, which are; what cannot be found there is refused."""
    instrument = TEM((24, 24), (24, 24), 2.0, slice_thickness=thickness)
    defocus, angle = (torch.tensor(value, requires_grad=True) for value in (4e3, 10.0))

    def loss(field, angle):
        specimen = Sampled(field, (40.0, 40.0, 40.0), 1.0)
        exposure = Exposure(Optics(defocus=defocus), angle)
        return (instrument.intensity(specimen, exposure) ** 2).sum()

    gradients = []
    for tilt in (10.0, angle):
        strength, module = torch.tensor(2.0, requires_grad=True), Module()
        loss(Held(strength), tilt).backward()
        gradients.append(float(strength.grad))
        if thickness == 1.0 and tilt is angle:
            with pytest.raises(ValueError, match="requires a gradient but would lose it"):
                loss(module, tilt).backward()
        else:
            loss(module, tilt).backward()
            assert float(module.strength.grad) == pytest.approx(gradients[-1], rel=1e-4)
    assert gradients[0] != 0
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-4)  # sums of single precision


def test_a_camera_keeps_no_more_than_there_is():
    with pytest.raises(ValueError, match=r"shape=\(40, 8\): must be at most the field's"):
        Camera(1.0, shape=(40, 8)).expected(torch.ones(32, 32), 1.0)


def test_voxels_that_cannot_be_are_named():
    with pytest.raises(ValueError, match=r"values of shape \(1, 4, 4\)"):
        Voxels(torch.zeros(1, 4, 4), 1.0)
    with pytest.raises(ValueError, match="voxel_size"):
        voxels(torch.zeros(4, 4, 4), 0.0)
    with pytest.raises(ValueError, match="sigma"):
        Gaussian(1.0, 0.0)
