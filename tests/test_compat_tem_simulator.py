"""TEM-simulator 1.3's images, cross-sections and attenuation."""

import json
import math
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from scipy.integrate import quad

from tem_taichi.compat import tem_simulator_particle
from tem_taichi.compat.tem_simulator import (
    Hole,
    Poses,
    Setup,
    euler_rotations,
    path_lengths,
    simulate_compat,
)
from tem_taichi.compat.tem_simulator_particle import (
    ICE_POTENTIAL,
    VoxelParticle,
    _passes,
    absorption_potential,
    contrast_of,
    ice_density,
    particle_from_atoms,
    pass_offset,
    project,
)
from tem_taichi.instrument.optics import Optics
from tem_taichi.noise.detector import Detector
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen import cross_sections
from tem_taichi.specimen.atoms import Atoms, read_structure

OPTICS = Optics(defocus=2e4, spherical_aberration=2.0, chromatic_aberration=2.0, energy_spread=1.3,
                convergence=0.1, aperture=50.0, focal_length=3.0)
IDENTITY = torch.eye(3, dtype=torch.float64)


def reference_case(shared: Path, name: str) -> tuple[Hole, Setup, Poses | None]:
    parameters = json.loads((shared / "reference/temsim/params.json").read_text())
    common, own = parameters["common"], parameters[name]
    x, y = own.get("hole_offset_nm", (0, 0))
    hole = Hole(own["ice_nm"]["center"] * 10, own["ice_nm"]["edge"] * 10,
                common["hole_diameter_nm"] * 10, x * 10, y * 10)
    mtf = tuple(common["mtf"][key] for key in ("a", "b", "c", "alpha", "beta"))
    setup = Setup(
        shape=tuple(own["pixels"]), pixel_size=1.5e5 / own["magnification"], dose=1.0,
        tilts=tuple(own["tilts_deg"]), voltage=common["voltage_kV"],
        optics=replace(OPTICS, defocus=own["defocus_um"] * 1e4),
        detector=Detector("integrating", gain=common["gain"], mtf=mtf, dqe=common["dqe"]))
    listed = own.get("particles_x_y_z_nm_phi_theta_psi_deg")
    if listed is None:
        return hole, setup, None
    table = torch.tensor(listed, dtype=torch.float64)
    return hole, setup, Poses(table[:, :3] * 10, table[:, 3:])


def read(path: Path) -> torch.Tensor:
    return torch.tensor(mrcfile.read(path).astype(float))


def errors(images: torch.Tensor, expected: torch.Tensor) -> list[float]:
    """Root mean square of the difference over the standard deviation, of each image."""
    return [float((a - b).square().mean().sqrt() / b.std())
            for a, b in zip(images, expected, strict=True)]


def blob(size: int = 12, voxel_size: float = 4.0) -> VoxelParticle:
    """A smooth, lopsided particle."""
    x = torch.linspace(-1, 1, size, dtype=torch.float64)
    shape = torch.exp(-8 * (x[:, None, None] ** 2 + 2 * x[None, :, None] ** 2
                            + (x - 0.1) ** 2)).clamp(min=1e-2) - 1e-2
    return VoxelParticle(4.9 + 3 * shape, 0.82 + 0.1 * shape, voxel_size)


@pytest.mark.parametrize(("number", "section"), [
    (1, 8.686e-3), (6, 1.594e-2), (7, 1.722e-2), (8, 1.850e-2), (15, 2.791e-2), (16, 2.933e-2)])
def test_total_cross_sections_at_200_kv(number: int, section: float) -> None:
    # [A^2]; TEM-simulator's own, given in four digits: half a unit of the last is up to 3.2e-4.
    assert cross_sections.total_cross_section(number, 200.0) == pytest.approx(section, rel=3.2e-4)


@pytest.mark.parametrize("within", [1e-4, 8e-3, math.inf])
@pytest.mark.parametrize("kind", ["elastic", "inelastic"])
@pytest.mark.parametrize("number", [1, 8, 79])
def test_closed_forms_integrate_the_differential_ones(
    kind: str, within: float, number: int
) -> None:
    differential = getattr(cross_sections, f"{kind}_differential")

    def density(logarithm: float) -> float:
        angle = math.exp(logarithm)
        return float(2 * math.pi * angle**2 * differential(angle, number, 200.0))

    integral = quad(density, math.log(1e-9), math.log(min(within, 1e3)), limit=400,
                    epsrel=1e-10)[0]
    closed = getattr(cross_sections, f"{kind}_cross_section")(number, 200.0, within)
    # What lies below 1e-9 and above 1e3 rad is less than 1e-8 of the whole; so is rounding.
    assert closed == pytest.approx(integral, rel=1e-6)


def test_cross_sections_fall_with_voltage_and_refuse_nothing_sensible() -> None:
    numbers = np.arange(1, 99)
    slow, fast = (cross_sections.total_cross_section(numbers, kv) for kv in (100.0, 300.0))
    assert (fast < slow).all() and (np.diff(fast) > 0).all()
    with pytest.raises(ValueError, match="number=0"):
        cross_sections.elastic_cross_section(0, 300.0)
    with pytest.raises(ValueError, match="voltage"):
        cross_sections.inelastic_cross_section(6, -1.0)


def test_scattering_transform_begins_at_the_fraction_within() -> None:
    whole = cross_sections.total_cross_section(6, 200.0)
    inside = (cross_sections.total_cross_section(6, 200.0, 8.3e-3)
              - cross_sections.total_cross_section(6, 200.0, 1e-5))
    kept = cross_sections.scattering_transform({6: 1}, 200.0, (1e-5, 8.3e-3), [0.0, 1e7])
    # The trapezoidal rule's error is (log step)^2 / 12 = 1e-6; at large x it must vanish.
    assert kept[0] == pytest.approx(inside / whole, rel=1e-5)
    assert abs(kept[1]) < 1e-3
    with pytest.raises(ValueError, match="angles"):
        cross_sections.scattering_transform({6: 1}, 200.0, (0.0, 8.3e-3), 0.0)


def test_ice_has_tem_simulators_absorption() -> None:
    # Floor of its maps at 200 kV, and the mean free path 83.2 nm; constants differ by 1e-6.
    assert absorption_potential(ice_density(200.0), 200.0) == pytest.approx(0.8244815, rel=2e-6)
    assert 1 / ice_density(200.0) == pytest.approx(832.1, rel=1e-4)
    assert 1 / ice_density(300.0) == pytest.approx(1009.0, rel=1e-3)


@pytest.mark.usefixtures("double")
def test_blank_image_decays_with_the_fitted_mean_free_path() -> None:
    setup = Setup((8, 8), 5.0, dose=1.0, optics=OPTICS)
    thin, thick = (float(simulate_compat(Hole(t, t, 1e4), setup).mean()) for t in (500.0, 1500.0))
    # 404.46 nm was fitted to `blank_tilt` to five digits.
    assert 1000 / math.log(thin / thick) == pytest.approx(4044.6, rel=1e-4)
    assert thin == pytest.approx(25 * math.exp(-500 / 4044.6), rel=1e-5)


@pytest.mark.usefixtures("double")
def test_a_flat_layer_is_thicker_by_the_cosine_and_the_film_is_around_the_hole() -> None:
    setup = Setup((64, 64), 20.0, dose=1.0, optics=OPTICS)
    hole = Hole(400.0, 400.0, 800.0)
    for tilt in (0.0, 50.0):
        ice, film = path_lengths(hole, setup, tilt_rotation(tilt, -90.0))
        path = torch.full_like(ice, 400 / math.cos(math.radians(tilt)))
        torch.testing.assert_close(ice + film, path)
    ice, film = path_lengths(hole, setup, IDENTITY)
    # As many pixels as the circle holds, up to those that its rim of 2 pi R crosses.
    assert float((ice > 0).sum()) == pytest.approx(math.pi * 20**2, abs=2 * math.pi * 20 / 2)
    assert not (ice * film).any()


@pytest.mark.usefixtures("double")
def test_lens_paths_agree_with_steps_along_the_ray() -> None:
    setup = Setup((24, 16), 300.0, dose=1.0, optics=OPTICS)
    hole, rotation = Hole(500.0, 2000.0, 7000.0, 400.0, 900.0), tilt_rotation(50.0, -60.0)
    ice, film = path_lengths(hole, setup, rotation)
    step = 2.0
    z = torch.arange(-9000, 9000, step, dtype=torch.float64)
    y, x = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * 300 for n in setup.shape)
    image = torch.stack(torch.broadcast_tensors(x, y[:, None], z[:, None, None]))
    there = torch.einsum("ij,izyx->jzyx", rotation, image)
    squared = ((there[0] - 400) ** 2 + (there[1] - 900) ** 2) / 3500**2
    inside = squared < 1
    lens = inside & (there[2].abs() < 250 + 750 * squared)
    around = ~inside & (there[2].abs() < 1000)
    # A step is lost or won at each end of each of up to two stretches.
    assert float((lens.sum(0) * step - ice).abs().max()) < 4 * step
    assert float((around.sum(0) * step - film).abs().max()) < 4 * step


@pytest.mark.usefixtures("double")
def test_particle_angles_turn_about_z_x_and_z() -> None:
    matrix = euler_rotations(torch.tensor([[90.0, 90.0, 90.0]], dtype=torch.float64))[0]
    # x -> y about z -> z about x -> stays about z.
    expected = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(matrix @ IDENTITY[0], expected)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("angles", [(20, 50, 70), (0, 0, 0), (100, 60, 250), (90, 90, 180)])
def test_projection_keeps_volume_and_has_the_known_offset(angles: tuple) -> None:
    particle, pixel_size = blob(), 3.0
    rotation = euler_rotations(torch.tensor([angles], dtype=torch.float64))[0]
    position = torch.tensor([7.3, -11.9, 30.0], dtype=torch.float64)
    maps = torch.stack([particle.potential, particle.absorption])
    contrast = maps - maps.amin((1, 2, 3), keepdim=True)
    axis = (torch.arange(12, dtype=torch.float64) - 5.5) * particle.voxel_size
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    mass = contrast[0].sum()
    centre = torch.stack([(contrast[0] * part).sum() / mass for part in (x, y, z)])
    pixels = (torch.arange(48, dtype=torch.float64) - 23.5) * pixel_size
    image = project(particle, rotation, position, (48, 48), pixel_size)
    torch.testing.assert_close(image.sum((1, 2)) * pixel_size**2,
                               contrast.sum((1, 2, 3)) * particle.voxel_size**3)
    found = torch.stack([(image[0].sum(0) * pixels).sum(), (image[0].sum(1) * pixels).sum()])
    expected = (rotation @ centre + position)[:2] + pass_offset(rotation, 4.0, pixel_size)
    # Columns know in which pixel of a row something lies but not where in it, which averages out
    # over many voxels: measured up to 4.8e-3 pixels.
    torch.testing.assert_close(found / image[0].sum(), expected, atol=0.01 * pixel_size, rtol=0)


@pytest.mark.usefixtures("double")
def test_only_particles_turned_within_the_image_are_offset() -> None:
    quarter = euler_rotations(torch.tensor([[0.0, 90.0, 0.0], [0.0, 90.0, 90.0], [0.0, 40.0, 0.0]],
                                           dtype=torch.float64))
    for rotation in quarter:  # the last is only sheared
        assert float(pass_offset(rotation, 2.0, 2.5).abs().max()) < 1e-12
    turned = euler_rotations(torch.tensor([[30.0, 0.0, 0.0]], dtype=torch.float64))[0]
    # Half a voxel times sin 30, and tan 30 times that and half a pixel.
    expected = torch.tensor([0.5, math.tan(math.pi / 6) * (0.5 - 1.25)], dtype=torch.float64)
    torch.testing.assert_close(pass_offset(turned, 2.0, 2.5), expected)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("angles", "tilt", "order"), [
    # Seen in TEM-simulator's images, which the order before it missed by 6 to 10 %.
    ((10, 30, 50), 0, (1, 0, 1)), ((30, 60, 90), 45, (1, 1, 2)),
    # Those of `test_turned_particles_of_tem_simulator`.
    ((10, 20, 30), -40, (0, 0, 1)), ((100, 60, 250), 40, (0, 2, 1)),
    # Turned about the beam alone, two orders scale alike.
    ((30, 0, 0), 0, (0, 0, 1)), ((75, 0, 0), 0, (0, 1, 0)),
])
def test_passes_are_those_of_tem_simulator(angles: tuple, tilt: float, order: tuple) -> None:
    turn = euler_rotations(torch.tensor([angles], dtype=torch.float64))[0]
    assert _passes(tilt_rotation(tilt, -90.0) @ turn) == order


def scalings(rotation: torch.Tensor, first: int, main: int, other: int) -> torch.Tensor:
    """Pixels a voxel in either pass: along `first`, and across it where `first` is held."""
    second = 1 - first
    held = -rotation[first, other] / rotation[first, main]  # of `main` for each of `other`
    return torch.stack([rotation[first, main],
                        rotation[second, other] + held * rotation[second, main]]).abs()


@pytest.mark.usefixtures("double")
def test_passes_have_the_widest_bottleneck_and_the_least_change_of_scale() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator,
                                               dtype=torch.float64))[0]
        chosen = scalings(rotation, *_passes(rotation))
        beam = int(rotation[2].abs().argmax())
        # The determinant is a cofactor of the rotation: what one pass spares, the other pays.
        torch.testing.assert_close(chosen.prod(), rotation[2, beam].abs())
        kept = [axis for axis in range(3) if axis != beam]
        orders = [(first, main, sum(kept) - main) for first in (0, 1) for main in kept]
        for scale in (0.2, 1.0, 3.0):  # voxels to pixels
            worst = [float(torch.maximum(s, 1 / s).max()) for s in (
                scale * scalings(rotation, *order) for order in orders)]
            found = float(torch.maximum(scale * chosen, 1 / (scale * chosen)).max())
            assert found == pytest.approx(min(worst), rel=1e-6)  # equal ones are told no better
        assert float(chosen.min()) == pytest.approx(
            max(float(scalings(rotation, *order).min()) for order in orders), rel=1e-6)


@pytest.mark.usefixtures("double")
def test_a_quarter_turn_about_the_beam_turns_the_projection() -> None:
    turns = euler_rotations(torch.tensor([[0.0, 0.0, 0.0], [90.0, 0.0, 0.0]], dtype=torch.float64))
    flat, turned = (project(blob(), turn, torch.zeros(3, dtype=torch.float64), (32, 32), 3.0)
                    for turn in turns)
    torch.testing.assert_close(turned, flat.transpose(1, 2).flip(2))  # x -> y, y -> -x


@pytest.mark.usefixtures("double")
def test_inelastic_background_returns_what_stays_within_the_aperture() -> None:
    """A purely absorbing particle takes as much as its share of scattering beyond the aperture."""
    particle = replace(blob(), potential=torch.full((12, 12, 12), ICE_POTENTIAL,
                                                    dtype=torch.float64))
    poses = Poses(torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64))
    setup = Setup((64, 64), 4.0, dose=1.0, optics=replace(OPTICS, defocus=0.0))
    hole = Hole(1e-3, 1e-3, 1e5)  # hardly any ice
    blank = simulate_compat(hole, setup)
    taken = float((blank - simulate_compat(hole, setup, particle, poses)).sum()) / 16
    absorbed = project(particle, IDENTITY, torch.zeros(3), (64, 64), 4.0)[1] * 2 * 7.28840e-4
    whole = cross_sections.total_cross_section(6, 200.0)
    beyond = 1 - cross_sections.total_cross_section(6, 200.0, 50e-3 / 6) / whole
    # sigma has six digits; angles that the fitted lower limit leaves out are 3e-6 of carbon's.
    assert taken == pytest.approx(float((1 - torch.exp(-absorbed)).sum() * beyond), rel=1e-4)


@pytest.mark.usefixtures("double")
def test_particles_in_other_planes_only_change_the_defocus() -> None:
    setup = Setup((64, 64), 4.0, dose=1.0, optics=OPTICS)
    up = 2 * setup.slice_distance
    hole, zero = Hole(500.0, 500.0, 1e5), torch.zeros(1, 3, dtype=torch.float64)
    lifted = torch.tensor([[0.0, 0.0, up]], dtype=torch.float64)
    defocused = replace(setup, optics=replace(OPTICS, defocus=OPTICS.defocus + up))
    flat = simulate_compat(hole, setup, blob(), Poses(zero, zero))
    high = simulate_compat(hole, setup, blob(), Poses(lifted, zero))
    expected = simulate_compat(hole, defocused, blob(), Poses(zero, zero))
    # Envelope and ice blur by the defocus of z = 0, whatever a particle's height.
    assert errors(high, expected)[0] < 0.1 * errors(flat, expected)[0]


@pytest.mark.usefixtures("double")
def test_gradient_in_the_pose_is_that_of_finite_differences() -> None:
    setup = Setup((16, 16), 4.0, dose=1.0, tilts=(15.0,), optics=OPTICS)
    angles = torch.tensor([[10.0, 20.0, 30.0]], dtype=torch.float64, requires_grad=True)
    start = torch.tensor([[1.03, -2.1, 3.0]], dtype=torch.float64, requires_grad=True)
    weights = torch.linspace(0, 1, 256, dtype=torch.float64).reshape(16, 16)

    def score(position: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        image = simulate_compat(Hole(500.0, 500.0, 1e5), setup, blob(), Poses(position, angles))
        return (image[0] * weights).sum()

    score(start, angles).backward()
    step = torch.tensor([[1e-5, 0.0, 0.0]], dtype=torch.float64)
    with torch.no_grad():
        shift = float(score(start + step, angles) - score(start - step, angles)) / 2e-5
        turn = float(score(start, angles + step) - score(start, angles - step)) / 2e-5
    # Overlaps are piecewise linear: rarely does a box cross a pixel's edge within the step.
    assert float(start.grad[0, 0]) == pytest.approx(shift, rel=1e-3)
    assert float(angles.grad[0, 0]) == pytest.approx(turn, rel=1e-3)


@pytest.mark.usefixtures("double")
def test_gradient_in_the_maps_is_that_of_finite_differences() -> None:
    particle = blob()
    rotation = euler_rotations(torch.tensor([[20.0, 50.0, 70.0]], dtype=torch.float64))[0]
    position = torch.tensor([1.3, -2.1, 0.0], dtype=torch.float64)
    weights = torch.linspace(0, 1, 2 * 256, dtype=torch.float64).reshape(2, 16, 16)

    def score(potential: torch.Tensor) -> torch.Tensor:
        image = project(replace(particle, potential=potential), rotation, position, (16, 16), 3.0)
        return (image * weights).sum()

    potential = particle.potential.clone().requires_grad_()
    score(potential).backward()
    step = torch.zeros_like(particle.potential)
    for voxel in ((6, 6, 6), (2, 9, 4), (0, 0, 0)):  # the last is one of the solvent's
        step.zero_()[voxel] = 1e-3
        with torch.no_grad():
            change = float(score(particle.potential + step) - score(particle.potential - step))
        # Linear but for shares below 1e-5 of a voxel, which are left out.
        assert float(potential.grad[voxel]) == pytest.approx(change / 2e-3, rel=1e-4)


@pytest.mark.parametrize("angles", [(0, 0, 0), (0, 25, 0), (90, 25, 0), (0, 90, 90), (20, 50, 70)])
def test_layers_are_summed_row_by_row_as_one_by_one(
    angles: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = blob(40)
    particle = VoxelParticle(double.potential.float(), double.absorption.float(), 4.0)
    rotation = euler_rotations(torch.tensor([angles], dtype=torch.float32))[0]
    images = []
    for few in (0, math.inf):
        monkeypatch.setattr(tem_simulator_particle, "_FEW", few)
        images.append(project(particle, rotation, torch.zeros(3), (64, 64), 3.0))
    rows, layers = images
    # Layers in another order, then running sums over 60 voxels, all of 24 bits: measured 3.2e-6.
    for found, expected in zip(rows, layers, strict=True):
        assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_solvent_of_large_maps_is_found_in_single_precision() -> None:
    potential = torch.full((120, 200, 200), ICE_POTENTIAL)
    potential[1:-1, 1:-1, 1:-1] += torch.rand(118, 198, 198)
    contrast = contrast_of(VoxelParticle(potential, torch.ones_like(potential), 1.0)).maps
    # The sums of millions of terms of 5 V differ by what rounding takes in single precision: it was
    # 3e-4 V here, and 0.02 V in the map of the virus.
    assert float(contrast[0, 0].abs().max()) < 1e-5


@pytest.mark.usefixtures("double")
def test_particle_of_atoms_is_gaussians_on_a_floor_of_solvent() -> None:
    atoms = Atoms(torch.tensor([16, 16]), torch.tensor([[0.3, 0.1, -0.7], [20.0, 21.0, 22.0]],
                  dtype=torch.float64), torch.full((2,), 30.0, dtype=torch.float64),
                  torch.full((2,), 6.0, dtype=torch.float64), torch.zeros(2, dtype=torch.bool))
    particle = particle_from_atoms(atoms, 200.0, 1.0)
    assert particle.potential.shape == (33, 31, 30)  # the box and 5 A around it
    assert float(particle.potential.min()) == ICE_POTENTIAL
    middle = (atoms.positions[0] + atoms.positions[1]) / 2
    centre = torch.tensor([14.5, 15.0, 16.0], dtype=torch.float64)
    distance = (5 - (atoms.positions[0] - middle + centre)).square().sum()
    # f(0) of sulphur is 5.155 A (Peng et al. 1996); all widths are those of b = 200 A^2.
    strongest = 6 * 47.87765 * 5.155 * (4 * math.pi / 200) ** 1.5
    expected = strongest * math.exp(-4 * math.pi**2 * float(distance) / 200)
    # The table's sum differs from 5.155 by up to 1e-3.
    assert float(particle.potential[5, 5, 5]) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("x", "y"), [(500.0, 0.0), (0.0, -500.0), (-500.0, 500.0), (100.0, -95.0)])
def test_what_is_outside_the_image_is_left_out(x: float, y: float) -> None:
    rotation = tilt_rotation(20.0, 10.0).double()
    wide, narrow = (project(blob(), rotation, torch.tensor([x, y, 0.0], dtype=torch.float64),
                            (n, n), 4.0) for n in (512, 48))
    torch.testing.assert_close(narrow, wide[:, 232:280, 232:280], rtol=0, atol=1e-12)
    assert bool(narrow.any()) == (max(abs(x), abs(y)) < 200)


def test_bad_input_is_named() -> None:
    setup = Setup((16, 16), 4.0, dose=1.0)
    with pytest.raises(ValueError, match="together"):
        simulate_compat(Hole(500.0, 500.0, 1e4), setup, blob())
    with pytest.raises(ValueError, match="diameter=-1"):
        Hole(500.0, 500.0, -1.0)
    with pytest.raises(ValueError, match="aperture"):
        replace(setup, optics=Optics())
    with pytest.raises(ValueError, match=r"\(n, 3\)"):
        Poses(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="absorption of shape"):
        VoxelParticle(torch.zeros(2, 2, 2), torch.zeros(2, 2, 3), 1.0)


@pytest.mark.usefixtures("double")
def test_blank_series_of_tem_simulator(shared: Path) -> None:
    hole, setup, _ = reference_case(shared, "blank_tilt")
    images = simulate_compat(hole, setup)
    expected = read(shared / "reference/temsim/blank_tilt/nonoise.mrc")
    # Two free numbers were fitted to these, the mean free paths of ice and film; what remains of
    # the lens seen at 60 degrees, in and out of the hole, is 4e-4 of its contrast.
    assert max(errors(images, expected)) < 1e-3


@pytest.mark.usefixtures("double")
def test_virus_of_tem_simulator_from_its_maps(shared: Path) -> None:
    hole, setup, poses = reference_case(shared, "tmv3")
    folder = shared / "reference/temsim/tmv3"
    particle = VoxelParticle(read(folder / "2OM3_map.mrc.gz"), read(folder / "2OM3_abs_map.mrc.gz"),
                             1.0)
    images = simulate_compat(hole, replace(setup, tilts=setup.tilts[1:]), particle, poses)
    expected = read(folder / "tiltseries_nonoise.mrc")[1:]
    # Measured 2.19e-3 and 2.20e-3, most of it smooth and outside the particles; shearing without
    # the lattice of voxels gives 2.34e-3 in the second.
    assert max(errors(images, expected)) < 2.3e-3


@pytest.mark.usefixtures("double")
def test_maps_of_tem_simulator_from_atoms(shared: Path) -> None:
    atoms = read_structure(shared / "data/atoms/2OM3.pdb", model="all", hydrogens="parent")
    particle = particle_from_atoms(atoms, 200.0, 2.0)
    for name, ours, limit in (("2OM3_map", particle.potential, 0.01),
                              ("2OM3_abs_map", particle.absorption, 0.05)):
        theirs = read(shared / f"reference/temsim/small/{name}.mrc")
        # Measured 4.5e-3 and 3.4e-2: the floor leaves little of the absorption above it.
        assert (ours - theirs).norm() < limit * (theirs - theirs.min()).norm(), name


@pytest.mark.usefixtures("double")
def test_turned_particles_of_tem_simulator(shared: Path) -> None:
    hole, setup, poses = reference_case(shared, "small")
    folder = shared / "reference/temsim/small"
    particle = VoxelParticle(read(folder / "2OM3_map.mrc"), read(folder / "2OM3_abs_map.mrc"), 2.0)
    images = simulate_compat(hole, setup, particle, poses)
    # Measured 9.2e-4 to 9.9e-4. Without the offset it is 0.05 to 0.15, with lattices always on the
    # map's voxels 3e-3 to 1e-2.
    assert max(errors(images, read(folder / "nonoise.mrc"))) < 1.5e-3
    atoms = read_structure(shared / "data/atoms/2OM3.pdb", model="all", hydrogens="parent")
    images = simulate_compat(hole, setup, particle_from_atoms(atoms, 200.0, 2.0), poses)
    # Measured 2.4e-3 to 2.7e-3: what the maps made here differ by.
    assert max(errors(images, read(folder / "nonoise.mrc"))) < 4e-3
