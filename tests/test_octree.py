"""Octrees of grids: what they are between samples, their projections, and how they are cut."""

import itertools

import numpy as np
import pytest
import torch
from twins import octree_nodes

from tem_taichi.device import as_tensor, kernels_for_a_gpu
from tem_taichi.rotations import rotation_from_vector, tilt_rotation
from tem_taichi.specimen import octree as module
from tem_taichi.specimen.field import Sampled, Voxels, slices_of, voxels
from tem_taichi.specimen.octree import Octree, Tree, load, project_octree, save, uniform
from tem_taichi.specimen.rays import Rays, project
from tem_taichi.specimen.refinement import (
    Change,
    changed,
    chosen,
    detail,
    deviation,
    loss_of_merging,
    parents,
    siblings,
)
from tem_taichi.specimen.view import View


@pytest.fixture(autouse=True)
def thin_layers(monkeypatch):
    """Several blocks of planes in a small tree."""
    monkeypatch.setattr(module, "PLANES", 5)


def mixed(samples=4, roots=(1, 1, 2), spacing=2.0, seed=0):
    """Leaves of three levels, random values."""
    rng = np.random.default_rng(seed)
    field = Octree(uniform(roots, 0, 2, samples, spacing), as_tensor(np.zeros(
        (np.prod(roots), samples, samples, samples))))
    field = changed(changed(field, Change((0,), ())), Change((3, 7), ()))
    return Octree(field.tree, as_tensor(rng.standard_normal(field.values.shape)))


def rays_of(tree, kind, angles=(-62.0, 0.0, 13.0, 71.0), pixel=None, shape=(11, 15)):
    axis = {"upright": 0.0, "shifted": 0.0, "lying": 90.0, "oblique": -37.0, "x-tilt": 4.0}[kind]
    rotations = torch.stack([tilt_rotation(angle, axis) for angle in angles])
    if kind == "x-tilt":
        rotations = rotations @ rotation_from_vector(as_tensor([0.1, 0.02, -0.05]))
    shifts = torch.zeros(len(angles), 2).to(rotations)
    if kind != "upright":
        shifts = as_tensor(np.random.default_rng(1).standard_normal((len(angles), 2)))
    return Rays(rotations, shifts, tree.shape, tree.spacing, shape, pixel or tree.spacing)


KINDS = ("upright", "shifted", "lying", "oblique", "x-tilt")


def test_nodes_are_those_of_the_plain_twin(double):
    field = mixed()
    next(field.export())
    assert torch.is_grad_enabled()
    twin = octree_nodes(field.tree.leaves, field.values.numpy(), field.tree.roots, 2)
    assert field.tree.shape == twin.shape == (13, 13, 25)
    # Sums of at most 64 products of numbers about 1
    np.testing.assert_allclose(torch.cat(list(field.export())).numpy(), twin, atol=1e-14)


def test_projections_are_those_of_the_voxels(double):
    """Of a uniform tree and of one of three levels, to rounding, though no volume is made."""
    even = uniform((1, 1, 2), 1, 1, 4, 2.0)
    rng = np.random.default_rng(2)
    fields = mixed(), Octree(even, as_tensor(rng.standard_normal((16, 4, 4, 4))))
    for field, kind in itertools.product(fields, KINDS):
        rays = rays_of(field.tree, kind, pixel=1.5)
        expected = project(torch.cat(list(field.export())), rays)
        torch.testing.assert_close(project_octree(field, rays), expected, rtol=0, atol=1e-12)


def test_a_uniform_tree_whose_leaves_agree_is_a_grid_of_voxels(double):
    """A grid cut into leaves, not by our own export."""
    grid = np.random.default_rng(3).standard_normal((7, 7, 13))
    tree = uniform((1, 1, 2), 1, 1, 4, 2.0)
    cut = np.stack([grid[z:z + 4, y:y + 4, x:x + 4] for z, y, x in tree.begins])
    field, plain = Octree(tree, as_tensor(cut)), Voxels(as_tensor(grid), 2.0)
    rays = rays_of(tree, "upright")
    torch.testing.assert_close(project_octree(field, rays), project(plain.values, rays), rtol=0,
                               atol=1e-12)
    points = as_tensor(np.random.default_rng(4).uniform(-16, 16, (50, 3)))
    torch.testing.assert_close(field.at(points), plain.at(points), rtol=0, atol=1e-13)


def test_the_gradient_is_the_adjoint(double):
    field = mixed()
    rng = np.random.default_rng(5)
    images = as_tensor(rng.standard_normal((4, 11, 15)))
    other = as_tensor(rng.standard_normal(field.values.shape))
    for kind, gpu in itertools.product(KINDS, (False, True)):
        rays = rays_of(field.tree, kind)
        values = field.values.clone().requires_grad_()
        with kernels_for_a_gpu(gpu):
            one = (project_octree(Octree(field.tree, values), rays) * images).sum()
            grad, = torch.autograd.grad(one, values)
        there = (project_octree(Octree(field.tree, other), rays) * images).sum()
        assert float((grad * other).sum()) == pytest.approx(float(there), rel=1e-11)


def test_gradients(double):
    """In values, poses, shifts and points; steps are far shorter than the way to a kink."""
    field = mixed(samples=2, roots=(1, 1, 1))
    rays = rays_of(field.tree, "x-tilt", (-62.0, 13.0), shape=(4, 5))
    values = field.values.clone().requires_grad_()
    turn = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    shifts = rays.shifts.clone().requires_grad_()

    def images(values, turn, shifts):
        turned = Rays(rotation_from_vector(turn) @ rays.rotations, shifts, rays.grid, rays.voxel,
                      rays.shape, rays.pixel)
        return project_octree(Octree(field.tree, values), turned)

    assert torch.autograd.gradcheck(lambda turn, shifts: images(values.detach(), turn, shifts),
                                    (turn, shifts), eps=1e-7, atol=1e-5)
    # Of the many values, which the images are linear in, along random directions.
    assert torch.autograd.gradcheck(lambda values: images(values, turn.detach(), rays.shifts),
                                    (values,), fast_mode=True)
    points = as_tensor(np.random.default_rng(6).uniform(-5, 5, (7, 3))).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda values, points: Octree(field.tree, values).at(points), (values, points), eps=1e-7,
        fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda values: Octree(field.tree, values).planes(1, 3), (values,), fast_mode=True)


def test_poses_have_the_gradient_of_the_voxels_on_kinks_too(double):
    """Layer by layer, where lines of voxels at a block's edge are hit exactly."""
    field = mixed()
    rays = rays_of(field.tree, "upright", (0.0, 90.0, 45.0))
    found = []
    for what in (lambda rays: project_octree(field, rays),
                 lambda rays: project(torch.cat(list(field.export())), rays)):
        turn = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
        turned = Rays(rotation_from_vector(turn) @ rays.rotations, rays.shifts, rays.grid,
                      rays.voxel, rays.shape, rays.pixel)
        weights = as_tensor(np.random.default_rng(7).standard_normal((3, 11, 15)))
        found.append(torch.autograd.grad((what(turned) * weights).sum(), turn)[0])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_it_is_seen_as_voxels_are(double):
    """As a specimen in one slice and in many."""
    field = mixed()
    whole = torch.cat(list(field.export()))
    one, other = Sampled(field, field.size, 2.0), voxels(whole, 2.0)
    for thickness, count in ((80.0, 1), (8.0, 10)):
        view = View(tilt_rotation(33.0, 0.0), as_tensor([1.0, 2.0]), (20, 24), 2.0, thickness,
                    -40.0, count)
        expected = (other.slices(view, 0, 1) if count == 1
                    else slices_of(other.field, view, 0, count, 2.0))
        torch.testing.assert_close(one.slices(view, 0, count), expected, rtol=0, atol=1e-12)


def test_splitting_keeps_the_field(double):
    field = mixed()
    coarse = np.flatnonzero(field.tree.leaves[:, 0] < 2)
    finer = changed(field, Change(tuple(coarse.tolist()), ()))
    assert len(finer.tree.leaves) == len(field.tree.leaves) + 7 * len(coarse)
    for one, other in zip(field.export(), finer.export(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    again = changed(finer, Change((), tuple(siblings(finer.tree))))
    before = torch.cat(list(changed(field, Change((), ())).export()))
    # What was merged had been split before, but for the children that were there.
    kept = {tuple(leaf) for leaf in field.tree.leaves.tolist()}
    both = [n for n, leaf in enumerate(again.tree.leaves.tolist()) if tuple(leaf) in kept]
    ours = {tuple(leaf): n for n, leaf in enumerate(field.tree.leaves.tolist())}
    assert before.shape == field.tree.shape and len(both) > 5
    for n in both:
        there = field.values[ours[tuple(again.tree.leaves[n].tolist())]]
        torch.testing.assert_close(again.values[n], there, rtol=0, atol=1e-13)


def test_merging_loses_the_least_and_says_what(double):
    """No other parent is nearer; what it loses is what it says, by the field itself."""
    rng = np.random.default_rng(8)
    tree = uniform((1, 1, 1), 1, 1, 5, 2.0)
    grid = torch.as_tensor(rng.standard_normal((9, 9, 9)))
    values = torch.stack([grid[z:z + 5, y:y + 5, x:x + 5] for z, y, x in tree.begins])
    field = Octree(tree, values)
    group, = siblings(tree)
    merged = changed(field, Change((), (group,)))
    lost = changed(merged, Change((0,), ())).values - values
    said = loss_of_merging(field, [group])[0]
    assert said == pytest.approx(float(lost.square().mean()) * 16**3, rel=1e-9)
    whole = torch.cat(list(merged.export())) - grid
    for _ in range(5):
        other = Octree(merged.tree, merged.values + 0.01 * torch.randn_like(merged.values))
        assert (torch.cat(list(other.export())) - grid).square().sum() > whole.square().sum()
    assert float(parents(values[None].abs()).min()) >= 0


def ball(tree, centre=(5.0, -3.0, 4.0), radius=6.0):
    """A ball with a soft edge on a tree's samples."""
    places = []
    for begin, step in zip(tree.begins, tree.steps, strict=True):
        line = [tree.spacing * (begin[axis] + step * np.arange(tree.samples)
                                - tree.shape[axis] // 2) for axis in range(3)]
        z, y, x = np.meshgrid(*line, indexing="ij")
        places.append(np.sqrt((x - centre[0])**2 + (y - centre[1])**2 + (z - centre[2])**2))
    return as_tensor(1 / (1 + np.exp((np.stack(places) - radius) / 0.7)))


@pytest.mark.parametrize("errors", [None, deviation])
def test_leaves_go_where_the_edges_are(double, errors):
    """Within the budget; away from the ball leaves are large, and its error falls."""
    tree = uniform((1, 1, 1), 1, 3, 5, 1.0)
    field, left = Octree(tree, ball(tree)), []
    finest = uniform((1, 1, 1), 3, 3, 5, 1.0)
    truth = torch.cat(list(Octree(finest, ball(finest)).export()))
    for _ in range(4):
        told = None if errors is None else errors(field)
        field = changed(field, chosen(field, 120, told))
        assert len(field.tree.leaves) <= 120
        field = Octree(field.tree, ball(field.tree))
        whole = torch.cat(list(field.export()))
        left.append(float((whole - truth).square().mean()))
    assert left[-1] < 0.2 * left[0]  # after the first update
    tree = field.tree
    middle = (tree.begins + tree.steps[:, None] * 2 - 16) * tree.spacing
    far = np.linalg.norm(middle - np.array([4.0, -3.0, 5.0]), axis=1) - 6
    assert (tree.leaves[np.abs(far) < 2, 0] == 3).all() and tree.leaves[far > 8, 0].mean() < 2.2


def test_the_programme_finds_the_best_of_all_choices(double):
    """By trying every choice of splits and merges of a small tree."""
    field = mixed(samples=3, roots=(1, 1, 1))
    groups = siblings(field.tree)
    n = len(field.tree.leaves)
    can = [leaf for leaf in range(n) if field.tree.leaves[leaf, 0] < 2]
    gains, losses = detail(field) / 16 * (15 / 16), loss_of_merging(field, groups)
    for most in (n - 7, n, n + 7, n + 21):
        best = np.inf
        for count in range(len(can) + 1):
            for split, merge in itertools.product(itertools.combinations(can, count),
                                                  itertools.product((0, 1), repeat=len(groups))):
                taken = [group for group, yes in zip(groups, merge, strict=True) if yes]
                if n + 7 * count - 7 * len(taken) <= most:
                    best = min(best, sum(losses[i] for i, yes in enumerate(merge) if yes)
                               - gains[list(split)].sum())
        found = chosen(field, most)
        value = (sum(losses[groups.index(group)] for group in found.merge)
                 - gains[list(found.split)].sum())
        assert value == pytest.approx(best, rel=1e-6)


def test_kept_in_a_file(tmp_path):
    field = mixed()
    save(field, str(tmp_path / "tree.npz"))
    again = load(str(tmp_path / "tree.npz"))
    assert (again.tree.leaves == field.tree.leaves).all() and again.tree.spacing == 2.0
    assert torch.equal(again.values, field.values)
    (tmp_path / "other.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="is no octree"):
        load(str(tmp_path / "other.npz"))


def test_impossible_trees_are_refused():
    good = uniform((1, 1, 1), 1, 2, 4, 2.0)
    for leaves, said in ((good.leaves[:-1], "must fill the roots"),
                         (np.concatenate([good.leaves[:-1], good.leaves[:1]]), "must fill"),
                         (good.leaves + np.array([2, 0, 0, 0]), "levels must be"),
                         (good.leaves + np.array([0, 0, 0, 1]), "within the roots")):
        with pytest.raises(ValueError, match=said):
            Tree(leaves, good.roots, 2, 4, 2.0)
    with pytest.raises(ValueError, match="samples=1"):
        uniform((1, 1, 1), 1, 2, 1, 2.0)
    field = Octree(good, torch.zeros(8, 4, 4, 4))
    with pytest.raises(ValueError, match="values of shape"):
        Octree(good, torch.zeros(7, 4, 4, 4))
    with pytest.raises(ValueError, match="rays of a grid"):
        project_octree(field, rays_of(uniform((1, 1, 1), 1, 1, 4, 2.0), "upright"))
    with pytest.raises(ValueError, match="most=0"):
        chosen(field, 0)
    for change, said in ((Change((1, 1), ()), "each leaf once"),
                         (Change((), ((1, 0, 2, 3, 4, 5, 6, 7),)), "eight children")):
        with pytest.raises(ValueError, match=said):
            changed(field, change)
    with pytest.raises(ValueError, match="cannot be split"):
        changed(Octree(uniform((1, 1, 1), 1, 1, 4, 2.0), torch.zeros(8, 4, 4, 4)),
                Change((0,), ()))
