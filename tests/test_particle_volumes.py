"""Particles drawn as volumes against the same particles drawn as atoms."""

from dataclasses import replace

import numpy as np
import pytest
import taichi as ti
import torch
from scipy.spatial import ConvexHull
from taichi_twins import weighted_sum

from tem_taichi.device import as_tensor
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.multislice import multislice
from tem_taichi.instrument.tem import TEM
from tem_taichi.physics import SCATTERING_TO_POTENTIAL
from tem_taichi.rotations import (
    euler_to_matrix,
    random_rotations,
    rotation_from_vector,
    tilt_rotation,
)
from tem_taichi.specimen import choice, volumes
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.choice import (
    PER_SCATTERER,
    cost_of_copies,
    drawn_as_volume,
    memory_of,
    seconds_of,
)
from tem_taichi.specimen.copies import n_planes, project, share_series
from tem_taichi.specimen.depth import depth_weights
from tem_taichi.specimen.fiducials import gold_kind
from tem_taichi.specimen.globules import globule_kind
from tem_taichi.specimen.gridding import _add, _sample, add, sample
from tem_taichi.specimen.kinds import Kind, Solvent, kind_of
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.potential import render
from tem_taichi.specimen.slicing import depths
from tem_taichi.specimen.splatting import narrow
from tem_taichi.specimen.view import View
from tem_taichi.specimen.volumes import box_for, padded_spectrum, volume_for, volume_of


def blob(n=300, size=(30.0, 18.0, 10.0), b_factors=(5.0, 120.0), seed=0, **how) -> Kind:
    """Atoms of a chiral ellipsoid, off its origin."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, 3)) * np.array(size) / 2
    points[:, 2] += points[:, 0] * points[:, 1] / 40
    points += (4.0, -3.0, 2.0)
    atoms = Atoms(rng.choice([1, 6, 7, 8, 16], n), points, rng.uniform(*b_factors, n),
                  rng.uniform(0.5, 1, n), np.zeros(n, bool))
    return replace(kind_of(atoms), **how)


def difference(found, expected):
    return float((found - expected).norm() / expected.norm())


def by_atoms(kind, rotations, shifts, shape, pixel):
    """Images (n, ny, nx) as `project` makes them, atom by atom."""
    out = torch.zeros((len(rotations), *shape), dtype=as_tensor(0.0).dtype)
    for n, (rotation, shift) in enumerate(zip(rotations, shifts, strict=True)):
        placed = (kind.positions @ rotation.T)[:, :2] + shift
        pixels = placed / pixel + as_tensor([shape[1] // 2, shape[0] // 2])
        out = render(out, [kind.group],
                     torch.cat([pixels, torch.full((len(pixels), 1), n + 0.5)], 1), pixel)
    return narrow(out, SCATTERING_TO_POTENTIAL / pixel**2)


KINDS = {
    "mixed": blob,
    "sharp": lambda: blob(b_factors=(0.0, 0.0)),
    "soft": lambda: blob(b_factors=(200.0, 400.0)),
    "rod": lambda: blob(size=(90.0, 8.0, 8.0)),
    "gold": lambda: gold_kind("gold", 30.0),
    "globule": lambda: globule_kind("globule", 60.0),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("pixel", [1.0, 3.3, 10.0])
def test_projections_are_those_of_the_atoms(name, pixel):
    kind = KINDS[name]()
    rotations = as_tensor(random_rotations(3, np.random.default_rng(3)))
    shifts = as_tensor([[0.0, 0.0], [2.3, -1.7], [-0.4, 5.1]])
    volume = volume_of(kind, pixel)
    shape = (volume.patch + 10, volume.patch + 16)
    found = project(volume, rotations, shifts, shape)
    expected = by_atoms(kind, rotations, shifts, shape, pixel)
    for one, other in zip(found, expected, strict=True):
        # The tolerance that is stated for volumes; half of it are aliases of the atoms' own.
        assert difference(one, other) < 2e-3


def test_spectrum_is_the_sum_over_atoms(double):
    """Also where slices cut: off the central plane."""
    kind, pixel = blob(), 1.5
    volume = volume_of(kind, pixel)
    rng = np.random.default_rng(0)
    k = rng.uniform(-1, 1, (200, 3))
    k = as_tensor(k[np.linalg.norm(k, axis=1) < 1] / 3)  # [cycles/pixel], the band
    frames = as_tensor(volume.samples) * torch.eye(3)  # one step of a patch is a cycle/pixel
    found = []
    for one in k:  # the coefficient of frequency 1 along the patch's x
        turned = torch.stack([one * frames.diagonal(), torch.zeros(3), torch.zeros(3)])
        found.append(sample(volume.spectra, turned[None], torch.zeros(1, 2), as_tensor([0.0]),
                            4, 0.5)[0, 0, 0, 0, 1])
    group, squared = kind.group, (k**2).sum(1)
    amplitude, b = group.table[group.kind].unbind(1)  # (n, 5)
    factors = (amplitude[:, None] * torch.exp(
        -(b + group.broadening[:, None])[:, None] * squared[:, None] / pixel**2)).sum(2)
    phases = (kind.positions - volume.centre) @ k.T * (2 * np.pi / pixel)
    exact = (group.weight[:, None] * factors * torch.exp(-17 * squared)
             * torch.exp(-1j * phases)).sum(0)
    # 4e-4 of the interpolation, 1e-4 of the scattering factors
    assert difference(torch.stack(found), exact) < 1e-3
    assert float((exact.abs() > 1e-3 * exact.abs().max()).double().mean()) > 0.5


def scene(kinds, poses, **ice):
    return ParticlesInIce(tuple(kinds), tuple(poses), Ice(**{"potential": 0.0, **ice}))


def looked_at(thickness=40.0, n_slices=6, shape=(96, 110), pixel=2.0, tilt=20.0, **how):
    return View(tilt_rotation(tilt, 30.0), as_tensor([1.3, -0.6]), shape, pixel, thickness,
                entrance=-thickness * n_slices / 2, n_slices=n_slices, **{"depth": "smooth", **how})


def crowd(n=12, reach=60.0, depth=60.0, seed=1):
    rng = np.random.default_rng(seed)
    return Poses(rng.uniform(-1, 1, (n, 3)) * (reach, reach, depth), random_rotations(n, rng))


def drawn(kinds, poses, render, view, **ice):
    kinds = [replace(kind, render=how) for kind, how in zip(kinds, render, strict=True)]
    return scene(kinds, poses, **ice).slices(view, 0, view.n_slices)


def test_one_slice_of_atoms_volumes_and_both():
    kinds, poses = [blob(), globule_kind("ball", 40.0)], [crowd(), crowd(5, seed=2)]
    view = looked_at(600.0, 1)
    expected = drawn(kinds, poses, ["atoms", "atoms"], view, potential=4.5)
    for render_as in (["volume", "volume"], ["volume", "atoms"]):
        found = drawn(kinds, poses, render_as, view, potential=4.5)
        assert 0 < difference(found, expected) < 2e-3


def test_absorbing_volumes():
    view = looked_at(600.0, 1, amplitude_contrast=None, exposure=20.0)
    ice = {"potential": 4.5, "mean_free_path": 3000.0}
    expected, found = (drawn([blob()], [crowd()], [how], view, **ice)
                       for how in ("atoms", "volume"))
    assert expected.is_complex()
    assert difference(found.real, expected.real) < 2e-3
    assert difference(found.imag, expected.imag) < 2e-3


@pytest.mark.parametrize("stronger", [0.0, 1.3])
def test_absorbing_volumes_beside_atoms(stronger):
    """What is displaced goes with both of a volume's channels, and is a layer of its own beside."""
    kinds, poses = [blob(), globule_kind("ball", 40.0)], [crowd(), crowd(5, seed=2)]
    view = looked_at(600.0, 1, amplitude_contrast=None)
    ice = {"potential": 4.5, "mean_free_path": 3000.0, "particle_absorption": stronger}
    expected = drawn(kinds, poses, ["atoms", "atoms"], view, **ice)
    for render_as in (["volume", "volume"], ["volume", "atoms"]):
        found = drawn(kinds, poses, render_as, view, **ice)
        assert difference(found.real, expected.real) < 2e-3
        assert difference(found.imag, expected.imag) < 2e-3


@pytest.mark.parametrize(("thickness", "n_slices"), [(15.0, 16), (200.0, 5)])
@pytest.mark.parametrize("depth", ["smooth", "nearest"])
def test_groups_of_slices_miss_no_copy(thickness, n_slices, depth):
    view = looked_at(thickness, n_slices, pixel=6.0, depth=depth, shape=(48, 54))
    specimen = scene([blob(300, render="volume")], [crowd(30, depth=0.5 * thickness * n_slices)],
                     potential=4.5)
    whole = specimen.slices(view, 0, n_slices)
    for size in (1, 2):
        parts = torch.cat([specimen.slices(view, first, min(size, n_slices - first))
                           for first in range(0, n_slices, size)])
        # Two slices are narrowed by one complex transform, and copies are added in another order.
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


def test_the_field_cuts_volumes_as_it_cuts_atoms():
    """Whatever is cut off rings in the band; a wider field says what should be there."""
    rng = np.random.default_rng(4)
    at = rng.uniform(-1, 1, (60, 3)) * (390, 340, 120)  # many across the edges, some beyond
    pose = Poses(at, random_rotations(len(at), rng))
    kind = blob(4000, (90.0, 54.0, 30.0))
    view = looked_at(600.0, 1, tilt=0.0, pixel=6.0)
    wide = replace(view, shape=(view.shape[0] + 40, view.shape[1] + 40))
    expected = drawn([kind], [pose], ["atoms"], wide)[..., 20:-20, 20:-20]
    by_atom, by_volume = (drawn([kind], [pose], [how], view) for how in ("atoms", "volume"))
    inside = (..., slice(4, -4), slice(4, -4))
    assert difference(by_volume[inside], expected[inside]) < 1.5 * difference(
        by_atom[inside], expected[inside])
    assert difference(by_volume, by_atom) < 0.05


def test_gradients_in_a_kinds_own_tensors_mean_atoms():
    kind = blob(render="volume")
    moving = replace(kind, positions=kind.positions.clone().requires_grad_())
    view = looked_at(600.0, 1)
    by_volume, by_atom, as_asked = (scene([k], [crowd()]).slices(view, 0, 1) for k in (
        kind, replace(kind, render="atoms"), moving))
    assert not torch.equal(by_volume, by_atom)
    assert torch.equal(as_asked, by_atom)
    as_asked.square().sum().backward()
    assert float(moving.positions.grad.abs().max()) > 0


@pytest.mark.parametrize("n_slices", [1, 4, 12])
def test_gradients_of_poses(double, n_slices):
    """Of rotations, positions, tilt, shift and the ice, through flat copies and slabs."""
    from tem_taichi.rotations import tilt_rotation as tilted

    kind, pose = blob(80, render="volume"), crowd(3, 20.0, 20.0)
    base = looked_at(240.0 / n_slices, n_slices, (48, 48), 3.0)
    weights = torch.rand(n_slices, 48, 48, generator=torch.Generator().manual_seed(0)).double()
    turn = as_tensor(np.random.default_rng(0).standard_normal((3, 3)))

    def loss(vectors, positions, tilt, shift, potential):
        turned = rotation_from_vector(vectors) @ as_tensor(pose.rotations)
        view = replace(base, rotation=tilted(tilt, 30.0), shift=shift)
        specimen = scene([kind], [Poses(positions, turned)], potential=potential)
        return (specimen.slices(view, 0, n_slices) * weights).sum()

    values = [0.01 * turn, as_tensor(pose.positions), as_tensor(20.0), as_tensor([1.3, -0.6]),
              as_tensor(4.5)]
    leaves = [value.clone().requires_grad_() for value in values]
    loss(*leaves).backward()
    rng = np.random.default_rng(1)
    for n, leaf in enumerate(leaves):
        way = as_tensor(rng.standard_normal(leaf.shape))
        step = 1e-7
        ends = [loss(*(v + sign * step * way if i == n else v for i, v in enumerate(values)))
                for sign in (1, -1)]
        expected = float(ends[0] - ends[1]) / (2 * step)
        # The interpolation has kinks where a frequency passes a sample.
        assert float((leaf.grad * way).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_handedness_and_shift_of_projections():
    """A chiral particle at RELION's angles: not its mirror image, nor turned the other way."""
    kind = blob()
    rotations = as_tensor(euler_to_matrix([30.0], [50.0], [-70.0]))
    shifts = as_tensor([[3.0, -2.0]])
    volume = volume_of(kind, 2.0)
    found = project(volume, rotations, shifts, (80, 84))
    assert difference(found, by_atoms(kind, rotations, shifts, (80, 84), 2.0)) < 2e-3
    for wrong in (rotations.mT, rotations * as_tensor([1.0, 1.0, -1.0])):
        assert difference(by_atoms(kind, wrong, shifts, (80, 84), 2.0), found) > 0.05


@pytest.mark.parametrize("thickness", [10.0, 110.0])
def test_slabs_sum_to_the_projection_and_carry_the_same_wave(thickness):
    """Slices differ in what no wave along the beam can tell; the exit wave is that of the atoms."""
    kinds, poses = [blob(2000, (50.0, 40.0, 30.0))], [crowd(4, 20.0, 20.0)]
    n = 2 * int(np.ceil(130 / thickness))
    view = looked_at(thickness, n, pixel=2.0)
    by_atom, by_volume = (drawn(kinds, poses, [how], view) for how in ("atoms", "volume"))
    assert difference(by_volume.sum(0), by_atom.sum(0)) < 2e-3
    waves = [multislice(slices, 2.0, thickness, 300.0) - 1 for slices in (by_atom, by_volume)]
    assert difference(waves[1], waves[0]) < 2e-3
    # What the sum alone gives, so that the depth is known to matter.
    flat = torch.zeros_like(by_atom)
    flat[n // 2] = by_atom.sum(0)
    assert difference(multislice(flat, 2.0, thickness, 300.0) - 1, waves[0]) > 4e-3


@pytest.mark.parametrize("depth", ["nearest", "smooth"])
def test_series_of_the_weights_of_slices(double, depth):
    z = as_tensor([7.0, 7.3, 7.5, 7.93])
    j = as_tensor(torch.arange(-3000, 3001))
    index, series = share_series(z, 5, j, depth)
    for at in (-1.2, -0.4, 0.13, 0.8, 1.4):  # all that has a part in five slices
        waves = torch.exp(-2j * np.pi * j * at / 5)
        layers, weights = depth_weights(z + at, 30, depth)
        expected = sum((index == layer[:, None]) * weight[:, None]
                       for layer, weight in zip(layers, weights, strict=True))
        # 1 / j^2, but 1 / j where a box jumps
        assert torch.allclose((series @ waves).real, expected.double(),
                              atol=2e-4 if depth == "smooth" else 2e-2)


def test_flat_copies_only_where_waves_cannot_tell():
    view = looked_at(600.0, 3, pixel=6.0)
    # pi wavelength k^2 L is 0.077 for k = 1 / 18 A at 405 A
    assert n_planes(400.0, view) == 0
    assert n_planes(410.0, view) == 2
    assert n_planes(410.0, replace(view, voltage=200.0)) == n_planes(410.0, view)
    assert n_planes(350.0, replace(view, voltage=200.0)) == 2
    assert n_planes(100.0, replace(view, slice_thickness=90.0)) == 3
    assert n_planes(9999.0, replace(view, n_slices=1)) == 0


def test_groups_of_slices_add_up():
    kinds, poses = [blob(render="volume")], [crowd()]
    view = looked_at(12.0, 16)
    specimen = scene(kinds, poses)
    whole = specimen.slices(view, 0, 16)
    parts = torch.cat([specimen.slices(view, first, 4) for first in range(0, 16, 4)])
    # Patches of several groups are summed in another order.
    assert difference(parts, whole) < 1e-6
    assert torch.equal(specimen.slices(view, 0, 16), whole)


@pytest.mark.parametrize("thickness", [12.0, 200.0])  # slabs, and flat
def test_the_slices_it_fills_are_those_it_is_drawn_in(thickness):
    for z in (-3.4, 0.1, 2.5):
        pose = Poses(as_tensor([[0.0, 0.0, z * thickness]]), torch.eye(3)[None])
        specimen = scene([blob(render="volume")], [pose])
        view = looked_at(thickness, 16, tilt=0.0)
        drawn = specimen.slices(view, 0, 16).abs().amax((1, 2)) > 0
        filled = specimen.filled(view)
        assert bool(drawn.any()) and not bool((drawn & ~filled).any())
        # One that rounding may reach, and of two that share a flat one the lesser part.
        assert int(filled.sum()) <= int(drawn.sum()) + 1


def test_the_rule():
    small, large = blob(40, b_factors=(20.0, 20.0)), blob(200_000, (150.0, 150.0, 150.0))
    far = looked_at(600.0, 1, pixel=6.0)
    assert drawn_as_volume(large, 20, far)
    assert not drawn_as_volume(large, 4, far)  # too little to be worth it
    assert not drawn_as_volume(small, 100_000, far)  # a plane is no cheaper than forty atoms
    assert not drawn_as_volume(large, 20, looked_at(10.0, 80, pixel=0.8))
    assert not drawn_as_volume(replace(large, render="atoms"), 20, far)
    assert drawn_as_volume(replace(small, render="volume"), 1, far)
    moving = replace(large, render="volume", positions=large.positions.clone().requires_grad_())
    assert not drawn_as_volume(moving, 20, far)
    assert not drawn_as_volume(replace(small, render="volume"), 0, far)  # none is made


def test_the_system_is_asked_once_for_its_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(choice, "memory_limit", lambda: asked.append(1) or 64e9)
    choice._room.cache_clear()
    large, far = blob(200_000, (150.0, 150.0, 150.0)), looked_at(600.0, 1, pixel=6.0)
    assert all(drawn_as_volume(large, 20, far) for _ in range(3)) and len(asked) == 1
    choice._room.cache_clear()


def test_bad_render():
    with pytest.raises(ValueError, match="must be one of atoms, volume"):
        blob(render="voxels")


def test_what_is_made_of_a_kind_follows_its_tensors():
    kind = blob()
    first = volume_for(kind, 2.0, ("group",))
    assert volume_for(kind, 2.0, ("group",)) is first
    assert volume_for(replace(kind, name="same"), 2.0, ("group",)) is first
    assert volume_for(kind, 3.0, ("group",)) is not first
    before = kind.radius
    kind.positions.mul_(2.0)
    assert kind.radius == pytest.approx(2 * before)
    assert volume_for(kind, 2.0, ("group",)).radius == pytest.approx(2 * first.radius)
    for n in range(20):
        kind.once(("thing", n), lambda: 0)
    assert len(kind.made) < 8
    other = replace(kind, positions=kind.positions / 4)
    assert other.radius == pytest.approx(before / 2)


def test_of_volumes_the_last_two_are_kept():
    kind = blob(30)
    made = [volume_for(kind, 3.0, ("group",), Solvent(v)) for v in (4.0, 4.5, 5.0)]
    assert [key[3].potential for key in kind.made if key[0] == "volume"] == [4.5, 5.0]
    assert volume_for(kind, 3.0, ("group",), Solvent(4.5)) is made[1]


def test_volumes_are_refused_that_kernels_cannot_count(monkeypatch):
    kind = blob(30)
    largest = volume_of(kind, 3.0, ("group", "displaced")).spectra.numel()
    monkeypatch.setattr(volumes, "_NUMBERS", largest)
    volume_of(kind, 3.0)
    with pytest.raises(ValueError, match="pixel_size=3"):
        volume_of(kind, 3.0, ("group", "displaced"))


def test_depths_from_the_outermost_atoms():
    kind = blob(5000)
    assert len(kind.outermost) < 500
    pose, rotation = crowd(9), tilt_rotation(33.0, 10.0)
    low, high = depths(kind, pose, rotation)
    placed = torch.einsum("nij,aj->nai", as_tensor(pose.rotations), kind.positions)
    z = ((placed + as_tensor(pose.positions)[:, None]) @ rotation.T)[..., 2]
    assert torch.allclose(low, z.amin(1), atol=1e-4)
    assert torch.allclose(high, z.amax(1), atol=1e-4)
    many = blob(50_000, seed=2)  # whose inner ones are left out before
    corners = np.sort(ConvexHull(many.positions.double().numpy()).vertices)
    assert torch.equal(many.outermost, many.positions[corners])
    flat = replace(kind, positions=kind.positions * as_tensor([1.0, 1.0, 0.0]))
    assert len(flat.outermost) == 5000  # no hull: all of them


@pytest.mark.parametrize("stage", ["sample", "add"])
def test_stages_under_a_taichi_tape(double, stage):
    """A tape, with a kernel for a loss, gives the gradients that torch gets."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape):
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    if stage == "sample":
        spectra = padded_spectrum(values(8, 8, 8))[None]
        inputs = [values(2, 3, 3), values(2, 2)]
        others = (spectra, as_tensor([-1.0, 1.0]), 16.0)
        out = torch.zeros(2, 1, 2, 8, 5, 2, dtype=torch.float64)
        run = _sample
        by_torch = [t.clone().requires_grad_() for t in inputs]
        found = torch.view_as_real(sample(spectra, *by_torch, others[1], 8))
    else:
        corner = torch.tensor([[-3, 5], [9, 2], [1, -2]]).int()
        others = (torch.tensor([1, 0, 1]).int(), torch.tensor([0, 1, 1]).int(), corner,
                  values(12 + 8), values(10 + 8))
        inputs, run = [values(2, 6, 6), values(3)], _add
        out = torch.zeros(2, 10, 12, dtype=torch.float64)
        by_torch = [t.clone().requires_grad_() for t in inputs]
        found = add(torch.zeros_like(out), *by_torch, *others[:3], others[3:])
    weights = values(*out.shape)
    (found * weights).sum().backward()
    for t in (*inputs, out):
        t.grad = torch.zeros_like(t)
    seen = out.reshape(2, -1, out.shape[-1])
    seen.grad = out.grad.reshape(seen.shape)
    loss = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss.grad = torch.zeros_like(loss)
    with ti.ad.Tape(loss):
        run(*inputs, *others, out)
        weighted_sum(seen, weights.reshape(seen.shape), loss)
    for found_by_tape, leaf in zip(inputs, by_torch, strict=True):
        assert float(leaf.grad.abs().max()) > 0
        assert torch.allclose(found_by_tape.grad, leaf.grad, rtol=1e-12)


def test_cost_counts_what_is_drawn():
    kinds = [replace(blob(5000), render="volume"), replace(blob(300), render="atoms")]
    poses, view = [crowd(7), crowd(9)], looked_at(600.0, 1, pixel=5.0)
    box = box_for(kinds[0], 5.0)
    seconds, memory = cost_of_copies(kinds, poses, view)
    assert seconds == pytest.approx(7 * seconds_of(box, view) + 9 * 300 * PER_SCATTERER)
    assert memory == memory_of(box, kinds[0])
    slabs = looked_at(600.0, 2, pixel=1.0)
    assert seconds_of(box, slabs) == pytest.approx(5 * seconds_of(box, replace(slabs, n_slices=1)))


def test_a_volume_is_made_once_also_where_slices_are_computed_again(double, monkeypatch):
    made = []
    monkeypatch.setattr(volumes, "volume_of", lambda *how: made.append(how) or volume_of(*how))
    instrument = TEM((32, 32), (48, 48), 3.0, slice_thickness=8.0, depth="smooth")
    kind = blob(60, render="volume")
    pose = Poses(as_tensor([[5.0, 3.0, -90.0], [-7.0, 2.0, 60.0]]), crowd(2).rotations)

    def total(positions):
        specimen = scene([kind], [replace(pose, positions=positions)], potential=4.5)
        wave, _ = instrument.exit_wave(specimen, Exposure(tilt_angle=20.0))
        return (wave.abs() ** 4).sum()

    positions = pose.positions.clone().requires_grad_()
    assert instrument.view(scene([kind], [pose]), Exposure(tilt_angle=20.0)).n_slices > 16
    total(positions).backward()
    assert len(made) == 1
    way = torch.ones_like(positions)
    expected = (total(pose.positions + 1e-4 * way) - total(pose.positions - 1e-4 * way)) / 2e-4
    assert float(positions.grad.sum()) == pytest.approx(float(expected), rel=1e-3)


def test_bad_arguments_of_volumes():
    kind = blob(20)
    volume = volume_of(kind, 3.0)
    for rotations, shifts, shape, said in (
            (np.eye(3), np.zeros((1, 2)), (8, 8), "rotations"),
            (np.eye(3)[None], np.zeros((2, 2)), (8, 8), "shifts"),
            (np.eye(3)[None], np.zeros((1, 2)), (8, 0), "shape")):
        with pytest.raises(ValueError, match=said):
            project(volume, rotations, shifts, shape)
    with pytest.raises(ValueError, match="pixel_size"):
        volume_of(kind, 0.0)
    with pytest.raises(ValueError, match="kind"):
        volume_of(replace(kind, positions=kind.positions.clone().requires_grad_()), 3.0)
    with pytest.raises(ValueError, match="spectra"):
        replace(volume, spectra=volume.spectra.clone().requires_grad_())
