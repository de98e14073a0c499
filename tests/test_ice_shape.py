import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tem_taichi.device import as_tensor
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.filling import fill, fills
from tem_taichi.specimen.ice_shape import (
    IceShape,
    carbon_at,
    part_inside,
    path_length,
    thickness_at,
)
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.specimen.view import View

HOLE = IceShape(300.0, 800.0, 6000.0, centre_x=500.0, centre_y=-200.0)
HELD = IceShape(300.0, 800.0, 2000.0, slope_x=0.02, slope_y=-0.01, carbon_thickness=150.0)


def positions(n, spacing):
    y, x = torch.meshgrid(*[(torch.arange(n) - n // 2) * spacing] * 2, indexing="ij")
    return as_tensor(x), as_tensor(y)


def in_specimen(rotation, x, y, z):
    return torch.stack([x, y, z], dim=-1) @ rotation  # rows times R: R^T r


def inside(shape, points, material):
    """Which points are in a material, from the definition."""
    x, y, z = points.unbind(-1)
    height = 2 * (z - shape.slope_x * x - shape.slope_y * y).abs()
    film = height < carbon_at(shape, x, y)
    return film if material == "carbon" else (height < thickness_at(shape, x, y)) & ~film


def test_lens(double):
    x = as_tensor([500.0, 500.0, 6500.0, 9000.0, 3500.0])
    y = as_tensor([-200.0, 5800.0, -200.0, 0.0, -200.0])
    torch.testing.assert_close(thickness_at(HOLE, x, y), as_tensor([300, 800, 800, 800, 425.0]))
    assert torch.equal(carbon_at(HOLE, x, y), torch.zeros(5, dtype=torch.float64))


def test_film_begins_at_the_rim(double):
    x = as_tensor([0.0, 1989.0, 2000.0, 2011.0, 5000.0])
    torch.testing.assert_close(carbon_at(HELD, x, 0 * x), as_tensor([0, 0, 75.0, 150, 150]))


@given(st.floats(-75, 75), st.floats(-180, 180), st.floats(1, 3000))
def test_path_through_a_slab(tilt, axis, thickness):
    path = path_length(IceShape(thickness), tilt_rotation(tilt, axis), as_tensor([0.0, 300.0]),
                       as_tensor([0.0, -150.0]))
    expected = thickness / math.cos(math.radians(tilt))
    assert path.tolist() == pytest.approx([expected] * 2, rel=1e-4, abs=1e-3)  # float32


def test_a_sloping_specimen_is_a_tilted_one(double):
    # z = tan(30) x and a beam along z: thickness along z is what counts.
    shape = IceShape(500.0, slope_x=math.tan(math.radians(30)))
    x, y = positions(4, 50.0)
    torch.testing.assert_close(path_length(shape, tilt_rotation(0.0), x, y),
                               torch.full((4, 4), 500.0, dtype=torch.float64))
    # Turned by 30 degrees about +y, this mid-plane gets level or twice as steep.
    level = path_length(shape, tilt_rotation(30.0), x, y)
    steep = path_length(shape, tilt_rotation(-30.0), x, y)
    cos = math.cos(math.radians(30))
    assert float(level[0, 0]) == pytest.approx(500 * cos)
    assert float(steep[0, 0]) == pytest.approx(500 * cos / math.cos(math.radians(60)))


@pytest.mark.parametrize("tilt", [0.0, 35.0, -60.0])
@pytest.mark.parametrize("material", ["ice", "carbon"])
def test_slices_sum_up_to_the_path(tilt, material, double):
    rotation = tilt_rotation(tilt, 20.0)
    x, y = positions(24, 200.0)
    total = sum(fill(HELD, rotation, (24, 24), 200.0, z, z + 40, material) * 40
                for z in range(-7200, 7200, 40))
    path = path_length(HELD, rotation, x, y, material)
    # Both step along the ray, from other depths: off by part of a step where it meets the rim.
    error = (total - path).abs()
    assert float(error.mean()) < 0.3
    assert float(error.max()) < 10 / math.cos(math.radians(tilt))


@pytest.mark.parametrize("material", ["ice", "carbon"])
def test_fill_is_the_share_of_points_inside(material, double):
    rotation = tilt_rotation(40.0, 15.0)
    n, z0, z1 = 32, -130.0, 150.0
    x, y = positions(n, 160.0)
    z = torch.linspace(z0, z1, 1401, dtype=torch.float64)[None, None]
    points = in_specimen(rotation, *torch.broadcast_tensors(x[..., None], y[..., None], z))
    expected = inside(HELD, points, material).double().mean(-1)
    found = fill(HELD, rotation, (n, n), 160.0, z0, z1, material)
    error = (found - expected).abs()
    assert 0.01 < float(expected.mean()) < 0.99
    # 1 of 1400 points at each surface; the film's rounded edge within its steps.
    assert float(error.mean()) < 3e-3
    assert float(error.max()) < 0.03


@pytest.mark.parametrize("material", ["ice", "carbon"])
@pytest.mark.parametrize("shape", [HOLE, HELD, IceShape(300.0, slope_x=0.1),
                                   IceShape(400.0, 100.0, 900.0)], ids=str)
@pytest.mark.parametrize("tilt", [0.0, -50.0])
def test_slices_are_those_of_the_twin(shape, material, tilt, double):
    rotation, shift = tilt_rotation(tilt, 10.0), as_tensor([40.0, -90.0])
    entrances = [30.0 * n for n in range(-30, 31, 3)]
    found = fills(shape, rotation, (17, 24), 150.0, entrances, 30.0, material, shift)
    x, y = ((torch.arange(n).double() - n // 2) * 150.0 - by
            for n, by in zip((24, 17), shift, strict=True))
    for z0, part in zip(entrances, found, strict=True):
        expected = part_inside(shape, material, rotation, x[None, :], y[:, None], as_tensor(z0),
                               30.0)
        torch.testing.assert_close(as_tensor(part).expand(17, 24), expected, rtol=0, atol=1e-9)
    wholly = [part for part in found if isinstance(part, float)]
    if not tilt and shape.slope_x == 0 and shape.carbon_thickness == 0:
        assert 0.0 in wholly and (1.0 in wholly or material == "carbon")


def test_gradients_of_many_slices(double):
    values = (310.0, 790.0, 2010.0, 30.0, 0.03, 160.0, 28.0, 40.0)

    def parts(centre, edge, radius, x, slope, film, tilt, across):
        shape = IceShape(centre, edge, radius, centre_x=x, slope_y=slope, carbon_thickness=film)
        found = fills(shape, tilt_rotation(tilt, 10.0), (5, 6), 700.0, [-150.0, 130.0], 60.0,
                      "ice", torch.stack([across, 2 * across]))
        return torch.stack([as_tensor(part).expand(5, 6) for part in found])

    inputs = tuple(as_tensor(v).requires_grad_() for v in values)
    assert torch.autograd.gradcheck(parts, inputs)


def test_a_slab_fills_its_slices():
    rotation = tilt_rotation(0.0)
    found = [float(fill(IceShape(100.0), rotation, (8, 8), 10.0, z, z + 40.0).mean())
             for z in (-100.0, -60.0, -20.0, 20.0, 60.0)]
    assert found == pytest.approx([0, 0.75, 1, 0.75, 0], abs=1e-6)


def test_shift_moves_the_ice_with_the_image():
    rotation = tilt_rotation(25.0)
    moved = fill(HELD, rotation, (64, 64), 100.0, 100.0, 300.0,
                 shift=as_tensor([300.0, -500.0]))
    still = fill(HELD, rotation, (64, 64), 100.0, 100.0, 300.0)
    torch.testing.assert_close(moved[:-5, 3:], still[5:, :-3], atol=1e-3, rtol=0)


@settings(deadline=None, max_examples=10)
@given(st.floats(100, 900), st.floats(100, 900), st.floats(-60, 60), st.floats(0, 200))
def test_filled_part_is_a_part(centre, edge, tilt, film):
    shape = IceShape(centre, edge, 1500.0, carbon_thickness=film)
    rotation = tilt_rotation(tilt, 70.0)
    parts = [fill(shape, rotation, (16, 20), 300.0, 40.0, 60.0, m) for m in ("ice", "carbon")]
    for part in (*parts, sum(parts)):
        assert part.shape == (16, 20)
        assert float(part.min()) >= -1e-5 and float(part.max()) <= 1 + 1e-5


def test_gradients(double):
    values = (310.0, 790.0, 2010.0, 30.0, 0.03, 160.0, 28.0)
    inputs = tuple(as_tensor(v).requires_grad_() for v in values)

    def both(centre, edge, radius, x, slope, film, tilt):
        shape = IceShape(centre, edge, radius, centre_x=x, slope_x=slope, carbon_thickness=film)
        rotation = tilt_rotation(tilt, 10.0)
        place = as_tensor([-1500.0, 100.0, 2600.0])
        return (fill(shape, rotation, (6, 6), 700.0, 130.0, 190.0),
                path_length(shape, rotation, place, place / 3),
                path_length(shape, rotation, place, place / 3, "carbon"))

    assert torch.autograd.gradcheck(both, inputs)


@pytest.mark.parametrize("wrong", [
    {"thickness": -1.0}, {"edge_thickness": math.nan}, {"hole_radius": 0.0},
    {"carbon_thickness": -3.0}, {"carbon_edge": 0.0}])
def test_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IceShape(**({"thickness": 100.0} | wrong))


def test_refused_depths_and_materials():
    with pytest.raises(ValueError, match="z1=-5"):
        fill(IceShape(10.0), tilt_rotation(0.0), (4, 4), 1.0, 0.0, -5.0)
    with pytest.raises(ValueError, match="material"):
        fill(IceShape(10.0), tilt_rotation(0.0), (4, 4), 1.0, 0.0, 5.0, "gold")


def test_no_ice_is_lost_where_the_image_is_shifted(double):
    """Columns of granular ice are as long at the corners as in the middle."""
    ice = Ice(100.0, potential=4.5, granularity=1.0)
    specimen = ParticlesInIce((), (), ice)
    view = View(tilt_rotation(60.0, 20.0), as_tensor([40.0, -30.0]), (24, 30), 4.0, 20.0)
    low, high = specimen.depth_range(view)
    left = fill(ice.layer, view.rotation, view.shape, view.pixel_size, low, high,
                shift=view.shift) * (high - low)
    torch.testing.assert_close(left, torch.full_like(left, 200.0), rtol=1e-9, atol=0)
