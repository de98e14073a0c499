"""Tomograms by linear methods: what they find of phantoms, in their units."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tem_taichi.inverse import tomography
from tem_taichi.inverse.measures import correlation
from tem_taichi.inverse.tomography import Sirt, contrast, sirt, weighted_back_projection
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.rays import Rays, project

GRID = (24, 40, 40)


def rays_of(angles, axis=0.0, shift=(0.0, 0.0), grid=GRID, voxel=2.0):
    rotations = torch.stack([tilt_rotation(float(angle), axis) for angle in angles])
    shifts = torch.tensor(shift).to(rotations).expand(len(rotations), 2)
    return Rays(rotations, shifts, grid, voxel, grid[1:], voxel)


def balls(grid=GRID, voxel=2.0):
    """Three Gaussian balls of different heights."""
    z, y, x = (voxel * (torch.arange(n) - n // 2) for n in grid)
    total = torch.zeros(grid)
    for height, (px, py, pz), sigma in ((1.0, (12, -10, 4), 6.0), (0.6, (-14, 8, -8), 5.0),
                                        (0.8, (-4, -18, 6), 7.0)):
        total += height * torch.exp(-((x - px)**2 + (y[:, None] - py)**2
                                      + (z[:, None, None] - pz)**2) / (2 * sigma**2))
    return total


@pytest.mark.parametrize("axis", [0.0, 90.0, -37.0])
def test_weighted_back_projection_of_all_angles_is_the_volume(axis):
    """In its unit; what is left is at the rim, and by linear interpolation, 2.8 % as for rays."""
    angles = np.arange(-89.0, 90, 2)
    rays, truth = rays_of(angles, axis, (3.0, -1.0)), balls()
    found = weighted_back_projection(project(truth, rays), rays)
    inside = (slice(6, 18), slice(8, 32), slice(8, 32))
    assert float((found - truth)[inside].abs().max()) < 0.08
    assert float(correlation(found[inside], truth[inside])) > 0.995


def test_low_pass():
    rays = rays_of(np.arange(-60.0, 61, 5))
    images = torch.zeros(25, 40, 40)
    images[:, 20, 20] = 1.0
    sharp, soft = (weighted_back_projection(images, rays, d) for d in (0.0, 10.0))
    rows = torch.fft.rfft(sharp, dim=1).abs().square().mean((0, 2))
    fewer = torch.fft.rfft(soft, dim=1).abs().square().mean((0, 2))
    k = torch.fft.rfftfreq(40, 2.0)
    # Along the axis the filter is the fall alone, of which half is left at 1 / 10 A
    ratio = (fewer / rows) / (fewer / rows)[0]
    assert float(ratio[k == 0.1]) == pytest.approx(0.25, rel=0.02)
    assert (ratio.diff() < 0).all()


def test_sirt_explains_the_images_better_and_better():
    rays, truth = rays_of(np.arange(-87.0, 88, 6)), balls()
    run = Sirt(project(truth, rays), rays)
    misfits = [run.step() for _ in range(40)]
    assert all(later < earlier for earlier, later in pairwise(misfits))
    assert misfits[-1] < 2e-3 * misfits[0]
    assert float(correlation(run.volume, truth)) > 0.98


def test_sirt_leaves_out_what_has_no_weight():
    """A stripe of nonsense in every image, about which the volume hears nothing."""
    rays, truth = rays_of(np.arange(-60.0, 61, 5)), balls()
    images, weights = project(truth, rays), torch.ones(25, 40, 40)
    weights[:, 30:33] = 0
    spoilt = torch.where(weights > 0, images, 1e3)
    clean = sirt(images, rays, 5, weights=weights)
    torch.testing.assert_close(sirt(spoilt, rays, 5, weights=weights), clean, rtol=0, atol=0)
    assert float(clean[:, 31].abs().max()) == 0 and clean.isfinite().all()


def test_images_may_lie_higher_as_a_whole():
    rays, truth = rays_of(np.arange(-60.0, 61, 5)), balls()
    images = project(truth, rays)
    raised = images + torch.linspace(-9, 9, 25)[:, None, None]
    free, free_raised, fixed = (Sirt(these, rays, levels=levels) for these, levels in (
        (images, True), (raised, True), (raised, False)))
    for run in (free, free_raised, fixed):
        misfits = [run.step() for _ in range(8)]
        if run.levels:
            assert all(later < earlier for earlier, later in pairwise(misfits))
    torch.testing.assert_close(free.volume, free_raised.volume, rtol=0, atol=1e-4)
    assert float((fixed.volume - free.volume).abs().max()) > 0.1


def test_a_run_goes_on_from_its_state():
    rays = rays_of(np.arange(-60.0, 61, 10))
    images = project(balls(), rays)
    whole, first, second = (Sirt(images, rays, tv=0.01) for _ in range(3))
    for _ in range(5):
        whole.step()
    for _ in range(3):
        first.step()
    second.resume({name: value.clone() for name, value in first.state().items()})
    for _ in range(2):
        second.step()
    assert torch.equal(second.volume, whole.volume)


def test_total_variation_makes_noise_even_and_keeps_edges():
    rays = rays_of(np.arange(-60.0, 61, 5))
    truth = torch.zeros(GRID)
    truth[8:16, 12:28, 10:24] = 1.0
    images = project(truth, rays)
    images += 3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    plain, even, positive = (sirt(images, rays, 12, **how) for how in (
        {}, {"tv": 0.02}, {"tv": 0.02, "positive": True}))
    assert float(correlation(even, truth)) > float(correlation(plain, truth)) + 0.02
    outside = plain[1:6, 2:10, 2:8].std(), even[1:6, 2:10, 2:8].std()
    assert outside[1] < outside[0] / 3
    assert float(positive.min()) == 0
    assert float(correlation(positive, truth)) > float(correlation(even, truth))


def test_total_variation_is_that_of_the_proximal_map():
    """Of a single bright voxel in the limit of many steps: by hand, it falls by the strength times
    the perimeter's slope; against a minimisation of the same function by torch."""
    rays = rays_of([0.0], grid=(4, 5, 6))
    run = Sirt(torch.zeros(1, 5, 6), rays, tv=0.1)
    given = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(2))
    run.volume.copy_(given)
    run._even()
    for _ in range(300):
        run.volume.copy_(given)
        run._even()
    wanted = given.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([wanted], max_iter=500, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-9, tolerance_change=1e-12)

    def loss():
        optimiser.zero_grad()
        squares = sum(wanted.diff(dim=axis, append=wanted.narrow(axis, wanted.shape[axis] - 1, 1)
                                  ).square() for axis in range(3))
        value = (wanted - given).square().sum() / 2 + 0.1 * (squares + 1e-8).sqrt().sum()
        value.backward()
        return value

    optimiser.step(loss)
    torch.testing.assert_close(run.volume, wanted.detach(), rtol=0, atol=5e-3)  # 1e-4 rounds it


def test_slabs_of_the_total_variation_make_no_difference(monkeypatch):
    rays = rays_of(np.arange(-60.0, 61, 20), grid=(7, 6, 5))
    images = torch.randn(7, 6, 5, generator=torch.Generator().manual_seed(3))
    found = []
    for near in (1, 70, 2**16):  # a plane, two, all
        monkeypatch.setattr(tomography, "_NEAR", near)
        found.append(sirt(images, rays, 3, tv=0.1))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])


def test_contrast_is_relative_and_matter_is_positive():
    images = torch.full((3, 4, 4), 10.0)
    images[0, 1, 1], images[2] = 5.0, 0.0
    found = contrast(images)
    assert float(found[0, 1, 1]) > 0 and float(found[0].mean().abs()) < 1e-6
    assert float(found[1:].abs().max()) == 0


@pytest.mark.parametrize(("axis", "size"), [(0.0, 41), (90.0, 41), (0.0, 129)])
def test_sirt_is_astras(axis, size):
    """Where it is installed: its linear projector and its own iteration, plane by plane."""
    astra = pytest.importorskip("astra")
    angles = np.arange(-60.0, 61, 5)
    # Whose middle is a voxel for both programs.
    grid = nz, _, nx = (25, 41, 41) if size == 41 else (size, 16, size)
    rays = rays_of(angles, axis, grid=grid)
    images = project(balls(grid), rays)
    found = sirt(images, rays, 20).numpy() * 2.0  # per voxel
    ours = np.moveaxis(found, 1 if axis == 0 else 2, 0)   # planes across the axis
    lines = np.moveaxis(images.numpy(), 1 if axis == 0 else 2, 0)
    geometry = astra.create_vol_geom(nz, nx)
    detector = astra.create_proj_geom("parallel", 1.0, nx, np.deg2rad(angles))
    projector = astra.create_projector("linear", detector, geometry)
    plane = 14 if size == 41 else 8
    sinogram = astra.data2d.create("-sino", detector, lines[plane])
    volume = astra.data2d.create("-vol", geometry, 0)
    config = astra.astra_dict("SIRT") | {"ProjectorId": projector, "ProjectionDataId": sinogram,
                                         "ReconstructionDataId": volume}
    algorithm = astra.algorithm.create(config)
    astra.algorithm.run(algorithm, 20)
    theirs = astra.data2d.get(volume)
    astra.clear()
    one, other = ours[plane], theirs[::-1]  # its rows begin at the top
    assert np.abs(one - other).max() < 0.01 * np.abs(other).max()
