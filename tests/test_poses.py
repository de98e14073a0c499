import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tem_taichi.rotations import euler_to_matrix, matrix_to_euler, random_rotations

# Rounding of a few products of cosines in double precision.
EXACT = 1e-14

# Four points of different weight, no two of the six distances equal: a chiral set.
CHIRAL = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.5, 0.3, 1.0]])


def angles(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-180, 180, n), rng.uniform(0, 180, n), rng.uniform(-180, 180, n)


def turn_z(degrees: float) -> np.ndarray:
    """Right-handed active rotation about z: x goes towards y."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def turn_y(degrees: float) -> np.ndarray:
    """Right-handed active rotation about y: z goes towards x."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def handedness(points: np.ndarray) -> float:
    a, b, c = points[1:] - points[0]
    return float(np.dot(np.cross(a, b), c))


def test_matrix_is_relions_formula():
    # RELION, src/euler.cpp, Euler_angles2matrix, entry by entry.
    for rot, tilt, psi in np.transpose(angles(20)):
        a, b, g = np.deg2rad([rot, tilt, psi])
        relion = np.empty((3, 3))
        relion[0, 0] = np.cos(g) * np.cos(b) * np.cos(a) - np.sin(g) * np.sin(a)
        relion[0, 1] = np.cos(g) * np.cos(b) * np.sin(a) + np.sin(g) * np.cos(a)
        relion[0, 2] = -np.cos(g) * np.sin(b)
        relion[1, 0] = -np.sin(g) * np.cos(b) * np.cos(a) - np.cos(g) * np.sin(a)
        relion[1, 1] = -np.sin(g) * np.cos(b) * np.sin(a) + np.cos(g) * np.cos(a)
        relion[1, 2] = np.sin(g) * np.sin(b)
        relion[2] = np.sin(b) * np.cos(a), np.sin(b) * np.sin(a), np.cos(b)
        np.testing.assert_allclose(euler_to_matrix([rot], [tilt], [psi])[0], relion, atol=EXACT)


def test_matrix_is_scipys_inverse_zyz():
    rot, tilt, psi = angles()
    scipy = Rotation.from_euler("ZYZ", np.stack([rot, tilt, psi], 1), degrees=True).inv()
    np.testing.assert_allclose(euler_to_matrix(rot, tilt, psi), scipy.as_matrix(), atol=EXACT)


@pytest.mark.parametrize(("rot", "tilt", "psi"), [(90, 0, 0), (0, 90, 0), (0, 0, 90),
                                                  (30, 50, 70), (-110, 140, 20)])
def test_chiral_particle_goes_where_three_turns_take_it(rot, tilt, psi):
    # The reference, turned back by rot about z, then by tilt about y, then by psi about z.
    expected = CHIRAL @ (turn_z(-psi) @ turn_y(-tilt) @ turn_z(-rot)).T
    placed = CHIRAL @ euler_to_matrix([rot], [tilt], [psi])[0].T
    np.testing.assert_allclose(placed, expected, atol=10 * EXACT)
    assert handedness(placed) == pytest.approx(handedness(CHIRAL), rel=1e-12) != 0


def test_sense_of_one_angle():
    # Seen from +z, rot = 90 takes the reference's +y to the specimen's +x, not to -x.
    np.testing.assert_allclose(euler_to_matrix([90], [0], [0])[0] @ [0, 1, 0], [1, 0, 0],
                               atol=EXACT)
    # tilt = 90 takes the reference's +x to the specimen's +z.
    np.testing.assert_allclose(euler_to_matrix([0], [90], [0])[0] @ [1, 0, 0], [0, 0, 1],
                               atol=EXACT)


def test_angles_come_back():
    given = angles()
    for back, angle in zip(matrix_to_euler(euler_to_matrix(*given)), given, strict=True):
        # Rounding 1e-16 over the smallest sin(tilt) of these draws, 0.01, in degrees.
        np.testing.assert_allclose(back, angle, atol=1e-11)


@pytest.mark.parametrize("tilt", [0.0, 1e-12, 1e-7, 1e-4, 180 - 1e-7, 180.0])
def test_matrix_comes_back_where_rot_and_psi_merge(tilt):
    rot, _, psi = angles()
    matrix = euler_to_matrix(rot, np.full(rot.shape, tilt), psi)
    np.testing.assert_allclose(euler_to_matrix(*matrix_to_euler(matrix)), matrix, atol=1e-13)


def test_no_particles():
    assert euler_to_matrix([], [], []).shape == (0, 3, 3)
    assert all(angle.shape == (0,) for angle in matrix_to_euler(np.empty((0, 3, 3))))
    assert random_rotations(0, np.random.default_rng(0)).shape == (0, 3, 3)


@pytest.mark.parametrize("matrix", [np.diag([1, 1, -1]), 2 * np.eye(3), np.full((3, 3), np.nan)])
def test_not_a_rotation_is_refused(matrix):
    with pytest.raises(ValueError, match=r"matrix: must be rotations"):
        matrix_to_euler(matrix[None])


def test_random_rotations_are_uniform():
    n = 20_000
    m = random_rotations(n, np.random.default_rng(1))
    np.testing.assert_allclose(m @ np.swapaxes(m, 1, 2), np.broadcast_to(np.eye(3), m.shape),
                               atol=10 * EXACT)
    # Haar measure: every entry has mean 0 and variance 1/3 (4th moment 1/5), distinct entries
    # are uncorrelated; 5 standard errors.
    entries = m.reshape(n, 9)
    assert np.all(np.abs(entries.mean(0)) < 5 * np.sqrt(1 / 3 / n))
    second = entries.T @ entries / n
    error = 5 * np.sqrt((1 / 5 - 1 / 9) / n)
    np.testing.assert_allclose(second, np.eye(9) / 3, atol=error)
    # The rotation angle has density (1 - cos angle)/pi, so the trace has mean 0, square 1.
    trace = np.trace(m, axis1=1, axis2=2)
    assert abs(np.mean(trace**2) - 1) < 5 * np.sqrt(2 / n)
    # cos(tilt) is uniform: Kolmogorov-Smirnov, passed by all but 1 in 1000 true samples.
    seen = np.sort(m[:, 2, 2])
    assert np.max(np.abs((seen + 1) / 2 - (np.arange(n) + 0.5) / n)) < 1.95 / np.sqrt(n)


def test_random_rotations_follow_the_seed():
    one, same, other = (random_rotations(3, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
