"""Tomograms as octrees: published and by likelihood, in a tree that grows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.octree_fit import (
    WHITENED,
    Plan,
    Priors,
    Shadow,
    fitted,
    halved,
    log_normalised,
    published,
    tree_of,
    volume_of,
)
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.projection import Projection
from tem_taichi.inverse.measures import correlation
from tem_taichi.inverse.tomography import contrast, weighted_back_projection
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.field import voxels
from tem_taichi.specimen.rays import Rays, project

ANGLES = np.linspace(-64.0, 64, 9)
SIZE = 17
PLAN = Plan(samples=3, depth=3, leaves=190, coarse=8, fine=4, updates=2, rate=0.1,
            priors=Priors(4e-4, 2e-4, 1e-6))


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


def noisy(images, sigma):
    drawn = np.random.default_rng(0).standard_normal(images.shape)
    return images + sigma * torch.as_tensor(drawn).float()


def test_published_fit_finds_the_shell_and_refines_it(tmp_path):
    """More than back-projection, with fewer numbers; a killed run goes on to the same end."""
    line = project(truth(), rays())
    images = noisy(line / line.max(), 0.03)
    series = Series(images, rays(), torch.ones_like(images))
    seen = []

    def killed(done, of):
        seen.append((done, of))
        if len(seen) == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        published(images, series, exposures(), PLAN, killed, Kept(tmp_path, "one"))
    found = published(images, series, exposures(), PLAN, nothing, Kept(tmp_path, "one"))
    volume = volume_of(found.field, (SIZE,) * 3) * float(line.max())
    again = published(images, series, exposures(), PLAN, nothing, Kept())
    torch.testing.assert_close(found.field.values, again.field.values, rtol=1e-3, atol=1e-5)
    back = weighted_back_projection(images, rays())
    assert float(correlation(volume, truth())) > 0.05 + float(correlation(back, truth()))
    # In the truth's own scale and unit.
    assert float((volume - truth()).square().mean()) < 0.1 * float(truth().square().mean())
    assert found.leaves[-1] <= 190 and found.steps == 9 * 12
    tree = found.field.tree
    middle = (tree.begins + tree.steps[:, None] - 8) - np.array([1, -2, 2])
    far = np.linalg.norm(middle, axis=1)
    assert tree.leaves[far < 4, 0].mean() > tree.leaves[far > 9, 0].mean() + 0.3


@pytest.mark.parametrize("lens", [False, True])
def test_likelihood_stops_where_images_held_out_say(lens):
    """Through absorption and through a lens; brightness is free, the unit the specimen's."""
    unit = 10.0 if lens else 0.01
    shape = (SIZE, SIZE)
    instrument = Projection(shape, shape, 2.0, 300.0, 0.07) if lens else Shadow(shape, shape, 2.0)
    specimen = voxels(truth() * unit, 2.0)
    taken = exposures(defocus=3000.0)
    with torch.no_grad():
        clean = torch.stack([instrument.intensity(specimen, one) for one in taken])
    sigma = 0.1 * float(clean.std())
    images = contrast(noisy(clean, sigma))
    series = Series(images, rays(), torch.ones_like(images))
    plan = replace(PLAN, coarse=6, fine=3, strengths=(3.0, 1.0), priors=WHITENED)
    found = fitted(series, exposures(1 / sigma, 3000.0), instrument, unit, plan, 4, nothing, Kept())
    volume = volume_of(found.field, (SIZE,) * 3)
    assert float(correlation(volume, truth())) > 0.6
    assert 1 < len(found.held_out) and min(found.held_out) <= 1
    assert any(found.variation == pytest.approx(0.1 * factor) for factor in plan.strengths)
    assert 0.3 < float(volume.max()) / unit < 3


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
    tree = tree_of(series, Plan(samples=5, depth=2, start=1, leaves=50))
    assert tree.roots == (1, 2, 1) and tree.spacing == 2.0
    images = torch.arange(9.0).reshape(1, 3, 3)
    assert halved(images).shape == (1, 1, 1) and float(halved(images)[0, 0, 0]) == 2.0


@pytest.mark.parametrize(("change", "said"), [
    ({"start": 4}, "start=4"), ({"leaves": 7}, "leaves=7"), ({"coarse": 0}, "coarse=0"),
    ({"priors": Priors(0.0)}, "variation=0")])
def test_impossible_plans_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        replace(PLAN, **change)
