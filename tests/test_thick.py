"""The fit of a specimen that is thicker than the lens's focus is deep."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram_fit import Lens, exposures_of, fitted
from tem_taichi.estimate.tomogram_model import Model
from tem_taichi.experiment import Experiment, images
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.tem import TEM
from tem_taichi.inverse.accelerated import Accelerated, metric_of
from tem_taichi.inverse.measures import shell_correlation
from tem_taichi.inverse.priors import total_variation_curvature, total_variation_slope
from tem_taichi.inverse.shells import measured_region
from tem_taichi.inverse.tomography import contrast
from tem_taichi.noise.camera import Camera
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.field import voxels
from tem_taichi.specimen.rays import Rays

VOXEL, VOLTAGE, SHAPE = 2.0, 30.0, (16, 64)
OPTICS, ANGLES = Optics(defocus=1500.0, spherical_aberration=0.0), np.linspace(-12.0, 12.0, 8)


def grains(depth: int, places: list[int]) -> torch.Tensor:
    """Clusters of grains of 5 V and 4 A, about the middle at some depths."""
    truth, rng = torch.zeros(depth, 16, 20), np.random.default_rng(0)
    for place in places:
        for z, y, x in rng.integers(-3, 4, (30, 3)) + np.array((place, 8, 10)):
            truth[z - 1:z + 1, y - 1:y + 1, x - 1:x + 1] += 5
    return truth


def taken_of(truth: torch.Tensor) -> tuple[Series, pd.DataFrame]:
    """Images by slices and a wave ten and two times as fine as the fit's, with noise."""
    exposures = [Exposure(OPTICS, float(angle), dose=1000.0, stream=n)
                 for n, angle in enumerate(ANGLES)]
    fine = TEM(SHAPE, (2 * SHAPE[0], 2 * SHAPE[1]), VOXEL, VOLTAGE, slice_thickness=4.0)
    taken = images(Experiment(voxels(truth, VOXEL), fine, Camera(VOXEL), exposures), 0)
    stack = torch.stack([image.counts.float() for image in taken])
    tilts = pd.DataFrame({"tilt_angle": ANGLES, "axis_angle": 0.0, "defocus": OPTICS.defocus})
    grid = (len(truth), truth.shape[1], truth.shape[2])
    rays = Rays(torch.stack([tilt_rotation(float(angle)) for angle in ANGLES]),
                torch.zeros(len(ANGLES), 2), grid, VOXEL, SHAPE, VOXEL)
    return Series(contrast(stack), rays, torch.ones_like(stack), (0, 0)), tilts


def found_by(truth: torch.Tensor) -> dict[str, float]:
    """Each model's correlation with the truth from 1/9 to 1/4.5 1/A, of details that were measured.
    """
    series, tilts = taken_of(truth)
    found = {}
    for model in ("projection", "multislice"):
        lens = Lens(VOLTAGE, 0.0, model=model)
        made = fitted(series, exposures_of(series, tilts, lens), lens, 2, 10.0, True, 0,
                      lambda done, of: None, Kept())
        shells = shell_correlation(made.volume, truth, VOXEL,
                                   measured_region(truth.shape, ANGLES[0], ANGLES[-1]))
        fine_ones = (shells.frequency > 1 / 9) & (shells.frequency < 1 / 4.5)
        found[model] = float(shells.correlation[fine_ones].mean())
    return found


def test_slices_find_what_one_plane_of_focus_does_not():
    """176 A from the middle, the phase of details of 4.5 A is off by 1.9."""
    found = found_by(grains(200, [12, 100, 188]))
    assert found["multislice"] > found["projection"] + 0.1


def test_both_models_agree_on_a_thin_specimen():
    """Whose phase is off by 0.1 at most."""
    found = found_by(grains(12, [6]))
    assert found["multislice"] == pytest.approx(found["projection"], abs=0.02)


def test_a_fit_by_slices_comes_near_the_least_loss():
    """Within 0.25 % of the way from nothing to what scipy finds from there on, in 15 steps."""
    series, tilts = taken_of(grains(100, [12, 50, 88])[:, :, 2:-2])
    lens = Lens(VOLTAGE, 0.0, model="multislice")
    model = Model(series.some(range(4)), exposures_of(series, tilts, lens)[:4], lens)
    start = torch.zeros(series.rays.grid)

    def loss(volume):
        misfit, slope = model.gradient(volume)
        cost, by_cost = total_variation_slope(volume, 3.0, 0.1)
        return misfit + cost, slope + by_cost

    metric = metric_of(model.gradient, start).plus(total_variation_curvature(start, 3.0, 0.1))
    run = Accelerated(loss, start, metric)
    for _ in range(15):
        run.step()

    def flat(values):
        value, slope = loss(torch.as_tensor(values, dtype=torch.float32).reshape(start.shape))
        return value, slope.double().flatten().numpy()

    least = minimize(flat, run.volume.flatten().numpy(), jac=True, method="L-BFGS-B",
                     options={"maxfun": 20}).fun
    whole = loss(start)[0]
    assert loss(run.volume)[0] - least < 0.0025 * (whole - least)


@pytest.mark.parametrize("slice_thickness", [12.0, 2.0])
def test_gradients_of_what_multislice_explains(double, slice_thickness):
    """In the voxels, the defocus and the tilt; also where slices are computed again."""
    lens = Lens(VOLTAGE, 0.0, model="multislice", slice_thickness=slice_thickness)
    instrument, rng = lens.instrument((12, 14), VOXEL), np.random.default_rng(1)
    truth, way, image = (torch.tensor(rng.standard_normal(shape)) for shape in (
        (20, 12, 14), (20, 12, 14), (12, 14)))

    def loss(along, defocus, tilt):
        exposure = Exposure(Optics(defocus=defocus), tilt_angle=tilt)
        specimen = voxels(5 * truth + along * way, VOXEL)
        return ((instrument.intensity(specimen, exposure) - 1 - 0.1 * image)**2).sum()

    start = [torch.tensor(value, dtype=torch.float64, requires_grad=True)
             for value in (0.0, 1500.0, 11.0)]
    # Slices share linearly: steps are far shorter than the way to a kink
    assert torch.autograd.gradcheck(loss, start, eps=1e-6, atol=1e-7, rtol=1e-5)
