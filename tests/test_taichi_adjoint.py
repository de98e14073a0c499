"""The hand-written adjoint of the splat against Taichi's own.

Taichi's check that no kernel overwrites what it read (Tape(validation=True)) fails on every kernel
of ndarrays in 1.7.4, so it cannot be used; the splat reads and adds to its slices only where the
thread owns them, and its adjoint writes each gradient once.
"""

import numpy as np
import taichi as ti
import torch
from taichi_twins import plain_splat, weighted_sum

from tem_taichi.potential import _splat, peng_table


def case():
    rng = np.random.default_rng(2)
    n, radius = 12, 9
    table = peng_table().double()
    table[:, 1] += 17.0
    floats = [rng.uniform(0, 20, n), rng.uniform(0, 18, n), rng.random(n), rng.random(n) * 5]
    kind, index = rng.choice([1, 6, 8, 26], n), rng.integers(0, 2, n)
    weights = rng.standard_normal((2, 18, 20))
    return ([torch.as_tensor(f) for f in floats], torch.as_tensor(kind).int(),
            torch.as_tensor(index).int(), radius, table, torch.as_tensor(weights))


def run(stage):
    """Slices, and the gradient of their weighted sum by a Taichi tape."""
    inputs, kind, index, radius, table, weights = case()
    out = torch.zeros_like(weights)
    loss = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for t in (*inputs, out, loss):
        t.grad = torch.zeros_like(t)
    with ti.ad.Tape(loss):
        stage(inputs, kind, index, radius, table, out)
        weighted_sum(out, weights, loss)
    return out, [t.grad for t in inputs]


def test_adjoint_is_taichis(double):
    mine = run(lambda inputs, kind, index, radius, table, out: _splat(
        *inputs, kind, torch.full_like(kind, radius), index, table, out))
    plain = run(lambda inputs, kind, index, radius, table, out: plain_splat(
        *inputs, kind, index, table, radius, out))
    # float64 sums in another order, and recurrences over 9 pixels
    assert torch.allclose(mine[0], plain[0], rtol=1e-11, atol=1e-12)
    for found, expected in zip(mine[1], plain[1], strict=True):
        assert float(expected.abs().max()) > 0
        assert float((found - expected).abs().max()) < 1e-11 * float(expected.abs().max())
