"""Counts drawn by kernels, against their distributions; by the CPU, and by a GPU if any."""

import numpy as np
import pytest
import torch
from scipy import stats

from tem_taichi.device import as_tensor, init, kernels_for_a_gpu
from tem_taichi.noise.detector import Detector, detect
from tem_taichi.noise.draws import deposit, poisson
from tem_taichi.streams import Key

GPU = pytest.param("gpu", marks=[
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")])
N = 200_000


@pytest.fixture(params=["cpu", GPU])
def arch(request):
    """Where the kernels run."""
    init(request.param)
    yield request.param
    init("cpu")


KEY = Key(1, "noise", 2)


def drawn(mean, key=KEY, kind=0, shape=(N,)):
    return poisson(as_tensor(np.full(shape, mean)), key, kind).cpu().numpy().astype(float)


# Both methods, and on both sides of where they meet.
@pytest.mark.parametrize("mean", [1e-3, 0.4, 3.0, 9.9375, 10.0625, 31.0, 400.0, 2e4])
def test_frequencies_are_poissons(arch, mean):
    """Chi-square over bins of at least 20 expected, the tails in the first and the last."""
    found = drawn(mean)
    law = stats.poisson(mean)
    edges = np.unique(law.ppf(np.linspace(20 / N, 1 - 20 / N, 120)))
    observed = np.histogram(found, np.concatenate([[-1], edges, [np.inf]]) + 0.5)[0]
    expected = N * np.diff(np.concatenate([[0], law.cdf(edges), [1]]))
    used = expected > 0
    assert not observed[~used].any() and used.sum() > 1
    assert stats.chisquare(observed[used], expected[used]).pvalue > 1e-4
    assert abs(found.mean() - mean) < 4 * np.sqrt(mean / N)
    assert (found == np.rint(found)).all() and found.min() >= 0


def test_of_nothing_comes_nothing_and_of_much_a_normal_number(double):
    assert (drawn(0.0, shape=(50, 4)) == 0).all()
    found = (drawn(1e12) - 1e12) / 1e6
    assert stats.kstest(found, "norm").pvalue > 1e-4


def test_draws_do_not_depend_on_each_other(arch):
    """Neither neighbours, nor draws of one key, nor those of other keys."""
    mean, first = 20.0, drawn(20.0)
    keys = [KEY, Key(1, "noise", 3), Key(2**33 + 1, "noise", 2), Key(2, "noise", 2),
            Key(1, "trials", 2)]
    pairs = [(first, drawn(mean, key, int(key is KEY))) for key in keys]
    pairs += [(first[:-step], first[step:]) for step in (1, 2, 64)]
    for one, other in pairs:
        assert abs(((one - mean) * (other - mean)).mean()) < 4 * mean / np.sqrt(len(one))


def test_a_pixel_draws_the_same_whatever_is_around_it(arch):
    """Also in the precision that is not the tensor's, but of what the mean rounds to."""
    means = np.linspace(0, 30, 4096).astype(np.float32)
    first = poisson(as_tensor(means), Key(0, "noise")).cpu()
    assert torch.equal(poisson(as_tensor(means[:100]), Key(0, "noise")).cpu(), first[:100])
    init(arch, "float64")
    again = poisson(as_tensor(means.reshape(64, 64)), Key(0, "noise")).cpu()
    assert torch.equal(again, first.double().reshape(64, 64))


@pytest.mark.parametrize(("electrons", "spread"), [(1.0, 0.3), (5.0, 2.0), (900.0, 0.5)])
def test_charges_are_inverse_gaussian(arch, electrons, spread):
    counts = as_tensor(np.full(N, electrons))
    found = deposit(counts, spread, Key(3, "noise")).cpu().numpy().astype(float)
    shape = electrons**2 / spread
    law = stats.invgauss(electrons / shape, scale=shape)
    assert stats.kstest(found, law.cdf).pvalue > 1e-4
    assert (counts == electrons).all()
    assert torch.equal(deposit(counts, 0.0, Key(3, "noise")), counts)
    assert (deposit(0 * counts, spread, Key(3, "noise")) == 0).all()


@pytest.mark.parametrize("kind", ["counting", "integrating"])
def test_halves_are_independent_and_their_sum_is_an_image(arch, kind):
    """As by NumPy: mean, variance and covariance within 4 standard errors."""
    camera = Detector(kind, gain=2.0, dqe=0.6)
    with kernels_for_a_gpu():
        halves = detect(as_tensor(np.ones((300, 300))), pixel_size=1.0, dose=12.0,
                        detector=camera, halves=True, seed=4).cpu().double()
    one, other = (half.flatten() - 12.0 for half in halves)
    variance, n = 4.0 * 6.0 / 0.6, one.numel()
    for half in (one, other):
        assert abs(half.mean()) < 4 * np.sqrt(variance / n)
        assert abs(half.var() / variance - 1) < 4 * np.sqrt(3 / n)  # fourth moments, generously
    assert abs((one * other).mean()) < 4 * variance / np.sqrt(n)


def test_a_cpu_draws_by_numpy_as_ever():
    """Bytes of an image of 0.1.0."""
    found = detect(torch.full((4, 4), 1.0), pixel_size=2.0, dose=3.0, seed=7, stream=1)
    expected = Key(7, "noise", 1).generator().poisson(np.full((4, 4), 12.0))
    assert (found.numpy() == expected).all()
