"""The fit of a tomogram: gradients, its metric and steps, and volumes of wider voxels."""


import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

from tem_taichi.estimate import phase_images
from tem_taichi.estimate.tilt_images import Grid, Series, series_of
from tem_taichi.estimate.tomogram_fit import exposures_of
from tem_taichi.estimate.tomogram_model import Lens, Model
from tem_taichi.inverse.accelerated import Accelerated, Metric, metric_of
from tem_taichi.inverse.priors import (
    total_variation,
    total_variation_curvature,
    total_variation_slope,
)
from tem_taichi.specimen.rays import project

LENS = Lens(300.0, 2.7, 0.07)


def blobs(shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    z, y, x = torch.meshgrid(*(torch.arange(n) - n // 2 for n in shape), indexing="ij")
    volume = torch.zeros(shape)
    for _ in range(6):
        at = rng.uniform(-0.15, 0.15, 3) * shape
        far = (z - at[0])**2 + (y - at[1])**2 + (x - at[2])**2
        volume += rng.uniform(1, 3) * torch.exp(-far / 24)
    return volume


def given(noise: float = 0.02) -> tuple[Series, pd.DataFrame]:
    """Images of noise, with a shift, astigmatism and doses."""
    n, rng = 3, np.random.default_rng(1)
    tilts = pd.DataFrame({
        "tilt_angle": [-40.0, 0.0, 50.0], "axis_angle": 4.0, "shift_x": 3.0, "shift_y": -5.0,
        "defocus_u": 21000.0, "defocus_v": 19000.0, "astigmatism_angle": 30.0,
        "dose": 3.0, "prior_dose": [0.0, 3.0, 6.0]})
    images = 1 + noise * rng.standard_normal((n, 20, 24))
    mask = np.ones((20, 24))
    mask[3:5, 6:9] = 0
    return series_of(images, tilts, 8.0, Grid(80.0, margin=20.0), mask), tilts


@pytest.mark.parametrize("lens", [LENS, Lens(300.0, 2.7, 0.07, "multislice", 40.0)])
def test_the_misfit_has_the_gradient_of_differences(double, lens):
    """Along one direction: what the fit follows, through damage, lens and free brightness."""
    series, tilts = given()
    model = Model(series.some([0, 2]), exposures_of(series, tilts, lens)[::2], lens)
    rng = np.random.default_rng(2)
    volume, way = (torch.as_tensor(rng.standard_normal(series.rays.grid)) for _ in range(2))
    value, slope = model.gradient(volume)
    step = 1e-4
    ahead, behind = (model.misfit(volume + sign * step * way) for sign in (1, -1))
    assert float((slope * way).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-6)
    assert value == pytest.approx(model.misfit(volume), rel=1e-12)


def test_images_made_together_are_those_of_the_instrument(double, monkeypatch):
    """Whose defocus changes across them, with what the dose has left; in groups of two."""
    monkeypatch.setattr(phase_images, "_TOGETHER", 2200)
    series, tilts = given()
    model = Model(series, exposures_of(series, tilts, LENS), LENS)
    assert model.phases is not None and [len(group.of) for group in model.phases] == [4, 3]
    volume = torch.as_tensor(np.random.default_rng(2).standard_normal(series.rays.grid))
    together, slope = model.images(volume), model.gradient(volume)[1]
    model.phases, model.groups = None, [slice(n, n + 1) for n in range(3)]
    for one, other in zip(together, model.images(volume), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    torch.testing.assert_close(slope, model.gradient(volume)[1], rtol=1e-9, atol=1e-12)


def test_waves_through_slices_are_made_one_by_one():
    series, tilts = given()
    lens = Lens(300.0, 2.7, 0.07, "multislice", 40.0)
    assert Model(series, exposures_of(series, tilts, lens), lens).phases is None


def test_damage_takes_detail_of_images_with_a_dose_before_them(double):
    series, tilts = given()
    tilts["prior_dose"] = [0.0, 3.0, 100.0]
    volume = torch.as_tensor(np.random.default_rng(0).standard_normal(series.rays.grid))

    def contrast(table, damage):
        lens = Lens(300.0, 2.7, 0.07, damage=damage)
        return float(Model(series, exposures_of(series, table, lens), lens).images(volume)[2].std())

    whole = contrast(tilts, 0.0)
    assert contrast(tilts, 1.0) < 0.6 * whole
    assert contrast(tilts.drop(columns="dose"), 1.0) == pytest.approx(whole, rel=1e-6)


def test_the_slope_of_total_variation_is_that_of_its_graph(double):
    volume = torch.as_tensor(np.random.default_rng(0).standard_normal((4, 5, 6)))
    free = volume.clone().requires_grad_()
    value = total_variation(free, 0.7, 0.3)
    value.backward()
    found, slope = total_variation_slope(volume, 0.7, 0.3)
    assert found == pytest.approx(float(value.detach()), rel=1e-12)
    torch.testing.assert_close(slope, free.grad, rtol=1e-12, atol=1e-12)


def test_total_variation_is_nowhere_more_curved_than_said(double):
    """Of waves that end at the volume's edge as they begin: exactly so, where they are weak."""
    volume = torch.zeros(1, 1, 16)
    volume[0, 0] = 1e-6 * torch.cos(2 * torch.pi * 4 * torch.arange(16) / 16)
    said = total_variation_curvature(volume, 0.5, 0.1)
    _, slope = total_variation_slope(volume, 0.5, 0.1)
    inside = slice(1, -1)
    ratio = slope[0, 0, inside] @ volume[0, 0, inside] / volume[0, 0, inside].square().sum()
    assert ratio == pytest.approx(float(said[0, 0, 4]), rel=1e-3)


def test_steps_end_where_a_quadratic_is_least(double):
    """A blur to be undone, of curvatures from 1e-2 to 1 by frequency, and a metric found by it."""
    shape = (8, 12, 10)
    k = torch.fft.fftfreq(8)[:, None, None]**2 + torch.fft.fftfreq(12)[:, None]**2 + (
        torch.fft.rfftfreq(10)**2)
    transfer = 0.01 + torch.exp(-k / 0.05)
    target = torch.as_tensor(np.random.default_rng(0).standard_normal(shape))

    def gradient(volume):
        left = volume - target
        slope = torch.fft.irfftn(torch.fft.rfftn(left) * transfer, s=shape)
        return float((left * slope).sum() / 2), slope

    start = torch.zeros(shape)
    metric = metric_of(gradient, start)
    errors = {}
    even = Metric(torch.full_like(metric.curvature, float(metric.curvature.max())))
    for name, one in (("shells", metric), ("even", even)):
        run = Accelerated(gradient, start, one)
        for _ in range(8):
            run.step()
        errors[name] = float((run.volume - target).norm() / target.norm())
    assert errors["shells"] < 0.05 and errors["shells"] < 0.2 * errors["even"]


def test_steps_get_shorter_where_they_were_too_long(double):
    target = torch.ones(4, 4, 4)

    def gradient(volume):
        return float(50 * (volume - target).square().sum()), 100 * (volume - target)

    run = Accelerated(gradient, torch.zeros(4, 4, 4), Metric(torch.ones(4, 4, 3)))
    for _ in range(60):
        run.step()
    torch.testing.assert_close(run.volume, target, rtol=1e-3, atol=0)
    clamped = Accelerated(gradient, torch.zeros(4, 4, 4), Metric(torch.ones(4, 4, 3)), True)
    target = -torch.ones(4, 4, 4)
    for _ in range(20):
        clamped.step()
    assert float(clamped.volume.abs().max()) == 0


def test_what_may_not_be_negative_ends_where_it_is_least(double):
    """As scipy's does, of a blur that would go below 0 in half of all places."""
    shape = (4, 6, 5)
    k = (torch.fft.fftfreq(4)[:, None, None]**2 + torch.fft.fftfreq(6)[:, None]**2
         + torch.fft.rfftfreq(5)**2)
    transfer = 0.01 + torch.exp(-k / 0.05)
    target = torch.as_tensor(np.random.default_rng(0).standard_normal(shape))

    def gradient(volume):
        slope = torch.fft.irfftn(torch.fft.rfftn(volume - target) * transfer, s=shape)
        return float(((volume - target) * slope).sum() / 2), slope

    def flat(values):
        loss, slope = gradient(torch.as_tensor(values.reshape(shape)))
        return loss, slope.flatten().numpy()

    least = minimize(flat, np.zeros(120), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 120,
                     options={"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-10})
    run = Accelerated(gradient, torch.zeros(shape), Metric(transfer), True)
    for _ in range(100):
        run.step()
    assert float(run.volume.min()) == 0 and 20 < int((run.volume == 0).sum())
    assert run.loss == pytest.approx(least.fun, rel=1e-5)


@pytest.mark.parametrize("shape", [(24, 40, 36), (23, 41, 39)])
def test_wider_voxels_see_the_same_specimen(shape):
    """A smooth one, but for what means of two and lines between them take from its curvature."""
    tilts = pd.DataFrame({"tilt_angle": [-50.0, 0.0, 40.0], "axis_angle": 0.0, "shift_x": 10.0,
                          "shift_y": -6.0})
    series = series_of(np.ones((3, *shape[1:])), tilts, 4.0, Grid(4.0 * shape[0]))
    wide = series.coarser()
    assert wide.rays.voxel == 8 and wide.rays.grid == tuple(-(-n // 2) for n in shape)
    volume = blobs(shape)
    middle = [torch.arange(m) * 2 - 2 * (m // 2) + n // 2 for n, m in zip(
        shape, wide.rays.grid, strict=True)]
    inside = [at.clamp(0, n - 1) for at, n in zip(middle, shape, strict=True)]
    every_other = volume[inside[0]][:, inside[1]][:, :, inside[2]]
    images = project(volume, series.rays)
    binned = Series(images, series.rays, torch.ones_like(images)).coarser().images
    again = project(every_other, wide.rays)
    edge = (..., slice(3, -3), slice(3, -3))
    assert float((again - binned)[edge].square().mean().sqrt() / binned.std()) < 0.06
