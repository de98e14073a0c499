"""Ice of a thickness that varies from place to place, and copies where a density says."""

import numpy as np
import pytest
import torch

from tem_taichi.device import as_tensor
from tem_taichi.rotations import tilt_rotation
from tem_taichi.scene.particle import particle_of
from tem_taichi.scene.settings import InteractionSettings, Scene, TiltSettings
from tem_taichi.scene.specimen import IceSettings, SpecimenSettings
from tem_taichi.series.build import build_specimen
from tem_taichi.series.simulate import simulate
from tem_taichi.specimen.filling import fill, fills
from tem_taichi.specimen.ice_shape import (
    IceShape,
    at_knots,
    part_inside,
    path_length,
    thickness_at,
)

KNOTS = np.random.default_rng(2).uniform(0.6, 1.5, (5, 7))
HEIGHTS = np.random.default_rng(3).uniform(-200, 200, (5, 7))
SLOPING = IceShape(700.0, slope_x=0.03, slope_y=-0.02, relief=KNOTS, relief_spacing=900.0,
                   relief_heights=HEIGHTS)
LENS = IceShape(300.0, 600.0, 2500.0, relief=KNOTS, relief_spacing=900.0, carbon_thickness=150.0)


def grid(n, spacing):
    y, x = torch.meshgrid(*[(torch.arange(n) - n // 2) * spacing] * 2, indexing="ij")
    return as_tensor(x), as_tensor(y)


def test_knots_are_met_and_lines_between_them(double):
    shape = IceShape(100.0, relief=KNOTS, relief_spacing=900.0)
    x, y = as_tensor([-2700.0, 0.0, 2700.0, 9000.0, 450.0]), as_tensor([-1800.0, 0, 0, 0, 0])
    expected = [KNOTS[0, 0], KNOTS[2, 3], KNOTS[2, 6], KNOTS[2, 6], KNOTS[2, 3:5].mean()]
    torch.testing.assert_close(thickness_at(shape, x, y), 100 * as_tensor(expected))


@pytest.mark.parametrize("tilt", [0.0, -55.0])
def test_an_even_relief_is_a_slab(tilt, double):
    rotation, (x, y) = tilt_rotation(tilt, 20.0), grid(6, 200.0)
    even = IceShape(500.0, slope_x=0.1, relief=np.full((3, 4), 1.4), relief_spacing=300.0)
    torch.testing.assert_close(path_length(even, rotation, x, y),
                               path_length(IceShape(700.0, slope_x=0.1), rotation, x, y))


@pytest.mark.parametrize("shape", [SLOPING, LENS], ids=["slab", "lens"])
@pytest.mark.parametrize("tilt", [0.0, 48.0])
def test_slices_are_those_of_the_twin_and_the_share_of_points_inside(shape, tilt, double):
    rotation, shift = tilt_rotation(tilt, 10.0), as_tensor([40.0, -90.0])
    entrances = [100.0 * n for n in range(-12, 13)]
    found = fills(shape, rotation, (17, 24), 150.0, entrances, 100.0, "ice", shift)
    x, y = ((torch.arange(n).double() - n // 2) * 150.0 - by
            for n, by in zip((24, 17), shift, strict=True))
    total = torch.zeros(17, 24, dtype=torch.float64)
    for z0, part in zip(entrances, found, strict=True):
        expected = part_inside(shape, "ice", rotation, x[None, :], y[:, None], as_tensor(z0), 100.0)
        torch.testing.assert_close(as_tensor(part).expand(17, 24), expected, rtol=0, atol=1e-9)
        total += as_tensor(part).expand(17, 24) * 100.0
    z = torch.arange(-1200.0, 1300.0, 1.0, dtype=torch.float64)
    points = torch.stack(torch.broadcast_tensors(x[None, :, None], y[:, None, None], z),
                         dim=-1) @ rotation
    height = 2 * (points[..., 2] - shape.slope_x * points[..., 0]
                  - shape.slope_y * points[..., 1] - (0 if shape is LENS else at_knots(
                      as_tensor(HEIGHTS), 900.0, points[..., 0], points[..., 1]))).abs()
    film = 150.0 * (torch.hypot(points[..., 0], points[..., 1]) > 2500.0) if shape is LENS else 0
    within = ((height < thickness_at(shape, points[..., 0], points[..., 1]))
              & (height >= film)).double().sum(-1)
    # Points are 1 A apart, and surfaces straight in steps of 100 / 225 of those between knots.
    assert float((total - within).abs().mean()) < 3


def test_gradients(double):
    def parts(knots, heights, spacing, thickness, tilt):
        shape = IceShape(thickness, slope_x=0.05, relief=knots, relief_heights=heights,
                         relief_spacing=spacing)
        rotation = tilt_rotation(tilt, 15.0)
        place = as_tensor([-800.0, 110.0, 930.0])
        return (fill(shape, rotation, (4, 5), 410.0, 90.0, 260.0),
                path_length(shape, rotation, place, place / 3))

    inputs = tuple(as_tensor(v).requires_grad_() for v in (
        KNOTS[:3, :4], HEIGHTS[:3, :4], 900.0, 430.0, 33.0))
    assert torch.autograd.gradcheck(parts, inputs)


@pytest.mark.parametrize(("wrong", "said"), [
    (np.ones(3), "relief of shape"), (np.ones((1, 3)), "relief of shape"),
    (np.zeros((2, 2)), "relief: must be positive"), (np.full((2, 2), np.nan), "relief")])
def test_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        IceShape(100.0, relief=wrong)


def test_heights_are_at_the_knots_of_the_relief():
    with pytest.raises(ValueError, match="relief_heights of shape"):
        IceShape(100.0, relief=np.ones((2, 2)), relief_heights=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"relief_heights.*as many knots"):
        IceSettings(relief=((1.0, 1.0), (1.0, 1.0)), relief_heights=((1.0,) * 3,) * 2)


def scene(**ice) -> Scene:
    return Scene(shape=[48, 96], pixel_size=20.0, dose=50.0,
                 tilts=TiltSettings("listed", angles=[0.0, 45.0]),
                 interaction=InteractionSettings(mode="projection", slice_thickness=400.0),
                 specimen=SpecimenSettings(IceSettings(1000.0, granularity=0.0, **ice)))


def test_images_darken_with_the_ice():
    """At every tilt, by the path over the mean free path."""
    relief = np.tile([[0.5, 0.5, 1.5, 1.5]], (2, 1)).tolist()
    made = simulate(scene(relief=relief, relief_spacing=400.0)).noise_free
    flat = simulate(scene()).noise_free
    for n, away in ((0, 0), (1, 10)):  # where surfaces of a tilted slab lie side by side
        lost = -torch.log(made[n] / 50 / 400) * 3950 * np.cos(np.deg2rad(45 * n))
        for side, factor in ((lost[:, 2:14 - away], 0.5), (lost[:, away - 14:-2], 1.5)):
            assert float(side.mean()) == pytest.approx(1000 * factor, rel=0.01)
        assert float(flat[n].std()) < 1e-3 * float(flat[n].mean())


def test_copies_are_where_the_density_says_and_within_the_ice():
    relief = np.tile([[0.3, 0.3, 1.0, 1.0]], (2, 1)).tolist()
    settings = scene(relief=relief, relief_spacing=400.0, slope=(0.1, 0.0))
    settings = Scene(**{**vars(settings), "specimen": SpecimenSettings(
        settings.specimen.ice, size=(1920.0, 960.0), particles={
            "all": particle_of(globule=50.0, count=400),
            "right": particle_of(globule=50.0, count=200, density=[[0, 0, 1], [0, 0, 1]],
                                 density_spacing=600.0)})})
    every, right = (np.asarray(poses.positions) for poses in build_specimen(settings).poses)
    for points in (every, right):
        limit = thickness_at(IceShape(1000.0, relief=relief, relief_spacing=400.0),
                             as_tensor(points[:, 0]), as_tensor(points[:, 1])).numpy() / 2
        assert (np.abs(points[:, 2] - 0.1 * points[:, 0]) < limit).all()
    thin = every[:, 0] < -200
    # Centres have 252 A of depth over 760 A, 602 on average over 400, and 952 over 760 A: 0.166 of
    # them are in the thin part, give or take 0.019 by chance.
    assert thin.mean() == pytest.approx(0.166, abs=0.06)
    assert right[:, 0].min() > 0 and np.median(right[:, 0]) > 600


def test_the_scene_refuses_ragged_knots():
    with pytest.raises(ValueError, match="relief"):
        IceSettings(relief=((1.0, 1.0), (1.0,)))
    with pytest.raises(ValueError, match="density"):
        particle_of(globule=50.0, placement="lattice", density=[[1, 1], [1, 1]]).check("p")
