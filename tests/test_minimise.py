import itertools
import math

import numpy as np
import pytest
import torch

from tem_taichi.inverse.fisher import covariance
from tem_taichi.inverse.minimise import Optimiser, minimise, minimise_parts


def rosenbrock(values):
    x, y = values["x"], values["y"]
    return ((1 - x) ** 2 + 100 * (y - x**2) ** 2).sum()


def start(x=-1.2, y=1.0):
    return {"x": torch.tensor([x], dtype=torch.float64), "y": torch.tensor(y).double()}


def test_lbfgs_finds_the_bottom_of_a_curved_valley():
    given = start()
    result = minimise(rosenbrock, given)
    assert result.converged
    assert result.steps < 60
    # The loss is quadratic at the bottom: 1e-9 of tolerance on a loss that goes to 0.
    assert float(result.values["x"]) == pytest.approx(1, abs=1e-6)
    assert float(result.values["y"]) == pytest.approx(1, abs=1e-6)
    assert result.values["y"].shape == ()
    assert len(result.history) == result.steps
    assert result.history[0] == pytest.approx(24.2)  # (1 + 1.2)^2 + 100 (1 - 1.44)^2
    assert not result.values["x"].requires_grad
    assert float(given["x"]) == -1.2  # untouched


def test_adam_reaches_the_mean_of_noisy_targets():
    generator = torch.Generator().manual_seed(3)

    def loss(values):
        return (values["mean"] - 5 - torch.randn(64, generator=generator)).square().mean()

    result = minimise(loss, {"mean": torch.zeros(())},
                      Optimiser("adam", 300, rate=0.1, betas=(0.8, 0.992)))
    # One step sees the mean of 64 numbers, of deviation 1/8; Adam averages a few.
    assert float(result.values["mean"]) == pytest.approx(5, abs=0.4)


def test_the_best_values_are_kept_not_the_last():
    # A rate too large for the bowl: Adam climbs out again.
    result = minimise(lambda v: v["x"].square().sum(), {"x": torch.tensor([1.0])},
                      Optimiser("adam", 5, rate=0.9))
    assert result.loss == min(result.history)
    assert result.history[-1] > result.loss
    assert float(result.values["x"]) ** 2 == pytest.approx(result.loss)


def test_few_steps_do_not_converge():
    assert not minimise(rosenbrock, start(), Optimiser(steps=4)).converged


def test_line_search_does_not_compute_a_point_twice():
    points = []

    def loss(values):
        points.append([float(value.detach()) for value in values.values()])
        return rosenbrock(values)

    minimise(loss, start(), Optimiser(steps=30))
    assert all(a != b for a, b in itertools.pairwise(points))


@pytest.mark.parametrize("method", ["lbfgs", "adam", "rmsprop"])
def test_an_interrupted_fit_goes_on_as_if_it_had_not_been(tmp_path, method):
    how = Optimiser(method, 20, tolerance=0.0)
    whole = minimise(rosenbrock, start(), how)
    path = tmp_path / "fit.pt"

    def interrupt(step, loss, values):
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        minimise(rosenbrock, start(), how, state_file=path, progress=interrupt)
    steps = []
    resumed = minimise(rosenbrock, start(), how, state_file=path,
                       progress=lambda step, loss, values: steps.append(step))
    assert steps == list(range(10, 21))
    assert resumed.history == whole.history
    assert all(torch.equal(resumed.values[name], whole.values[name]) for name in "xy")
    again = minimise(rosenbrock, start(), how, state_file=path)
    assert again.loss == whole.loss
    assert list(tmp_path.iterdir()) == [path]  # no half-written file stays


def test_state_of_another_fit_is_refused(tmp_path):
    path = tmp_path / "fit.pt"
    minimise(rosenbrock, start(), Optimiser(steps=2), state_file=path)
    with pytest.raises(ValueError, match=r"belongs to another fit, of \['x', 'y'\] by lbfgs"):
        minimise(rosenbrock, start(), Optimiser("adam", 2), state_file=path)
    path.write_text("nothing")
    with pytest.raises(ValueError, match="is no state of a fit"):
        minimise(rosenbrock, start(), Optimiser(steps=2), state_file=path)


@pytest.mark.parametrize(("changes", "message"), [
    ({"scales": {"x": 3.0}}, r"with scales=\{'x': 2.0\}; it is \{'x': 3.0\} here"),
    ({"optimiser": Optimiser("adam", 4, batch=1)}, "with batch=2; it is 1 here"),
    ({"optimiser": Optimiser("adam", 4, batch=2, seed=1)}, "with seed=0; it is 1 here"),
    ({"parts": [0, 1, 3]}, r"with parts=\[0, 1, 2\]; it is \[0, 1, 3\] here"),
    ({"held_out": [3]}, r"with held_out=\[\]; it is \[3\] here"),
])
def test_a_state_knows_its_scales_and_parts(tmp_path, changes, message):
    def terms(values, which):
        return [(values["x"] - n).square().sum() for n in which]

    fit = {"parts": [0, 1, 2], "optimiser": Optimiser("adam", 2, batch=2), "scales": {"x": 2.0},
           "state_file": tmp_path / "fit.pt", "start": {"x": torch.zeros(2)}, "terms": terms}
    minimise_parts(**fit)
    assert minimise_parts(**fit | {"optimiser": Optimiser("adam", 4, batch=2)}).steps == 4
    with pytest.raises(ValueError, match=message):
        minimise_parts(**fit | changes)


@pytest.mark.parametrize(("loss", "message"), [
    (lambda v: torch.ones(()), "start.x: the loss does not depend"),
    (lambda v: v["x"].log().sum(), "loss=nan at step 1: must be finite"),
    (lambda v: (v["x"] + 1).abs().sqrt().sum(), "gradient of x=.*at step 1: must be finite"),
    (lambda v: torch.zeros((), requires_grad=True).exp(), "start.x: the loss does not depend"),
])
def test_losses_that_cannot_be_followed(loss, message):
    with pytest.raises(ValueError, match=message) as error:
        minimise(loss, {"x": torch.tensor([-1.0])})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("changes", "message"), [
    ({"name": "sgd"}, "must be one of lbfgs, adam"),
    ({"steps": 0}, "steps=0: must be at least 1"),
    ({"rate": -1.0}, "rate=-1: must be positive"),
    ({"start": {}}, "at least one"),
    ({"start": {"x": torch.tensor(math.nan), "y": torch.zeros(())}}, "start.x: must be finite"),
    ({"start": {"x": torch.tensor(1), "y": torch.zeros(())}}, "start.x: must be finite real"),
])
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        begin = changes.pop("start", start())
        minimise(rosenbrock, begin, Optimiser(**changes))


def test_covariance_is_that_of_the_least_squares_line():
    x = torch.linspace(-1, 2, 30, dtype=torch.float64)
    sigma = 0.3

    def loss(values):
        line = values["line"][0] + values["line"][1] * x
        return (line - 2 + x).square().sum() / (2 * sigma**2) + (values["other"] - 1) ** 2 / 8

    found = minimise(loss, {"line": torch.zeros(2).double(), "other": torch.zeros(()).double()})
    design = np.stack([np.ones(30), x.numpy()], axis=1)
    expected = np.zeros((3, 3))
    expected[:2, :2] = sigma**2 * np.linalg.inv(design.T @ design)
    expected[2, 2] = 4
    np.testing.assert_allclose(covariance(loss, found.values), expected, rtol=1e-10, atol=1e-12)


def test_covariance_names_what_is_not_determined():
    values = {name: torch.tensor(1.0).double() for name in ("a", "b", "c")}
    with pytest.raises(ValueError, match="does not determine a, b "):
        covariance(lambda v: (v["a"] * v["b"]).log() ** 2 + v["c"] ** 2, values)
    with pytest.raises(ValueError, match="does not depend on c"):
        covariance(lambda v: v["a"] ** 2 + v["b"] ** 2 + 0 * v["c"], values)
