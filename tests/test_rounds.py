"""Rounds of fits that give back the contrast that their prior took."""

import numpy as np
import pytest
import torch

from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.tomogram import judged, stopped
from tem_taichi.inverse.accelerated import Accelerated, Diagonal, Metric
from tem_taichi.inverse.priors import total_variation_curvature, total_variation_slope
from tem_taichi.inverse.rounds import Rounds

CORNER = 1e-3


def plateau(height: float) -> torch.Tensor:
    """Of 12 samples in 32, in a line whose neighbours are along the last axis."""
    line = torch.zeros(1, 1, 32)
    line[..., 10:22] = height
    return line


def rounds_of(target: torch.Tensor, strength: float, small: float = 1e-4,
              positive: bool = False) -> Rounds:
    """Of the line itself as the data, squares of whose differences count half."""
    def misfit(volume):
        left = volume - target
        return float(left.square().sum() / 2), left.clone()

    curved = 1 + total_variation_curvature(target, 1 / strength, CORNER)
    return Rounds(misfit, lambda volume: total_variation_slope(volume, 1 / strength, CORNER),
                  torch.zeros_like(target), Metric(curved), positive, small)


@pytest.mark.parametrize(("height", "strength"), [(1.0, 0.6), (1.0, 5.0), (0.5, 5.0)])
def test_each_round_has_as_much_contrast_more_as_the_data_have(double, height, strength):
    """Total variation alone takes 2 / 12 + 2 / 20 of its strength from the height of a plateau of
    12 samples among 32 (Strong and Chan 2003, doi 10.1088/0266-5611/19/6/059); after k rounds that
    is taken from k times the height, but never more than all of it is there. Ten differences on
    the way up and down may each be as large as the corner at hardly any cost."""
    run, taken = rounds_of(plateau(height), strength, 1e-9), strength * (2 / 12 + 2 / 20)
    for number in range(1, 5):
        run.step()
        found = float(run.volume[..., 14:18].mean() - run.volume[..., :4].mean())
        assert found == pytest.approx(min(max(number * height - taken, 0), height),
                                      abs=10 * CORNER)


def test_a_round_ends_where_it_makes_no_more_progress(double):
    """Five steps where the metric is the loss's curvature and the first leads to its least; more
    where it is not, and then little is left to do."""
    curved = torch.logspace(0, 3, 32).reshape(1, 1, 32)
    target = torch.as_tensor(np.random.default_rng(2).standard_normal((1, 1, 32))) / curved.sqrt()

    def misfit(volume):
        slope = curved * (volume - target)
        return float((slope * (volume - target)).sum() / 2), slope

    def nothing(volume):
        return 0.0, torch.zeros_like(volume)

    whole = misfit(torch.zeros_like(target))[0]
    good, poor = (Rounds(misfit, nothing, torch.zeros_like(target), Diagonal(metric))
                  for metric in (curved, torch.full_like(curved, 1000.0)))
    assert good.step() == pytest.approx(0, abs=1e-9 * whole) and good.steps == 5
    assert poor.step() < 0.03 * whole and 8 < poor.steps < 40


def test_a_run_goes_on_from_its_state(monkeypatch):
    """To the same numbers, from within a round."""
    noise = torch.as_tensor(np.random.default_rng(0).standard_normal((1, 1, 32))).float()
    whole, first, then = (rounds_of(plateau(1.0) + 0.1 * noise, 2.0, positive=True)
                          for _ in range(3))
    for _ in range(5):
        whole.step()
    for _ in range(2):
        first.step()
    steps, run = iter(range(2)), Accelerated.step

    def interrupted(self):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return run(self)

    monkeypatch.setattr(Accelerated, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        first.step()
    monkeypatch.undo()
    then.resume({name: value.clone() for name, value in first.state().items()})
    torch.testing.assert_close(then.volume, first.volume, rtol=0, atol=0)
    for _ in range(3):
        then.step()
    torch.testing.assert_close(then.volume, whole.volume, rtol=0, atol=1e-6)
    assert float(whole.volume.min()) >= 0


@pytest.mark.parametrize(("left", "seen"), [
    ([0.5, 0.4, 0.41, 0.42, 0.43, 0.44], 5),  # ever worse
    ([0.5, 0.4, 0.41, 0.42, 0.39, 0.38, 0.38, 0.39, 0.40, 0.1], 9),  # but for a while
    ([0.5, 0.5, 0.5, 0.5, 0.1], 4)])
def test_what_gets_worse_for_a_while_goes_on(left, seen):
    run = rounds_of(plateau(1.0), 1.0)
    judgements = iter(left)
    curve = judged(run, lambda volume: next(judgements), 20, lambda done, of: None, None)
    assert curve == [1.0, *left[:seen]]


def test_rounds_end_before_noise(double):
    """Where data of other noise are explained best, nearer to the truth than at either end."""
    draw = np.random.default_rng(1)
    truth = plateau(1.0)
    one, other = (truth + 0.5 * torch.as_tensor(draw.standard_normal((1, 1, 32)))
                  for _ in range(2))
    run = rounds_of(one, 3.0)
    errors = []
    for _ in range(20):
        run.step()
        errors.append(float((run.volume - truth).square().mean()))
    volume, number, curve = stopped(
        lambda shown: rounds_of(one, 3.0),
        lambda volume: float((volume - other).square().sum() / other.square().sum()), 20,
        lambda done, of: None, Kept())
    assert 1 <= number < 20 and len(curve) > number
    assert float((volume - truth).square().mean()) == pytest.approx(errors[number - 1])
    assert errors[number - 1] < 0.5 * min(errors[0], errors[-1])
