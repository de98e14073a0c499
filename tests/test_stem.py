"""instrument/stem.py: what passes a specimen along parallel rays, in beams out of focus."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from tem_taichi.experiment import Experiment, expected, images
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.stem import STEM, spread_by
from tem_taichi.noise.camera import Camera
from tem_taichi.specimen.field import Sampled, voxels
from tem_taichi.specimen.view import Attenuation

pytestmark = pytest.mark.usefixtures("double")


@dataclass(frozen=True)
class Ball:
    """A sphere of one density [1/A]; a `Field`."""

    radius: float
    density: float

    def at(self, points):
        return self.density * (points.square().sum(-1) < self.radius**2).double()


@dataclass(frozen=True)
class Plane:
    """What is in one plane already, (ny, nx); a `Specimen`."""

    values: torch.Tensor
    left: torch.Tensor | None = None

    def depth_range(self, view):
        return 0.0, 0.0

    def slices(self, view, first, count):
        return self.values[None]

    def attenuation(self, view):
        return None if self.left is None else Attenuation(self.left, 0.0)


@pytest.mark.parametrize("tilt", [0.0, 35.0, -60.0])
def test_a_slab_is_beer_lamberts(tilt):
    """Its thickness over the cosine: exactly where planes along z are summed; beyond 45 degrees
    planes across x, on which the faces are ramps of voxels, to a tenth of a voxel's part."""
    bound = 1e-12 if abs(tilt) < 45 else 0.1 * 2e-3 * 10
    slab = voxels(torch.full((9, 16, 96), 2e-3, dtype=torch.float64), 10.0)
    # The outermost planes fall to 0 within a voxel: the slab is 9 voxels thick.
    passed = math.exp(-2e-3 * 90 / math.cos(math.radians(tilt)))
    bright = STEM((16, 24), 10.0).intensity(slab, Exposure(tilt_angle=tilt))
    inner = bright[3:-3, 9:-9]
    assert inner.numpy() == pytest.approx(passed, abs=bound)
    dark = STEM((16, 24), 10.0, "dark", offset=0.1).intensity(slab, Exposure(tilt_angle=tilt))
    assert dark[3:-3, 9:-9].numpy() == pytest.approx(1.1 - passed, abs=bound)


def test_a_sphere_is_beer_lamberts_at_any_tilt():
    """Chords, to a step of the samples; the shift moves it, the tilt changes nothing."""
    radius, density, step = 100.0, 4e-3, 0.5
    ball = Sampled(Ball(radius, density), (200.0,) * 3, step)
    seen = STEM((32, 32), 10.0).intensity(ball, Exposure(tilt_angle=41.0, axis_angle=20.0,
                                                         shift_x=20.0, shift_y=-30.0))
    y, x = (10.0 * (torch.arange(32).double() - 16) - by for by in (-30.0, 20.0))
    chord = 2 * (radius**2 - x**2 - y[:, None]**2).clamp(min=0).sqrt()
    assert torch.allclose(-seen.log() / density, chord, atol=2 * step)


def test_counts_are_those_of_the_dose():
    """Means of a slab's counts within 4 deviations of what Poisson's law says."""
    slab = voxels(torch.full((9, 32, 32), 2e-3, dtype=torch.float64), 10.0)
    made = Experiment(slab, STEM((16, 16), 10.0), Camera(10.0), [Exposure(dose=2.0)])
    wanted = 2.0 * 100 * math.exp(-0.18)
    assert expected(made, 0).numpy() == pytest.approx(wanted, rel=1e-12)
    counts = next(iter(images(made, 3))).counts
    assert abs(counts.mean() - wanted) < 4 * (wanted / 256)**0.5


def test_the_surroundings_attenuate_each_ray():
    left = torch.full((8, 8), 0.5, dtype=torch.float64)
    seen = STEM((8, 8), 1.0).intensity(Plane(0 * left, left), Exposure())
    assert torch.equal(seen, left)


FOCUS = Exposure(Optics(defocus=300.0), tilt_angle=50.0, axis_angle=25.0, shift_x=7.0, shift_y=-4.0)
CONE = STEM((20, 18), 5.0, convergence=20.0, probe=2.0)


def test_a_beam_widens_from_the_axis_by_the_tangent():
    """A point's image has the variance that its distance from the axis says."""
    exposure = Exposure(tilt_angle=60.0)
    stem = STEM((64, 64), 10.0, convergence=20.0)
    for column in (32, 40, 50):
        distance = 10.0 * (column - 32)
        deviation = 0.02 * distance * 3**0.5 / 2 / 10.0
        variance = stem.variance(exposure)
        assert variance[5, column] == pytest.approx(deviation**2)
        # As wide everywhere as here: what leaves this pixel is then what arrives in it.
        point = torch.zeros(96, 96, dtype=torch.float64)
        point[48, 48] = 1.0
        seen = spread_by(point, variance[:1, column:column + 1].expand(64, 64), 16)
        place = torch.arange(64.0) - 32
        assert seen.sum() == pytest.approx(1.0, abs=1e-9)
        assert (seen.sum(0) * place**2).sum() == pytest.approx(deviation**2, rel=1e-9, abs=1e-9)
        assert seen.min() > -1e-12


def test_focus_is_where_height_and_defocus_are_opposite():
    """z of the tilted plane, of the sign that images of a thin specimen have: see `optics`."""
    height = replace(CONE, shape=(64, 64)).height(Exposure(Optics(defocus=100.0), tilt_angle=45.0))
    # A right-handed tilt about +y lowers +x: 100 A to the right of the axis z is -100 A.
    assert float(height[10, 32 + 20]) == pytest.approx(0.0, abs=1e-9)
    assert float(height[10, 32 - 20]) == pytest.approx(200.0)
    still = replace(CONE, dynamic_focus=True).height(Exposure(tilt_angle=45.0))
    assert (still == 0).all()


def test_each_pixel_has_a_beam_of_its_own():
    """Interpolated beams are those made one by one."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.rand(60, 58, generator=generator, dtype=torch.float64)
    variance = 9 * torch.rand(20, 18, generator=generator, dtype=torch.float64)
    both = spread_by(wide, variance, 20)
    for y, x in ((0, 0), (7, 11), (19, 17)):
        alone = spread_by(wide, variance[y:y + 1, x:x + 1].expand(20, 18), 20)
        assert both[y, x] == pytest.approx(float(alone[y, x]), abs=1e-12)


def smooth_specimen():
    """A grid of Gaussians, wider than pixels."""
    z, y, x = torch.meshgrid(*(5.0 * (torch.arange(n) - n // 2) for n in (12, 20, 18)),
                             indexing="ij")
    total = sum(w * torch.exp(-((x - a)**2 + (y - b)**2 + (z - c)**2) / 2 / 12.0**2)
                for w, a, b, c in ((0.02, 10.0, 5.0, 3.0), (0.03, -15.0, -20.0, -8.0)))
    return total.double()


def test_random_rays_mean_the_exact_beam():
    """Within 5 deviations of their mean, and 1 % of the contrast for their interpolation; a fifth
    of the beam's change is left by chance."""
    specimen, rays = voxels(smooth_specimen(), 5.0), 1500
    exact = CONE.intensity(specimen, FOCUS)
    one = torch.stack([replace(CONE, rays=1, seed=n).intensity(specimen, FOCUS)
                       for n in range(20)]).std(0)
    many = replace(CONE, rays=rays, seed=99).intensity(specimen, FOCUS)
    sharp = replace(CONE, convergence=0.0, probe=0.0).intensity(specimen, FOCUS)
    bound = 5 * one / rays**0.5 + 0.01 * (1 - sharp.min())
    assert ((many - exact).abs() < bound).all()
    assert (many - exact).norm() < 0.2 * (exact - sharp).norm()
    again = replace(CONE, rays=rays, seed=99).intensity(specimen, FOCUS)
    assert torch.equal(many, again)


@pytest.mark.parametrize("rays", [None, 3])
@pytest.mark.parametrize("signal", ["bright", "dark"])
def test_gradients_of_every_number_are_differences(rays, signal):
    """Central differences of step 1e-5 in each number's own size: 1e-6 of the gradient."""
    values = smooth_specimen()
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(20, 18, generator=generator, dtype=torch.float64)
    start = {"density": 1.0, "tilt": 50.0, "axis": 25.0, "x": 7.3, "y": -4.1, "defocus": 300.0,
             "convergence": 20.0, "probe": 2.0, "offset": 0.1}

    def loss(given):
        stem = STEM((20, 18), 5.0, signal, offset=given["offset"], probe=given["probe"],
                    convergence=given["convergence"], rays=rays)
        exposure = Exposure(Optics(defocus=given["defocus"]), tilt_angle=given["tilt"],
                            axis_angle=given["axis"], shift_x=given["x"], shift_y=given["y"])
        return (weights * stem.intensity(voxels(values * given["density"], 5.0), exposure)).sum()

    free = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
            for name, value in start.items()}
    found = torch.autograd.grad(loss(free), list(free.values()))
    for (name, value), gradient in zip(start.items(), found, strict=True):
        step = 1e-5 * max(abs(value), 1.0)
        with torch.no_grad():
            ends = [float(loss({**start, name: torch.tensor(value + by, dtype=torch.float64)}))
                    for by in (step, -step)]
        # Rays are linear between voxels and rays of the lattice between pixels: the kinks that a
        # step crosses are what is left.
        assert float(gradient) == pytest.approx((ends[0] - ends[1]) / 2 / step, rel=2e-4), name


def test_voxels_have_gradients():
    values = smooth_specimen().requires_grad_()
    way = torch.randn(values.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def total(field):
        return CONE.intensity(voxels(field, 5.0), FOCUS).square().sum()

    slope = (torch.autograd.grad(total(values), values)[0] * way).sum()
    with torch.no_grad():
        ends = [float(total(values + by * way)) for by in (1e-6, -1e-6)]
    assert float(slope) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize(("key", "value"), [
    ("signal", "grey"), ("offset", -1.0), ("convergence", -1.0), ("probe", -1.0), ("rays", 0),
    ("pixel_size", 0.0)])
def test_impossible_numbers_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        replace(CONE, **{key: value})
