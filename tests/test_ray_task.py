"""Networks fitted along points of rays: where they are, what they add up to, and what is found."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tem_taichi.device import as_tensor
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.ray_task import RayTask
from tem_taichi.estimate.stem_fit import Images, Plan, fitted
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.stem import STEM
from tem_taichi.inverse.measures import correlation
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.implicit import small
from tem_taichi.specimen.ray_points import Along, lines_of
from tem_taichi.specimen.rays import Rays, project

SIZE, ANGLES, SPREAD = 14, np.arange(-66, 67, 6.0), 18.0
MIDDLE = (-20.0, 10.0, 15.0)


def rays(axis=20.0, voxel=10.0):
    rng = np.random.default_rng(0)
    return Rays(torch.stack([tilt_rotation(a, axis) for a in ANGLES]),
                as_tensor(rng.uniform(-15, 15, (len(ANGLES), 2))),
                (round(10 * SIZE / voxel),) * 3, voxel, (SIZE, SIZE + 2), 10.0)


def ball(points):
    """A soft ball off the middle, of 1 there."""
    far = (points - as_tensor(MIDDLE)).square().sum(-1)
    return torch.exp(-far / (2 * SPREAD**2))


def some(seen):
    """Lines of all pixels of three images."""
    image, row, column = torch.meshgrid(torch.tensor([0, 9, 20]), torch.arange(seen.shape[0]),
                                        torch.arange(seen.shape[1]), indexing="ij")
    size = tuple(seen.voxel * n for n in reversed(seen.grid))
    return lines_of(seen, image.reshape(-1), row.reshape(-1), column.reshape(-1), size)


@pytest.mark.parametrize("fine", [0, 60])
def test_integrals_are_those_of_the_grid(double, fine):
    """And of the ball's own: along tilted, turned and shifted rays, within its box."""
    seen = rays(voxel=2.5)
    lines, draw = some(seen), np.random.default_rng(1)
    places = lines.even(120, draw)
    if fine:
        places = lines.dense(places, ball(lines.at(places)), fine, draw)
    found = (ball(lines.at(places)) * lines.lengths(places)).sum(1)
    half = (torch.arange(56) - 28) * 2.5
    z, y, x = torch.meshgrid(half, half, half, indexing="ij")
    grid = project(ball(torch.stack([x, y, z], dim=-1).double()), seen)[[0, 9, 20]].reshape(-1)
    whole = SPREAD * (2 * np.pi)**0.5
    # The box cuts a little off the ball; a grid is linear between voxels, jitter is at random.
    assert float((found - grid).abs().max()) < 0.03 * whole
    assert float(found.max()) == pytest.approx(whole, rel=0.05)


def test_points_are_where_the_density_is():
    lines, draw = some(rays()), np.random.default_rng(1)
    places = lines.even(16, draw)
    assert (places.diff(dim=1) >= 0).all()
    density = (ball(lines.at(places)) > 0.5).float()
    more = lines.dense(places, density, 48, draw)
    assert more.shape == (len(places), 64) and (more.diff(dim=1) >= 0).all()
    torch.testing.assert_close(lines.lengths(more).sum(1), lines.far - lines.near)
    meets = density.sum(1) > 2
    inside = (ball(lines.at(more)) > 0.4).float().mean(1)[meets]
    assert float(inside.mean()) > 2 * float((ball(lines.at(places)) > 0.4).float().mean(1)[
        meets].mean())
    # Rays that pass beside the box see nothing.
    beside = lines_of(rays(), torch.tensor([10]), torch.tensor([0]), torch.tensor([15]),
                      (20.0, 20.0, 20.0))
    assert float(beside.lengths(beside.even(4, draw)).abs().sum()) == 0


def given(signal="bright"):
    """Images of electrons of random charge of a ball, and its density [1/A]."""
    seen = rays()
    half = (torch.arange(SIZE) - SIZE // 2) * 10.0
    z, y, x = torch.meshgrid(half, half, half, indexing="ij")
    density = (0.02 * ball(torch.stack([x, y, z], dim=-1))).float()
    images = Images(torch.zeros(len(ANGLES), *seen.shape), seen,
                    [Exposure(tilt_angle=float(a), dose=1.0) for a in ANGLES],
                    STEM(seen.shape, 10.0, signal))
    clean = images.expected(density)
    rng = np.random.default_rng(2)
    counts = 4 * rng.gamma(np.maximum(rng.poisson(clean.numpy() / 4), 1e-9))
    return replace(images, counts=torch.tensor(counts).float()), density


PLAN = Plan("implicit", "l2", small(SIZE, 16, 1), rate=0.01, passes=4, warm=3, law_steps=30,
            law=(1, 1, 8), along=Along(256, 16, 16))


def quiet(done, total):
    assert done <= total


@pytest.mark.parametrize(("signal", "loss", "fine"), [
    ("bright", "flow", 16), ("dark", "l2", 16), ("bright", "l1", 0)])
def test_a_fit_finds_the_density(signal, loss, fine):
    images, density = given(signal)
    images.counts[3, 2:5] = torch.nan
    plan = replace(PLAN, loss=loss, along=Along(256, 16, fine))
    found = fitted(images, plan, 7, quiet, Kept())
    assert float(correlation(found.volume, density)) > 0.8
    assert float((found.volume - density).norm() / density.norm()) < 0.6
    assert (found.flow is None) == (loss != "flow")


def test_the_gradient_is_that_of_differences(double):
    """In all numbers of the network, and of the fine one where the points stay."""
    images, _ = given()
    images = replace(images, counts=images.counts.double())
    for fine in (0, 8):
        task = RayTask(images, PLAN, Along(64, 8, fine))
        part = task.parts(range(5), False)[2]
        rng = np.random.default_rng(3)
        ways = {name: as_tensor(rng.standard_normal(tuple(one.shape)))
                for name, one in task.start.items() if not name.startswith("coarse")}

        def loss(step, task=task, part=part, ways=ways):
            # From where hardly a feature is next to 0, the kink of its layer.
            now = {name: one + (0.3 + step) * ways.get(name, 0.0)
                   for name, one in task.start.items()}
            return next(iter(task.terms("l2", range(5))(now, [part])))

        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        slope, = torch.autograd.grad(loss(step), step)
        ends = loss(1e-6), loss(-1e-6)
        assert float(slope) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-5)


def test_all_pixels_have_their_turn_and_none_that_is_held_out():
    task = RayTask(given()[0], PLAN, PLAN.along)
    shown, held = [0, 1, 2, 4, 5], [3, 6]
    parts = {kind: task.parts(which, kind == "held")
             for kind, which in (("shown", shown), ("held", held))}
    assert not set(parts["shown"]) & set(parts["held"])
    for kind, which in (("shown", shown), ("held", held)):
        pixels = np.concatenate([task.pixels[part] for part in parts[kind]])
        per = SIZE * (SIZE + 2)
        assert sorted(pixels) == sorted(n * per + k for n in which for k in range(per))


def test_an_interrupted_fit_goes_on(tmp_path):
    images, _ = given()
    plan = replace(PLAN, passes=2)
    whole = fitted(images, plan, 7, quiet, Kept())

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(images, plan, 7, stop, Kept(tmp_path, "this"))
    again = fitted(images, plan, 7, quiet, Kept(tmp_path, "this"))
    assert torch.allclose(again.volume, whole.volume, rtol=1e-4)


@pytest.mark.parametrize(("key", "value"), [("specimen", "voxels"), ("tv", 1.0),
                                            ("free_cone", True)])
def test_what_lines_cannot_do_is_refused(key, value):
    with pytest.raises(ValueError, match=key):
        replace(PLAN, **{key: value})
    images, _ = given()
    wide = replace(images, instrument=replace(images.instrument, convergence=5.0))
    with pytest.raises(ValueError, match="convergence"):
        fitted(wide, PLAN, 7, quiet, Kept())
