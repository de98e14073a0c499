import numpy as np
import pandas as pd
import pytest

from tem_taichi.export.alignment import particles_in_tomogram, project, to_tomogram, true_alignment
from tem_taichi.rotations import euler_to_matrix, tilt_rotation
from tem_taichi.scene.settings import IceSettings, Scene, SpecimenSettings
from tem_taichi.series.record import tomogram_height


def rotation(axis: str, degrees: float) -> np.ndarray:
    """Right-handed, active, about one axis."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array({"x": [[1, 0, 0], [0, c, -s], [0, s, c]],
                     "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
                     "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]]}[axis])


def tilts(n: int = 6, axis: float = 85.0, spread: float = 2.0) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame({"tilt_angle": np.linspace(-70, 70, n), "shift_x": rng.normal(size=n),
                         "axis_angle": axis + spread * rng.normal(size=n),
                         "shift_y": rng.normal(size=n)})


@pytest.mark.parametrize("axis", [0.0, 85.0, -95.3, 180.0])
def test_alignment_is_the_simulators_own_geometry(double, axis):
    table = tilts(axis=axis)
    aligned = true_alignment(table, axis)
    for row, tilt in zip(aligned.itertuples(), table.itertuples(), strict=True):
        matrix = (rotation("z", row.z_rotation) @ rotation("y", row.y_tilt)
                  @ rotation("x", row.x_tilt))
        expected = tilt_rotation(tilt.tilt_angle, tilt.axis_angle).numpy()
        # Rounding of double precision, twice through arc tangents.
        np.testing.assert_allclose(matrix @ to_tomogram(axis), expected, atol=1e-12)
    assert aligned.shift_x.equals(table.shift_x) and aligned.shift_y.equals(table.shift_y)


@pytest.mark.parametrize("axis", [0.0, 85.0, -95.3])
def test_without_errors_the_angles_are_the_tilt_and_the_axis(axis):
    table = tilts(axis=axis, spread=0.0)
    aligned = true_alignment(table, axis)
    np.testing.assert_allclose(aligned.y_tilt, table.tilt_angle, atol=1e-12)
    np.testing.assert_allclose(aligned.z_rotation, axis, atol=1e-12)
    np.testing.assert_allclose(aligned.x_tilt, 0, atol=1e-12)


def test_particles_are_turned_with_the_frame(double):
    particles = pd.DataFrame({"kind": ["a", "b"], "x": [100.0, -5.0], "y": [20.0, 0.0],
                              "z": [30.0, -8.0], "rot": [10.0, 0.0], "tilt": [20.0, 90.0],
                              "psi": [-30.0, 170.0]})
    table, axis = tilts(axis=40.0), 40.0
    turned = particles_in_tomogram(particles, axis)
    assert turned.kind.tolist() == ["a", "b"]
    seen = project(true_alignment(table, axis), turned[["x", "y", "z"]].to_numpy())
    for n, tilt in enumerate(table.itertuples()):
        view = tilt_rotation(tilt.tilt_angle, tilt.axis_angle).numpy()
        expected = particles[["x", "y", "z"]].to_numpy() @ view.T
        expected[:, :2] += [tilt.shift_x, tilt.shift_y]
        np.testing.assert_allclose(seen[n], expected, atol=1e-10)
    before, after = (euler_to_matrix(*table[["rot", "tilt", "psi"]].to_numpy().T)
                     for table in (particles, turned))
    np.testing.assert_allclose(rotation("z", axis) @ after, before, atol=1e-12)
    assert len(particles_in_tomogram(particles.iloc[:0], axis)) == 0


@pytest.mark.parametrize(("ice", "height"), [
    ({}, 50), ({"thickness": 101.0}, 52), ({"hole_radius": 500.0, "edge_thickness": 140.0}, 70),
    ({"slope": [0.1, -0.2]}, 60)])
def test_tomogram_holds_the_ice(ice, height):
    given = IceSettings(**{"thickness": 100.0, **ice})
    scene = Scene(shape=[40, 20], pixel_size=2.0, specimen=SpecimenSettings(ice=given))
    assert tomogram_height(scene) == height


def test_a_point_on_the_tilt_axis_stays_on_the_tomograms_y():
    axis = 30.0
    on_axis = to_tomogram(axis) @ [-np.sin(np.deg2rad(axis)), np.cos(np.deg2rad(axis)), 0]
    np.testing.assert_allclose(on_axis, [0, 1, 0], atol=1e-15)
