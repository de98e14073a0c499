"""Ice that takes more or less from the beam from place to place."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from tem_taichi.device import as_tensor
from tem_taichi.rotations import tilt_rotation
from tem_taichi.scene.settings import InteractionSettings, Scene, TiltSettings
from tem_taichi.scene.specimen import IceSettings, SpecimenSettings
from tem_taichi.series.simulate import simulate
from tem_taichi.specimen.ice_shape import IceShape, path_length

KNOTS = np.random.default_rng(4).uniform(0.3, 2.0, (3, 5, 7))
SLOPING = IceShape(700.0, slope_x=0.1, slope_y=-0.05, absorption=KNOTS, absorption_spacing=400.0)
HILLY = IceShape(700.0, absorption=KNOTS, absorption_spacing=400.0, relief=[[0.7, 1.2], [1.0, 0.8]],
                 relief_heights=[[90.0, -60.0], [-50.0, 70.0]], relief_spacing=1500.0)


@pytest.mark.parametrize("tilt", [0.0, -55.0])
def test_where_it_is_even_the_way_is_as_much_longer(tilt, double):
    rotation, x = tilt_rotation(tilt, 20.0), as_tensor([-900.0, 0.0, 250.0])
    even = IceShape(500.0, slope_x=0.1, absorption=np.full((3, 2, 4), 1.4),
                    absorption_spacing=300.0)
    torch.testing.assert_close(path_length(even, rotation, x, x / 2),
                               1.4 * path_length(IceShape(500.0, slope_x=0.1), rotation, x, x / 2))


@pytest.mark.parametrize("shape", [SLOPING, HILLY], ids=["sloping", "hilly"])
@pytest.mark.parametrize("tilt", [0.0, 50.0, -50.0])
def test_the_way_is_the_sum_over_points(shape, tilt, double):
    rotation = tilt_rotation(tilt, 10.0)
    x, y = as_tensor([-1500.0, -200.0, 30.0, 900.0]), as_tensor([-600.0, 100.0, 700.0, -50.0])
    z = np.arange(-4500.0, 4500.0) + 0.5
    points = np.stack(np.broadcast_arrays(x[:, None], y[:, None], z), axis=-1) @ rotation.numpy()
    plane = float(shape.slope_x) * points[..., 0] + float(shape.slope_y) * points[..., 1]
    height = points[..., 2] - plane
    axes = [(np.arange(n) - (n - 1) / 2) * apart for n, apart in zip(
        KNOTS.shape, (700 / 3, 400.0, 400.0), strict=True)]
    taken = RegularGridInterpolator(axes, KNOTS)(np.stack([
        np.clip(value, axis[0], axis[-1]) for value, axis in zip(
            (height, points[..., 1], points[..., 0]), axes, strict=True)], axis=-1))
    middle, half = 0.0, 350.0
    if shape is HILLY:
        ends = [np.clip(points[..., n], -750, 750) for n in (1, 0)]
        middle, half = (RegularGridInterpolator(
            [np.array([-750.0, 750.0])] * 2, np.array(knots))(np.stack(ends, axis=-1))
            for knots in (shape.relief_heights, 350 * np.array(shape.relief)))
    expected = (taken * (np.abs(height - middle) < half)).sum(axis=-1)
    # Steps of 58 A at most, a quarter of the way between knots.
    np.testing.assert_allclose(path_length(shape, rotation, x, y).numpy(), expected, rtol=0.004)


def test_gradients(double):
    def ways(knots, spacing, thickness, tilt):
        shape = IceShape(thickness, slope_x=0.05, absorption=knots, absorption_spacing=spacing)
        place = as_tensor([-800.0, 110.0, 930.0])
        return path_length(shape, tilt_rotation(tilt, 15.0), place, place / 3)

    assert torch.autograd.gradcheck(ways, tuple(as_tensor(v).requires_grad_() for v in (
        KNOTS[:, :3, :4], 700.0, 610.0, 33.0)))


@pytest.mark.parametrize("upper", [True, False])
def test_what_is_dark_above_goes_the_other_way_with_the_tilt_than_what_is_below(upper):
    """A point at height h is at x cos(tilt) + h sin(tilt), for a tilt about y."""
    layer, even = [[2.0 if n == 6 else 1.0 for n in range(13)]] * 2, [[1.0] * 13] * 2
    made = simulate(Scene(
        shape=[16, 160], pixel_size=10.0, dose=50.0,
        tilts=TiltSettings("listed", angles=[-40.0, 0.0, 40.0], axis_angle=0.0),
        interaction=InteractionSettings(mode="projection", slice_thickness=400.0),
        specimen=SpecimenSettings(IceSettings(
            1000.0, granularity=0.0, absorption_spacing=100.0,
            absorption=[even, layer] if upper else [layer, even])))).noise_free.numpy()
    lost = -np.log(made[:, 4:-4, 4:-4]).mean(axis=1)
    lost = lost - np.median(lost, axis=1, keepdims=True)
    x = (np.arange(4, 156) - 80) * 10.0
    middles = (lost * x).sum(axis=1) / lost.sum(axis=1)
    # Its layer weighs 1 from 250 to 500 A, and falls to 0 at -250: means of 375 and 250 / 3 A.
    height = (250 * 375 + 250 * 250 / 3) / 500
    sign = 1 if upper else -1
    expected = sign * height * np.sin(np.deg2rad([-40.0, 0.0, 40.0]))
    sees = np.sign(tilt_rotation(40.0, 0.0).numpy()[0, 2])
    np.testing.assert_allclose(middles, sees * expected, atol=6)


@pytest.mark.parametrize(("wrong", "said"), [
    (np.ones((2, 2)), "absorption of shape"), (np.ones((1, 2, 2)), "absorption of shape"),
    (np.full((2, 2, 2), -0.1), "absorption: must not be negative")])
def test_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        IceShape(100.0, absorption=wrong)


@pytest.mark.parametrize(("settings", "said"), [
    ({"absorption": (((1.0, 1.0), (1.0, 1.0)),)}, "two layers"),
    ({"absorption": (((1.0, 1.0),) * 2, ((1.0, 1.0, 1.0),) * 2)}, "two layers"),
    ({"absorption": (((1.0, 1.0), (1.0, -1.0)),) * 2}, r"absorption\[0\]\[1\]\[1\]"),
    ({"absorption": (((1.0, 1.0),) * 2,) * 2, "mean_free_path": None}, "mean_free_path"),
    ({"absorption_spacing": 0.0}, "absorption_spacing")])
def test_the_scene_refuses(settings, said):
    with pytest.raises(ValueError, match=said):
        IceSettings(**settings)
