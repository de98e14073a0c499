"""Tomograms as octrees: published and by likelihood, in a tree that grows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tem_taichi.device import as_tensor
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.octree_figure import edges, tree_figure
from tem_taichi.estimate.octree_fit import Settings, fitted
from tem_taichi.estimate.octree_model import Integrals, gradient, metric_of
from tem_taichi.estimate.octree_prior import LeafPrior, Priors, Ratios
from tem_taichi.estimate.octree_published import Schedule, log_normalised, published
from tem_taichi.estimate.octree_tree import (
    Growth,
    coarser,
    halvings,
    most_memory,
    on_tree,
    tree_of,
    volume_of,
)
from tem_taichi.estimate.scans import Absorbed
from tem_taichi.estimate.stem_fit import Images
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram_model import Lens, Model
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.projection import Projection
from tem_taichi.instrument.stem import STEM
from tem_taichi.inverse.measures import correlation
from tem_taichi.inverse.tomography import contrast, weighted_back_projection
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.field import voxels
from tem_taichi.specimen.octree import Octree, uniform
from tem_taichi.specimen.rays import Rays, project
from tem_taichi.specimen.refinement import Change, changed

ANGLES = np.linspace(-64.0, 64, 9)
SIZE = 17
GROWTH = Growth(samples=3, depth=3, leaves=190)


def truth():
    """A shell off the middle, and nothing elsewhere [1]."""
    z, y, x = (torch.arange(SIZE).float() - SIZE // 2 for _ in range(3))
    far = ((x - 2)**2 + (y[:, None] + 2)**2 + (z[:, None, None] - 1)**2).sqrt()
    return (1.6 - (far - 3.5).abs()).clamp(0, 1)


def rays():
    rotations = torch.stack([tilt_rotation(float(angle)) for angle in ANGLES])
    return Rays(rotations, torch.zeros(len(ANGLES), 2), (SIZE,) * 3, 2.0, (SIZE, SIZE), 2.0)


def exposures(dose=1.0, defocus=0.0):
    return [Exposure(Optics(defocus=defocus), float(angle), dose=dose) for angle in ANGLES]


def nothing(done, of):
    """No progress."""


def scanned(counts, seen, convergence=0.0):
    """Of a beam of one count a pixel, bright field."""
    taken = [replace(one, shift_x=x, shift_y=y) for one, (x, y) in zip(
        exposures(1 / seen.pixel**2), seen.shifts.tolist(), strict=True)]
    return Images(counts, seen, taken, STEM(seen.shape, seen.pixel, convergence=convergence))


def noisy(images, sigma):
    drawn = np.random.default_rng(0).standard_normal(images.shape)
    return images + sigma * torch.as_tensor(drawn).float()


def linear(sigma):
    """Line integrals with noise."""
    def imaging(series, which):
        weights = series.weights * (series.rays.pixel / 2)**2 / sigma**2
        return Integrals(series.images[which], weights[which], series.rays.some(list(which)))

    return imaging


def shell_series(sigma=1.0):
    images = noisy(project(truth(), rays()), sigma)
    return Series(images, rays(), torch.ones_like(images))


def test_the_likely_fit_finds_the_shell_and_refines_it(tmp_path):
    """More than back-projection, with fewer numbers; a killed run goes on to the same end."""
    series, seen = shell_series(), []
    settings = Settings(GROWTH, steps=8, rounds=7, every=4)

    def killed(done, of):
        seen.append((done, of))
        if len(seen) == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(series, linear(1.0), settings, killed, Kept(tmp_path, "one"))
    found = fitted(series, linear(1.0), settings, nothing, Kept(tmp_path, "one"))
    volume = volume_of(found.field, (SIZE,) * 3)
    again = fitted(series, linear(1.0), settings, nothing, Kept())
    torch.testing.assert_close(found.field.values, again.field.values, rtol=1e-3, atol=1e-4)
    assert found.steps < again.steps  # of those after it was killed
    back = weighted_back_projection(series.images, rays())
    assert float(correlation(volume, truth())) > 0.05 + float(correlation(back, truth()))
    # In the truth's own scale and unit.
    assert float((volume - truth()).square().mean()) < 0.2 * float(truth().square().mean())
    assert found.leaves[-1] <= 190 and found.field.values.min() >= 0
    assert found.held_out[0] == 1 and min(found.held_out) < 0.5
    tree = found.field.tree
    middle = (tree.begins + tree.steps[:, None] - 8) - np.array([1, -2, 2])
    far = np.linalg.norm(middle, axis=1)
    assert tree.leaves[far < 4, 0].mean() > tree.leaves[far > 9, 0].mean() + 0.3
    assert tree_figure(found.field).axes[0].get_xlabel() == "x [nm]"


def test_published_fit_finds_the_shell():
    line = project(truth(), rays())
    images = noisy(line / line.max(), 0.03)
    series = Series(images, rays(), torch.ones_like(images))
    schedule = Schedule(6, 3, 2, rate=0.1, batch=3)
    found = published(series, GROWTH, schedule, nothing, Kept())
    volume = volume_of(found.field, (SIZE,) * 3) * float(line.max())
    back = weighted_back_projection(images, rays())
    assert float(correlation(volume, truth())) > 0.05 + float(correlation(back, truth()))
    assert found.leaves[-1] <= 190 and found.steps == 3 * 9


@pytest.mark.parametrize("lens", [False, True])
def test_the_likelihood_is_that_of_absorption_or_of_a_lens(lens):
    """Of a lens, brightness is free; the unit is the specimen's."""
    unit = 10.0 if lens else 0.01
    shape = (SIZE, SIZE)
    specimen = truth() * unit
    with torch.no_grad():
        instrument = Projection(shape, shape, 2.0, 300.0, 0.07)
        clean = (torch.stack([instrument.intensity(voxels(specimen, 2.0), one)
                              for one in exposures(defocus=3000.0)])
                 if lens else torch.exp(-project(specimen, rays())))
    sigma = 0.1 * float(clean.std())
    images = contrast(noisy(clean, sigma)) if lens else noisy(clean, sigma)
    series = Series(images, rays(), torch.ones_like(images))

    def imaging(of, which):
        wider = of.rays.pixel / 2
        if lens:
            taken = exposures(wider / sigma, 3000.0)
            return Model(of.some(which), [taken[n] for n in which], Lens())
        weights = of.weights * (wider / sigma)**2
        return Absorbed(scanned(of.images, of.rays).some(which), weights[which])

    found = fitted(series, imaging, Settings(GROWTH, 8, strength=0.3, unit=unit), nothing, Kept())
    volume = volume_of(found.field, (SIZE,) * 3)
    assert float(correlation(volume, truth())) > 0.6
    assert 0.3 < float(volume.max()) / unit < 3


def leaves_of_two_levels(tree, seed=0):
    rng = np.random.default_rng(seed)
    zeros = Octree(tree, as_tensor(np.zeros((8, 3, 3, 3))))
    tree = changed(zeros, Change((0, 3), ())).tree
    return Octree(tree, as_tensor(rng.uniform(0.5, 1.5, (len(tree.leaves), 3, 3, 3))))


def test_gradients_are_those_of_differences(double):
    """Of what explains images, straight and absorbed, and of every prior, in all values."""
    field = leaves_of_two_levels(uniform((1, 1, 1), 1, 2, 3, 2.0))
    rng = np.random.default_rng(1)
    seen = replace(rays(), grid=field.tree.shape, rotations=rays().rotations.double(),
                   shifts=torch.zeros(9, 2).double())
    images = as_tensor(rng.uniform(0.5, 1, (9, SIZE, SIZE)))
    weights = as_tensor(rng.uniform(0, 2, (9, SIZE, SIZE)))
    way = as_tensor(rng.standard_normal(field.values.shape))
    prior = LeafPrior(field.tree, 0.7, 0.1, 2.0, Ratios(0.5, 0.3))
    losses = [lambda v, one=one: gradient(one, field.tree, v) for one in (
        Integrals(images, weights, seen), Integrals(images, weights, seen, levels=True),
        Absorbed(scanned(images, seen, convergence=80.0), weights))]
    for loss in (*losses, prior.slope):
        slope = float((loss(field.values)[1] * way).sum())
        high, low = (loss(field.values + step * way)[0] for step in (1e-6, -1e-6))
        # Rounding of the loss over the step, and the third derivative times its square.
        assert slope == pytest.approx((high - low) / 2e-6, rel=2e-6)


def test_nothing_is_more_curved_than_the_metric_says(double):
    """Along random ways, of images and of the prior."""
    field = leaves_of_two_levels(uniform((1, 1, 1), 1, 2, 3, 2.0))
    seen = replace(rays(), grid=field.tree.shape, rotations=rays().rotations.double(),
                   shifts=torch.zeros(9, 2).double())
    one = Integrals(torch.ones(9, SIZE, SIZE).double(), torch.ones(9, SIZE, SIZE).double(), seen)
    prior = LeafPrior(field.tree, 0.7, 0.1, 2.0)
    metric = metric_of(one, field.tree, 1.0)
    both = metric.plus(prior.curvature())
    rng = np.random.default_rng(2)
    for number in range(20):
        way = as_tensor(rng.standard_normal(field.values.shape)) + number % 2
        for loss, most in (
                (lambda v: gradient(one, field.tree, v)[1], metric.curvature),
                (lambda v: prior.slope(v)[1], prior.curvature()),
                (lambda v: gradient(one, field.tree, v)[1] + prior.slope(v)[1], both.curvature)):
            change = (loss(1e-4 * way) - loss(-1e-4 * way)) / 2e-4
            assert float((change * way).sum()) <= 1.001 * float((most * way.square()).sum())


def test_a_coarser_tree_is_the_same_field(double):
    """Of leaves that it can have; and images of half the size see it where they see the finer."""
    tree = uniform((1, 1, 1), 1, 3, 3, 2.0)
    grid = np.random.default_rng(3).standard_normal((5, 5, 5))
    field = Octree(tree, as_tensor(np.stack([
        grid[z:z + 3, y:y + 3, x:x + 3] for z, y, x in 2 * tree.leaves[:, 1:]])))
    small = Octree(coarser(tree, 2), field.values)
    points = as_tensor(np.random.default_rng(4).uniform(-15, 15, (40, 3)))
    torch.testing.assert_close(small.at(points), field.at(points), rtol=0, atol=1e-13)
    whole = volume_of(field, (17, 17, 17))
    coarse = volume_of(small, (17, 17, 17), 2.0)
    torch.testing.assert_close(coarse, whole, rtol=0, atol=1e-13)
    series = Series(torch.zeros(9, SIZE, SIZE), rays(), torch.ones(9, SIZE, SIZE))
    assert halvings(series, GROWTH) == 0
    assert halvings(replace(series, rays=replace(rays(), shape=(64, 70))), GROWTH) == 2
    assert on_tree(series, tree).rays.grid == tree.shape
    assert most_memory(series, GROWTH) > 4 * 190 * 27


def test_outlines_are_those_of_the_leaves_that_are_cut():
    tree = leaves_of_two_levels(uniform((1, 1, 1), 1, 2, 3, 2.0)).tree
    for axis in range(3):
        found = np.array(edges(tree, axis))
        sides = np.ptp(found, axis=1)
        # They fill the plane of 8 steps of 0.2 nm.
        assert (sides[:, 0] * sides[:, 1]).sum() == pytest.approx(1.6**2)


def test_logarithms_lie_between_the_darkest_and_the_brightest():
    images = torch.tensor([[[1.0, 2.0], [4.0, 2.0]]])
    torch.testing.assert_close(log_normalised(images), torch.tensor([[[1.0, 0.5], [0.0, 0.5]]]))
    for bad in (torch.zeros(1, 2, 2), torch.ones(1, 2, 2), -images):
        with pytest.raises(ValueError, match="must be positive and not all the same"):
            log_normalised(bad)


def test_trees_hold_the_grid_and_give_it_back():
    grid = (7, 20, 17)
    series = Series(torch.zeros(9, 20, 17), replace(rays(), grid=grid, shape=(20, 17)),
                    torch.ones(9, 20, 17))
    growth = Growth(samples=5, depth=2, start=1, leaves=50)
    tree = tree_of(series, growth)
    assert tree.roots == (1, 2, 1) and tree.spacing == 2.0
    wide = tree_of(series, replace(growth, stretched=True))
    assert wide.roots == (1, 1, 1) and wide.spacing == pytest.approx(2 * 19 / 16)
    field = Octree(tree, torch.ones(16, 5, 5, 5))
    with pytest.raises(ValueError, match="must lie within"):
        volume_of(field, (40, 20, 17))


@pytest.mark.parametrize(("make", "said"), [
    (lambda: replace(GROWTH, start=4), "start=4"), (lambda: replace(GROWTH, leaves=7), "leaves=7"),
    (lambda: replace(GROWTH, updates=0), "updates=0"), (lambda: Schedule(coarse=0), "coarse=0"),
    (lambda: Priors(0.0), "variation=0"), (lambda: Settings(steps=0), "steps=0"),
    (lambda: Settings(rounds=0), "rounds=0")])
def test_impossible_settings_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
