"""Radial curves: limits, tables, and files that hold them."""

import numpy as np
import pytest
import torch

from tem_taichi.device import as_tensor
from tem_taichi.noise.curves import (
    evaluate,
    interpolate,
    mtf_parametric,
    over_image,
    radial_frequency,
    read_mtf,
    smoothness_penalty,
)
from tem_taichi.noise.detector import Detector

PARAMETERS = (0.7, 0.2, 0.1, 10.0, 40.0)


def test_radial_frequency_is_that_of_rfft2():
    w = radial_frequency(6, 8).cpu()
    np.testing.assert_allclose(
        w, np.hypot(np.fft.fftfreq(6)[:, None], np.fft.rfftfreq(8)[None]), rtol=1e-6)
    assert float(w[3, 4]) == pytest.approx(np.sqrt(0.5))


def test_parametric_mtf_limits():
    w = as_tensor([0.0, 0.5, 1e4])
    mtf = mtf_parametric(w, *PARAMETERS).cpu()
    np.testing.assert_allclose(mtf, [1, 0.7 / 3.5 + 0.2 / 11 + 0.1, 0.1], rtol=1e-5)
    doubled = mtf_parametric(w, 1.4, 0.4, 0.2, 10, 40).cpu()
    np.testing.assert_allclose(mtf, doubled, rtol=1e-6)  # only ratios matter


def test_table_is_linear_between_points_and_clipped_outside():
    frequencies, values = as_tensor([0.1, 0.2, 0.5]), as_tensor([0.9, 0.7, 0.4])
    w = np.array([[0, 0.05, 0.1, 0.15], [0.2, 0.35, 0.5, 0.707]])
    result = interpolate(as_tensor(w), frequencies, values).cpu()
    np.testing.assert_allclose(
        result, [[0.9, 0.9, 0.9, 0.8], [0.7, 0.55, 0.4, 0.4]], rtol=1e-6)


@pytest.mark.parametrize("points", [9, 33, 129])
def test_smoothness_is_the_integral_of_the_squared_curvature(double, points):
    """f = w^2 up to 0.5, curvature 2: 1/2 of 2^2 0.5 over slope_change^2 / 0.5, less the ends."""
    w = torch.linspace(0, 0.5, points, dtype=torch.float64)
    inner = (points - 2) / (points - 1)  # no curvature is taken at the two ends
    assert float(smoothness_penalty(w, w**2, 1.0)) == pytest.approx(0.5 * inner, rel=1e-9)
    assert float(smoothness_penalty(w, w**2, 2.0)) == pytest.approx(0.125 * inner, rel=1e-9)
    assert float(smoothness_penalty(w, 1 - 1.7 * w)) == pytest.approx(0, abs=1e-18)
    uneven = w**1.3 * 0.5**-0.3  # the same curve at other points
    assert float(smoothness_penalty(uneven, uneven**2, 1.0)) == pytest.approx(0.5, rel=4 / points)
    values = (w**2 + 0.1 * torch.sin(9 * w)).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: smoothness_penalty(w, f), values)


def test_a_smooth_table_is_nearer_to_the_truth_than_a_rough_one(double):
    """The most probable table of 41 points with noise of 0.05, with and without the prior."""
    w = torch.linspace(0, 0.5, 41, dtype=torch.float64)
    truth = mtf_parametric(w, *PARAMETERS)
    noise = 0.05 * torch.randn(41, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = (truth + noise).requires_grad_()
    optimiser = torch.optim.LBFGS([values], max_iter=300, line_search_fn="strong_wolfe")

    def misfit():
        optimiser.zero_grad()
        total = (((values - truth - noise) / 0.05) ** 2).sum() / 2 + smoothness_penalty(w, values)
        total.backward()
        return total

    optimiser.step(misfit)
    left = float((values.detach() - truth).square().mean().sqrt() / noise.square().mean().sqrt())
    assert left < 0.5  # about 6 of 41 degrees of freedom are left


@pytest.mark.parametrize(("arguments", "words"), [
    (([0.0, 0.1], [1.0, 0.9], 0.0), "slope_change=0.0: must be positive"),
    (([0.0, 0.1, 0.1], [1.0, 0.9, 0.8]), "must be non-negative and increase"),
    (([0.0, 0.1], [1.0, 0.9, 0.8]), "two rows of the same length")])
def test_smoothness_of_no_table_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        smoothness_penalty(*arguments)


def test_measured_curves_load(shared):
    paths = sorted((shared / "data" / "mtf").glob("*.star"))
    assert len(paths) == 9
    for path in paths:
        frequencies, values = read_mtf(path)
        assert frequencies[0] == 0
        assert 0.49 < frequencies[-1] < 0.51
        assert values[0] == pytest.approx(1, abs=6e-4)  # Falcon 4's file starts at 0.9995
        assert values.min() > 0
        assert values.max() <= 1.05
        mtf = evaluate(Detector(mtf=(frequencies, values)).mtf, radial_frequency(32, 32))
        assert float(mtf[16, 16]) == pytest.approx(values[-1])


def test_two_columns_of_text_are_a_curve(tmp_path):
    path = tmp_path / "dqe.txt"
    path.write_text("# frequency DQE\n0 0.9\n\n0.25 0.7\n0.5 0.3\n")
    np.testing.assert_array_equal(read_mtf(path), [[0, 0.25, 0.5], [0.9, 0.7, 0.3]])


STAR = "data_\nloop_\n_rlnResolutionInversePixel\n_rlnMtfValue\n"


@pytest.mark.parametrize(("text", "message"), [
    (None, "cannot be read"),
    ("", "must have two"),
    ("0 1 2\n1 2 3\n", "3 columns"),
    ("0 1\n0.5\n", "neither a RELION star file"),
    ("mtf\n", "neither a RELION star file"),
    ("0 1\n0.5 nan\n", "finite"),
    ("0.5 1\n0 0.5\n", "increase"),
    ("0 1\n", "at least 2"),
    (STAR + "0 1\n0.5 x\n", "neither a RELION star file"),
    (STAR + "0 1\n0.5 -0.1\n", ">= 0"),
    ("data_\nloop_\n_rlnMtfValue\n1\n0.5\n", "no block with both columns"),
])
def test_broken_curve_files_are_named_in_one_line(tmp_path, text, message):
    path = tmp_path / "curve.star"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_mtf(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_curves_over_an_image_are_kept_by_their_numbers():
    table = np.array([[0.0, 0.25, 0.5], [1.0, 0.6, 0.3]])
    first = over_image(table, 12, 10)
    assert torch.equal(first, evaluate(table, radial_frequency(12, 10)))
    assert over_image(table.tolist(), 12, 10) is first
    table[1, 2] = 0.2  # changed in place, it is another curve
    again = over_image(table, 12, 10)
    assert torch.equal(again, evaluate(table, radial_frequency(12, 10)))
    assert not torch.equal(again, first)
    values = torch.tensor([1.0, 0.6, 0.3], requires_grad=True)
    over_image((table[0], values), 12, 10).sum().backward()
    assert float(values.grad.sum()) == pytest.approx(12 * 6)  # shares of each element add up to 1
    with torch.inference_mode():
        made = over_image(table, 8, 8)
    weight = torch.ones(8, 5, requires_grad=True)
    (made * weight).sum().backward()  # what was made there may be saved for gradients here
    assert torch.allclose(weight.grad, made)
