"""Projections of a grid, their adjoint and their gradients."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tem_taichi.kernels import rays as kernels
from twins import joseph

from tem_taichi.bridge import launch
from tem_taichi.device import kernels_for_a_gpu
from tem_taichi.rotations import rotation_from_vector, tilt_rotation
from tem_taichi.specimen import rays as of_rays
from tem_taichi.specimen.rays import Rays, back_project, project, smear
from tem_taichi.specimen.slabs import Slabs, sliced

GRID, SHAPE = (9, 37, 21), (40, 33)


def rays_of(kind, grid=GRID, shape=SHAPE, voxel=2.0, pixel=2.0,
            angles=(-62.0, -31.0, 0.0, 44.0, 71.0)):
    """Tilts about an axis upright, lying, oblique or with a tilt about the third axis."""
    axis = {"upright": 0.0, "shifted": 0.0, "lying": 90.0, "oblique": -37.0, "x-tilt": 4.0}[kind]
    rotations = torch.stack([tilt_rotation(angle, axis) for angle in angles])
    if kind == "x-tilt":
        rotations = rotations @ rotation_from_vector(torch.tensor([0.1, 0.02, -0.05]).double().to(
            rotations.dtype))
    shifts = torch.zeros(len(angles), 2, dtype=rotations.dtype)
    if kind != "upright":
        shifts = 3 * torch.tensor(np.random.default_rng(1).standard_normal(shifts.shape),
                                  dtype=rotations.dtype)
    return Rays(rotations, shifts, grid, voxel, shape, pixel)


KINDS = ("upright", "shifted", "lying", "oblique", "x-tilt")


@pytest.mark.parametrize("axis", [0.0, 90.0, 180.0, -90.0])
def test_projections_are_josephs(double, axis):
    """By the plain twin, where no image is interpolated: axes upright and lying, shifts across."""
    angles = (-75.0, -46.0, -44.0, 0.0, 12.0, 60.0)
    across = np.array([np.cos(np.deg2rad(axis)), np.sin(np.deg2rad(axis))])
    rotations = torch.stack([tilt_rotation(angle, axis) for angle in angles])
    shifts = torch.tensor(1.7 * across).expand(len(angles), 2)
    rays = Rays(rotations, 2.0 * shifts, GRID, 2.0, SHAPE, 2.0)
    volume = np.random.default_rng(0).standard_normal(GRID)
    for image, rotation in zip(project(torch.tensor(volume), rays), rotations, strict=True):
        expected = 2.0 * joseph(volume, rotation.numpy(), 1.7 * across, SHAPE)
        np.testing.assert_allclose(image.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_back_projection_is_the_adjoint(double, kind, gpu):
    rays = rays_of(kind)
    rng = np.random.default_rng(0)
    volume = torch.tensor(rng.standard_normal(GRID))
    images = torch.tensor(rng.standard_normal((5, *SHAPE)))
    with kernels_for_a_gpu(gpu):
        one = (project(volume, rays) * images).sum()
        other = (back_project(images, rays) * volume).sum()
    assert float(one) == pytest.approx(float(other), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_for_a_gpu_make_the_same(double, kind):
    rays = rays_of(kind)
    rng = np.random.default_rng(2)
    volume, images = (torch.tensor(rng.standard_normal(shape)) for shape in (GRID, (5, *SHAPE)))
    here = [project(volume, rays), back_project(images, rays), smear(images, rays)]
    with kernels_for_a_gpu():
        there = [project(volume, rays), back_project(images, rays), smear(images, rays)]
    for one, other in zip(here, there, strict=True):
        # Where places are multiples of a voxel their rounding may give a weight of 1e-15
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def blob(grid, voxel, centre, sigma):
    """A Gaussian of height 1 on a grid."""
    z, y, x = (torch.arange(n).double() * voxel - n // 2 * voxel for n in grid)
    return torch.exp(-((x - centre[0])**2 + (y[:, None] - centre[1])**2
                       + (z[:, None, None] - centre[2])**2) / (2 * sigma**2))


@pytest.mark.parametrize("pixel", [2.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_line_integrals_of_a_gaussian(double, kind, pixel):
    """Where `tilt_rotation` and the shift put it, in every geometry; sign and unit with it.

    Linear interpolation half way between voxels widens by 1/4 voxel^2 in each of two directions: a
    blob of variance 9 loses up to 2.8 % of its height. The cubic keeps sums to its aliases, 0.3 %.
    """
    grid, voxel, sigma, centre = (31, 40, 38), 2.0, 6.0, torch.tensor([9.0, -14.0, 5.0]).double()
    rays = rays_of(kind, grid, (int(84 / pixel), int(90 / pixel)), voxel, pixel)
    found = project(blob(grid, voxel, centre, sigma), rays)
    y, x = (torch.arange(n).double() * pixel - n // 2 * pixel for n in rays.shape)
    for image, rotation, shift in zip(found, rays.rotations, rays.shifts, strict=True):
        u, v = (rotation @ centre)[:2] + shift
        expected = sigma * (2 * np.pi)**0.5 * torch.exp(
            -((x - u)**2 + (y[:, None] - v)**2) / (2 * sigma**2))
        assert float((image - expected).abs().max()) < 0.028 * float(expected.max())
        assert float(image.sum()) == pytest.approx(float(expected.sum()), rel=4e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_smeared_images_cross_where_the_blob_is(double, kind):
    grid, centre = (31, 40, 38), torch.tensor([9.0, -14.0, 5.0]).double()
    rays = rays_of(kind, grid, (42, 45))
    images = project(blob(grid, 2.0, centre, 6.0), rays)
    volume = smear(images, rays)
    peak = np.unravel_index(int(volume.argmax()), grid)
    expected = np.array([centre[n] / 2 + grid[2 - n] // 2 for n in (2, 1, 0)])
    assert np.abs(peak - expected).max() <= 1
    even = smear(torch.ones_like(images), replace(rays, shape=rays.shape))
    middle = even[10:20, 15:25, 15:25]
    assert float((middle - 5).abs().max()) < 1e-9


@pytest.mark.parametrize("kind", ["shifted", "oblique", "x-tilt"])
def test_gradients(double, kind):
    """In the volume, the poses and the shifts; steps are far shorter than the way to a kink."""
    grid, shape = (4, 6, 5), (6, 5)
    rays = rays_of(kind, grid, shape, angles=(-62.0, 13.0, 44.0))
    volume = torch.tensor(np.random.default_rng(3).standard_normal(grid), requires_grad=True)
    turn = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    shifts = rays.shifts.clone().requires_grad_()

    def images(volume, turn, shifts):
        return project(volume, replace(
            rays, rotations=rotation_from_vector(turn) @ rays.rotations, shifts=shifts))

    assert torch.autograd.gradcheck(images, (volume, turn, shifts), eps=1e-7, atol=1e-5)
    images = torch.tensor(np.random.default_rng(4).standard_normal((3, *shape)),
                          requires_grad=True)
    assert torch.autograd.gradcheck(lambda images: back_project(images, rays), (images,))


def test_an_image_alone_is_the_same_as_among_others():
    rays = rays_of("oblique")
    volume = torch.tensor(np.random.default_rng(5).standard_normal(GRID)).float()
    together = project(volume, rays)
    for n in range(5):
        torch.testing.assert_close(project(volume, rays.some([n]))[0], together[n], rtol=0,
                                   atol=2e-4)  # lattices of another size: single precision


@pytest.mark.parametrize(("change", "said"), [
    ({"voxel": 0.0}, "voxel=0.0: must be positive"), ({"grid": (3, 0, 4)}, "grid="),
    ({"shifts": torch.zeros(2, 2)}, "shifts of shape"), ({"shape": (3,)}, "shape=")])
def test_impossible_rays_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        replace(rays_of("upright"), **change)


def test_other_shapes_are_refused():
    rays = rays_of("upright")
    with pytest.raises(ValueError, match="volume of shape"):
        project(torch.zeros(3, 3, 3), rays)
    for function in (back_project, smear):
        with pytest.raises(ValueError, match="images of shape"):
            function(torch.zeros(5, 3, 3), rays)


TILTS = (-62.0, 0.0, 31.0)


def slabs_of(count=None, first=0, smooth=True):
    """Of 3 A about a grid whose diagonal is 87 A long."""
    return Slabs(-46.0, 3.0, 31, first, 31 - first if count is None else count, smooth)


def poses_and_shares():
    """Every geometry at every tilt, sharing or not."""
    return [(rays_of(kind, angles=TILTS).some([n]), smooth)
            for kind in KINDS for n in range(3) for smooth in (True, False)]


def test_slices_add_up_to_the_projection(double):
    """And some of them are those of all."""
    volume = torch.tensor(np.random.default_rng(0).standard_normal(GRID))
    for rays, smooth in poses_and_shares():
        slices = sliced(volume, rays, slabs_of(smooth=smooth))
        torch.testing.assert_close(slices.sum(0), project(volume, rays)[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(sliced(volume, rays, slabs_of(5, 12, smooth)), slices[12:17],
                                   rtol=0, atol=1e-12)


def test_a_voxel_is_in_the_slices_about_its_depth(double):
    """Its mean depth is its own where slices share; half a slice away at most where not."""
    place = (2, 30, 5)
    volume = torch.zeros(GRID, dtype=torch.float64)
    volume[place] = 1.0
    point = torch.tensor([(n - size // 2) * 2.0 for n, size in zip(
        reversed(place), reversed(GRID), strict=True)], dtype=torch.float64)
    middles = -46.0 + 3.0 * (torch.arange(31) + 0.5)
    for rays, smooth in poses_and_shares():
        weights = sliced(volume, rays, slabs_of(smooth=smooth)).sum((1, 2))
        depth = float(rays.rotations[0, 2] @ point)
        # Joseph's interpolation spreads a voxel over two of a plane, at depths of their own
        assert float((weights * middles).sum() / weights.sum()) == pytest.approx(
            depth, abs=0.4 if smooth else 1.5)
        assert float(weights[(middles - depth).abs() > 3 + 2].abs().sum()) < 1e-12


def test_the_adjoint_of_slices_and_kernels_for_a_gpu(double):
    rng = np.random.default_rng(2)
    volume = torch.tensor(rng.standard_normal(GRID), requires_grad=True)
    images = torch.tensor(rng.standard_normal((5, *SHAPE)))
    for rays, smooth in poses_and_shares():
        found = []
        for gpu in (False, True):
            with kernels_for_a_gpu(gpu):
                slices = sliced(volume, rays, slabs_of(5, 12, smooth))
                found.append([slices.detach(), *torch.autograd.grad(slices, volume, images)])
        for here, there in zip(*found, strict=True):
            torch.testing.assert_close(here, there, rtol=0, atol=1e-11)
        assert float((found[0][0] * images).sum()) == pytest.approx(
            float((found[0][1] * volume.detach()).sum()), rel=1e-11)


def test_gradients_of_slices(double):
    """In the volume, the pose and the shift."""
    grid, shape = (4, 6, 5), (6, 5)
    volume = torch.tensor(np.random.default_rng(3).standard_normal(grid), requires_grad=True)
    reach = 2.0 * math.hypot(*grid)
    for kind in ("shifted", "oblique", "x-tilt"):
        rays = rays_of(kind, grid, shape, angles=(13.0,))
        turn = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        shifts = rays.shifts.clone().requires_grad_()

        def slices(volume, turn, shifts, rotations=rays.rotations):
            moved = Rays(rotation_from_vector(turn) @ rotations, shifts, grid, 2.0, shape, 2.0)
            return sliced(volume, moved, Slabs(-reach / 2, 2.3, math.ceil(reach / 2.3), 1, 4))

        assert torch.autograd.gradcheck(slices, (volume, turn, shifts), eps=1e-7, atol=1e-5,
                                        fast_mode=True)


def test_slices_of_more_images_than_one_are_refused():
    with pytest.raises(ValueError, match="rays of 3 images: must be one"):
        sliced(torch.zeros(GRID), rays_of("upright", angles=TILTS), slabs_of())
    with pytest.raises(ValueError, match=r"volume of shape \(2, 2, 2\): must be"):
        sliced(torch.zeros(2, 2, 2), rays_of("upright", angles=(3.0,)), slabs_of())


@pytest.mark.parametrize("kind", ["upright", "oblique"])
def test_more_numbers_than_vectors_count_are_summed_one_by_one(double, kind, monkeypatch):
    """Grids beyond the indices of a vector take the other kernels, and are as good."""
    rays = rays_of(kind)
    rng = np.random.default_rng(6)
    volume, images = (torch.tensor(rng.standard_normal(shape)) for shape in (GRID, (5, *SHAPE)))
    few = [project(volume, rays), back_project(images, rays)]
    monkeypatch.setattr(kernels, "INDICES", 1000)
    taken = []
    monkeypatch.setattr(of_rays, "launch",
                        lambda kernel, *given: (taken.append(kernel), launch(kernel, *given)))
    many = [project(volume, rays), back_project(images, rays)]
    assert set(taken) == {kernels.gather_each, kernels.scatter_each}
    for one, other in zip(few, many, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
