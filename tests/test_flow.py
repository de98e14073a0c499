"""noise/flow.py: a learned law of noise, and what it is compared by."""

import math

import numpy as np
import pytest
import torch

from tem_taichi.estimate.noise_laws import distance, gauss, learn, poisson
from tem_taichi.experiment import Likelihood
from tem_taichi.noise.divergence import bhattacharyya, jensen_shannon
from tem_taichi.noise.flow import Flow, Layers, layers
from tem_taichi.streams import Key

pytestmark = pytest.mark.usefixtures("double")


def wild(seed=0, size=(4, 4, 16)):
    """A flow whose layers all do something."""
    start = layers(*size, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    made = Layers(*(part + 0.5 * torch.randn(part.shape, generator=draw, dtype=part.dtype)
                    for part in start))
    return Flow(2.0, made, 3.0, 10.0, 50.0)


@pytest.mark.parametrize("clean", [5.0, 10.0, 23.0, 50.0, 90.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_density_integrates_to_one_and_has_the_clean_value_as_its_mean(seed, clean):
    """By trapezoids over 40 units on either side, beyond which a normal tail is nothing; these are
    right to 4e-4 at the sharpest kink that the numbers drawn here have."""
    flow = wild(seed)
    counts = clean + torch.linspace(-120, 120, 120001, dtype=torch.float64)
    density = flow.log_density(counts, torch.full_like(counts, clean)).exp()
    assert float(torch.trapezoid(density, counts)) == pytest.approx(1.0, abs=1e-3)
    # Between knots the mean is interpolated: 0.01 of the noise's unit.
    assert float(torch.trapezoid(density * counts, counts)) == pytest.approx(clean, abs=0.01 * 3)
    below = flow.distribution(counts, torch.full_like(counts, clean))
    whole = torch.cumulative_trapezoid(density, counts)
    assert torch.allclose(below[1:], whole, atol=1e-3)


def test_samples_have_the_density():
    """Their ranks are even: Kolmogorov's 99.9 % bound."""
    flow, n = wild(1), 20000
    clean = torch.linspace(10, 50, n, dtype=torch.float64)
    drawn = flow.sample(clean[None] / 4, 1.0, Key(3, "noise"))[0]
    assert torch.equal(drawn, flow.sample(clean[None] / 4, 1.0, Key(3, "noise"))[0])
    ranks = flow.distribution(drawn, clean).sort().values
    assert float((ranks - (torch.arange(n) + 0.5) / n).abs().max()) < 1.95 / n**0.5
    assert torch.allclose(flow.expected(clean[None] / 4, 1.0), clean)


def test_the_inverse_is_the_inverse():
    flow = wild(2)
    clean = torch.linspace(0, 60, 1001, dtype=torch.float64)
    normal = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    again, _ = flow.normal(flow.residual(normal, clean), clean)
    assert torch.allclose(again, normal, atol=1e-9)


def test_gradients_are_differences():
    """Of every learned number, the intensity and the dose; kinks of probability 0."""
    flow = wild(0, (2, 2, 3))
    intensity = torch.linspace(1, 14, 6, dtype=torch.float64)[None]
    counts = flow.sample(intensity, 1.0, Key(1, "noise"))

    def total(intensity, dose, *made):
        law = Flow(2.0, Layers(*made), 3.0, 10.0, 50.0)
        return law.log_prob(counts, intensity, dose)

    start = [part.clone().requires_grad_() for part in (
        intensity, torch.tensor(1.01, dtype=torch.float64), *flow.layers)]
    assert torch.autograd.gradcheck(total, start, rtol=1e-5, atol=1e-5)


def test_it_is_a_likelihood_and_leaves_out_what_is_not_finite():
    flow = wild(0)
    assert isinstance(flow, Likelihood)
    intensity = torch.full((1, 3), 6.0, dtype=torch.float64)
    counts = torch.tensor([[20.0, 25.0, math.nan]], dtype=torch.float64)
    known = flow.log_prob(counts[:, :2], intensity[:, :2], 1.0)
    assert float(flow.log_prob(counts, intensity, 1.0)) == pytest.approx(float(known))
    with pytest.raises(ValueError, match="counts has shape"):
        flow.log_prob(counts[:, :2], intensity, 1.0)
    with pytest.raises(ValueError, match="high"):
        Flow(1.0, flow.layers, 1.0, 5.0, 5.0)


def skewed(n, seed):
    """Noise that grows with the signal and has a long tail to the right, of mean 0."""
    rng = np.random.default_rng(seed)
    clean = rng.uniform(2.0, 30.0, n)
    shape = 0.5 + clean / 6
    noise = 3.0 * (rng.gamma(shape) - shape) + 0.5 * rng.standard_normal(n)
    return torch.tensor(clean), torch.tensor(clean + noise)


def test_a_learned_flow_is_nearer_to_skewed_noise_than_gauss_and_poisson():
    clean, noisy = skewed(20000, 0)
    other, seen = skewed(20000, 1)
    flow = learn(clean, noisy, steps=100, rate=0.05, batch=4096)
    found = {name: distance(law.distribution, other, seen) for name, law in (
        ("flow", flow), ("gauss", gauss(clean, noisy)), ("poisson", poisson(clean, noisy)))}
    for name in ("gauss", "poisson"):
        assert found["flow"].jensen_shannon < 0.5 * found[name].jensen_shannon
        assert found["flow"].bhattacharyya > found[name].bhattacharyya
    # Quantiles hold as many as they say, to 1.5 %.
    assert found["flow"].coverage < 0.015


def test_poisson_and_gauss_find_their_own():
    rng = np.random.default_rng(0)
    clean = torch.tensor(rng.uniform(20.0, 200.0, 20000))
    seen = 4.0 * torch.tensor(rng.poisson((clean + 30.0).numpy() / 4.0)).double() - 30.0
    found = poisson(clean, seen)
    assert found.gain == pytest.approx(4.0, rel=0.04)
    assert found.offset == pytest.approx(30.0, abs=6.0)
    law = gauss(clean, clean + 2.0 + 3.0 * torch.tensor(rng.standard_normal(20000)))
    assert (law.mean, law.deviation) == pytest.approx((2.0, 3.0), abs=0.1)


def test_divergences_of_known_laws():
    one, other = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.0, 3.0])
    assert float(jensen_shannon(one, one)) == 0 and float(bhattacharyya(one, one)) == 1
    assert float(jensen_shannon(one, other)) == 1 and float(bhattacharyya(one, other)) == 0
    half = torch.tensor([1.0, 0.0, 0.0])
    assert float(bhattacharyya(one, half)) == pytest.approx(0.5**0.5)
    # 3/4 and 1/4 in the mean: (log2(1 / .75) + .5 log2(.5 / .75) + .5 log2(.5 / .25)) / 2.
    wanted = (math.log2(4 / 3) + 0.5 * math.log2(2 / 3) + 0.5) / 2
    assert float(jensen_shannon(one, half)) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="probabilities"):
        jensen_shannon(-one, one)
