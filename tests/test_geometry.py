import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tem_taichi.device import as_tensor
from tem_taichi.rotations import tilt_rotation
from tem_taichi.scene.settings import OpticsSettings, Scene, TiltErrorSettings, TiltSettings
from tem_taichi.series.tilts import acquisition_angles, tilt_table


def angles(**settings):
    return acquisition_angles(TiltSettings(**settings)).tolist()


def test_orders_of_acquisition():
    span = dict(minimum=-6.0, maximum=6.0, step=3.0)
    assert angles(scheme="linear", **span) == [-6, -3, 0, 3, 6]
    assert angles(scheme="bidirectional", **span) == [0, 3, 6, -3, -6]
    assert angles(scheme="dose_symmetric", **span) == [0, 3, -3, 6, -6]
    assert angles(scheme="dose_symmetric", group=2, **span) == [0, 3, 6, -3, -6]
    assert angles(scheme="listed", angles=[10.0, -20.0, 3.0]) == [10, -20, 3]
    assert angles(scheme="bidirectional", minimum=-6.0, maximum=6.0, step=3.0, start=3.0) == [
        3, 6, 0, -3, -6]


@given(st.floats(-80, 0), st.floats(0, 80), st.floats(0.5, 20), st.integers(1, 4))
def test_schemes_cover_the_range_once(minimum, maximum, step, group):
    span = dict(minimum=minimum, maximum=maximum, step=step)
    symmetric = angles(scheme="dose_symmetric", group=group, **span)
    assert np.allclose(sorted(symmetric), sorted(angles(scheme="bidirectional", **span)))
    assert min(symmetric) >= minimum - 1e-4 and max(symmetric) <= maximum + 1e-4
    assert np.allclose(np.diff(sorted(symmetric)), step)


@pytest.mark.parametrize(("listed", "message"), [
    ([0.0, 3.0, 0.0], "tilts.angles=0: given more than once"),
    ([0.0, 90.0], "within 89.9 degrees"), ([math.nan], "finite"),
])
def test_impossible_angles(listed, message):
    with pytest.raises(ValueError, match=message):
        angles(scheme="listed", angles=listed)


def test_positive_tilt_is_right_handed_about_y():
    """What lies downstream (+z) goes to +x, what lies at +x goes upstream (-z)."""
    rotation = tilt_rotation(30.0)
    c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
    assert torch.allclose(rotation @ as_tensor([0, 0, 1.0]), as_tensor([s, 0, c]))
    assert torch.allclose(rotation @ as_tensor([1.0, 0, 0]), as_tensor([c, 0, -s]))
    assert torch.allclose(rotation @ as_tensor([0, 1.0, 0]), as_tensor([0, 1.0, 0]))


def test_axis_angle_is_counter_clockwise_from_y():
    """At 90 degrees the axis is -x, so +z goes to +y under a positive tilt."""
    axis = tilt_rotation(20.0, 90.0) @ as_tensor([-1.0, 0, 0])
    assert torch.allclose(axis, as_tensor([-1.0, 0, 0]), atol=1e-6)
    assert float((tilt_rotation(20.0, 90.0) @ as_tensor([0, 0, 1.0]))[1]) > 0.3
    tilted = as_tensor([-math.sin(0.3), math.cos(0.3), 0.0])
    assert torch.allclose(tilt_rotation(50.0, math.degrees(0.3)) @ tilted, tilted, atol=1e-6)


@given(st.floats(-89, 89), st.floats(-360, 360))
def test_rotations_are_proper(tilt, axis):
    rotation = tilt_rotation(tilt, axis).double()
    assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-5)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1, abs=1e-5)


def test_rotation_gradients(double):
    tilt, axis = as_tensor(25.0).requires_grad_(), as_tensor(-70.0).requires_grad_()
    assert torch.autograd.gradcheck(tilt_rotation, (tilt, axis))


def test_table_is_sorted_by_angle_and_remembers_the_order():
    scene = Scene(dose=2.0, tilts=TiltSettings(minimum=-6.0, maximum=6.0, step=3.0),
                  optics=OpticsSettings(defocus=20000.0, astigmatism=400.0))
    table = tilt_table(scene)
    assert table["nominal_angle"].tolist() == [-6, -3, 0, 3, 6]
    assert table["acquisition_index"].tolist() == [4, 2, 0, 1, 3]
    assert table["prior_dose"].tolist() == [8, 4, 0, 2, 6]
    assert (table["defocus_u"] == 20200).all() and (table["defocus_v"] == 19800).all()
    assert (table["tilt_angle"] == table["nominal_angle"]).all()


def test_lists_follow_the_order_of_acquisition():
    tilts = TiltSettings(scheme="listed", angles=[0.0, 10.0, -10.0], doses=[1.0, 2.0, 3.0],
                         shifts=[[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]],
                         defocus_offsets=[0.0, 50.0, 70.0])
    table = tilt_table(Scene(tilts=tilts))
    assert table["dose"].tolist() == [3, 1, 2]
    assert table["prior_dose"].tolist() == [3, 0, 1]
    assert table["shift_y"].tolist() == [4, 0, 2]
    assert table["defocus_u"].tolist() == [20070, 20000, 20050]


def test_errors_are_seeded_and_of_their_size():
    errors = TiltErrorSettings(angle=0.1, axis_angle=0.2, shift=10.0, defocus=300.0, dose=0.05)

    def table(seed, maximum=60.0):
        return tilt_table(Scene(seed=seed, dose=3.0, tilts=TiltSettings(
            scheme="linear", minimum=-60.0, maximum=maximum, step=0.5, errors=errors)))

    one = table(1)
    assert one.equals(table(1)) and not one.equals(table(2))
    # a shorter series has the same errors: each image has its own random numbers
    short = table(1, maximum=0.0)
    assert short["shift_x"].equals(one["shift_x"][: len(short)])
    spread = {"shift_x": 10.0, "shift_y": 10.0, "axis_angle": 0.2, "defocus_u": 300.0,
              "dose": 0.15}
    for column, sigma in spread.items():
        # 241 draws: the standard deviation is known to 1 / sqrt(480) = 4.6 %, 4 sigma here
        assert one[column].std() == pytest.approx(sigma, rel=0.18)
    assert (one["tilt_angle"] - one["nominal_angle"]).std() == pytest.approx(0.1, rel=0.18)


@pytest.mark.parametrize("key", ["shifts", "defocus_offsets", "doses"])
def test_lists_of_the_wrong_length(key):
    given = [[1.0, 1.0]] if key == "shifts" else [1.0]
    with pytest.raises(ValueError, match=f"tilts.{key}: has 1 entries; must have one for each"):
        tilt_table(Scene(tilts=TiltSettings(scheme="listed", angles=[0.0, 5.0], **{key: given})))
