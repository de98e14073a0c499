"""Priors of fields on many small grids."""

import numpy as np
import pytest
import torch

from tem_taichi.device import as_tensor
from tem_taichi.inverse.priors import cells_variation, consistent, non_local, total_variation
from tem_taichi.specimen.faces import Faces, jump
from tem_taichi.specimen.octree import Octree, uniform
from tem_taichi.specimen.refinement import Change, changed


def cut(grid, tree):
    g = tree.samples
    return torch.stack([grid[z:z + g, y:y + g, x:x + g] for z, y, x in tree.begins])


def test_variation_of_leaves_is_that_of_the_grid(double):
    grid = as_tensor(np.random.default_rng(0).standard_normal((9, 9, 9)))
    tree = uniform((1, 1, 1), 1, 1, 5, 2.0)
    # The last layers have no next one; as the next voxel is equal, the grid's own is taken less.
    whole = total_variation(grid, 0.5, 0.1)
    squares = [grid.diff(dim=axis, append=grid.narrow(axis, 8, 1)).square() for axis in range(3)]
    border = (sum(squares) + 0.01).sqrt() - 0.1
    border[:-1, :-1, :-1] = 0
    found = cells_variation(cut(grid, tree), 1.0, 0.5, 0.1)
    assert float(found) == pytest.approx(float(whole - border.sum() / 0.5), rel=1e-12)


def test_variation_does_not_know_how_the_tree_is_cut(double):
    """Of what is linear on a leaf."""
    tree = uniform((1, 1, 1), 0, 2, 4, 2.0)
    line = torch.arange(4.0).double()
    field = Octree(tree, (2 * line + 3 * line[:, None] - line[:, None, None])[None])
    before = cells_variation(field.values, field.tree.steps, 1.0, 0.1)
    for _ in range(2):
        field = changed(field, Change((0,), ()))
        after = cells_variation(field.values, field.tree.steps, 1.0, 0.1)
        assert float(after) == pytest.approx(float(before), rel=1e-12)


def test_faces_know_who_is_beside_whom(double):
    """Leaves with a constant each: the difference is that of the two; and the area of all faces."""
    whole = Octree(uniform((1, 1, 2), 0, 2, 4, 2.0), torch.zeros(2, 4, 4, 4).double())
    tree = changed(changed(whole, Change((0,), ())), Change((3, 7), ())).tree
    centre = (tree.begins + tree.steps[:, None] * (tree.samples - 1) / 2)
    side = tree.steps * (tree.samples - 1)
    levels = as_tensor(np.random.default_rng(1).standard_normal(len(tree.leaves)))
    values = levels[:, None, None, None].expand(-1, 4, 4, 4)
    one, other, areas = Faces(tree).sides(values)
    expected, total = [], 0.0
    for a in range(len(side)):
        for b in range(a):
            apart, reach = np.abs(centre[a] - centre[b]), (side[a] + side[b]) / 2
            if (apart == reach).sum() == 1 and (apart <= reach).all():
                expected.append(abs(float(levels[a] - levels[b])))
                total += min(side[a], side[b])**2
    found = (one - other).abs()[:, 0, 0].numpy()
    np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=1e-12)
    # A sample on a face's rim stands for as much as one within it.
    assert float(areas.sum()) * 3**2 == pytest.approx(total)


def test_leaves_of_one_field_agree_on_their_faces(double):
    """Whatever their sizes; and where one is lifted it is seen, with a gradient in both."""
    grid = as_tensor(np.random.default_rng(2).standard_normal((7, 7, 7)))
    coarse = Octree(uniform((1, 1, 1), 1, 3, 4, 2.0), cut(grid, uniform((1, 1, 1), 1, 1, 4, 2.0)))
    field = changed(changed(coarse, Change((0, 5), ())), Change((8, 15), ()))
    faces = Faces(field.tree)
    one, other, _ = faces.sides(field.values)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    assert jump(faces, field.values) < 1e-13
    values = field.values.clone().requires_grad_()
    lifted = values + torch.linspace(0, 1, len(values))[:, None, None, None]
    assert jump(faces, lifted.detach()) > 0.1

    def cost(values):
        one, other, areas = faces.sides(values)
        return consistent(one, other, areas, 0.3)

    assert float(cost(lifted.detach())) > 1
    assert torch.autograd.gradcheck(cost, (lifted.detach().requires_grad_(),), fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda v: cells_variation(v, field.tree.steps, 1.0, 0.1), (values,), fast_mode=True)


def test_non_local_lines_are_means_of_the_others_lines(double):
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((2, 3, 3, 3)) for _ in range(2))
    total = 0.0
    for one, other in zip(a.reshape(2, 9, 3), b.reshape(2, 9, 3), strict=True):
        for line in one:
            weights = np.exp(other @ line)
            total += ((line - weights @ other / weights.sum())**2).sum() / (2 * 0.7**2)
    assert float(non_local(as_tensor(a), as_tensor(b), 0.7)) == pytest.approx(total, rel=1e-12)
    one, other = (as_tensor(x).requires_grad_() for x in (a, b))
    assert torch.autograd.gradcheck(lambda x, y: non_local(x, y, 0.7), (one, other),
                                    fast_mode=True)
    # Lines far from each other find themselves.
    alike = 100 * torch.eye(3).double()[None, :, :, None].expand(1, 3, 3, 3).transpose(2, 3)
    assert float(non_local(alike, alike, 1.0)) < 1e-6
