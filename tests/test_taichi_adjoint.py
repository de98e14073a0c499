"""The hand-written adjoint of the splat against Taichi's own.

Taichi's check that no kernel overwrites what it read (Tape(validation=True)) fails on every kernel
of ndarrays in 1.7.4, so it is run on the same plain splat over fields; the fast splat adds to its
slices only where the thread owns them, and its adjoint writes each gradient once.
"""

import numpy as np
import pytest
import taichi as ti
import torch
from taichi_twins import field_splat, plain_splat, weighted_sum

from tem_taichi.device import init
from tem_taichi.specimen.potential import peng_table
from tem_taichi.specimen.splatting import _splat


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


@pytest.fixture
def checked_fields():
    """Taichi that checks each access; fields are lost when it starts again."""
    ti.init(arch=ti.cpu, debug=True, default_fp=ti.f64, log_level=ti.ERROR)
    yield
    init("cpu", "float64")  # another precision, so that it does start again


def field(values, dtype=ti.f64, needs_grad=True):
    made = ti.field(dtype, tuple(values.shape), needs_grad=needs_grad)
    made.from_torch(values)
    return made


def test_plain_splat_overwrites_nothing_that_it_read(checked_fields):
    inputs, kind, index, radius, table, weights = case()
    fields = [field(t) for t in inputs]
    plain = [field(t, ti.i32, needs_grad=False) for t in (kind, index)]
    out, loss = field(torch.zeros_like(weights)), ti.field(ti.f64, (), needs_grad=True)
    factor = field(weights, needs_grad=False)
    table = field(table, needs_grad=False)

    @ti.kernel
    def total():
        for s, y, x in out:
            loss[None] += out[s, y, x] * factor[s, y, x]

    @ti.kernel
    def square_in_place():
        for i in fields[2]:
            loss[None] += fields[2][i]
            fields[2][i] = fields[2][i] ** 2

    with ti.ad.Tape(loss, validation=True):
        field_splat(*fields, *plain, table, radius, out)
        total()
    expected = run(lambda inputs, kind, index, radius, table, out: _splat(
        *inputs, kind, torch.full_like(kind, radius), index, table, out))[1]
    for found, ours in zip(fields, expected, strict=True):
        assert torch.allclose(found.grad.to_torch(), ours, rtol=1e-10, atol=1e-12)  # another order
    with pytest.raises(ti.TaichiAssertionError), ti.ad.Tape(loss, validation=True):
        square_in_place()  # so that the check is known to be on


def test_multislice_under_a_taichi_tape(double):
    """Its stage on the tape, with a kernel for a loss, gives the gradient that torch gets."""
    from tem_taichi import multislice
    from tem_taichi.instrument.multislice import _fresnel_factors, _interact
    from tem_taichi.physics import interaction_constant, wavelength

    generator = torch.Generator().manual_seed(0)
    slices = 100 * torch.rand(5, 12, 16, dtype=torch.float64, generator=generator)
    weights = torch.rand(12, 16, 2, dtype=torch.float64, generator=generator)
    by_torch = slices.clone().requires_grad_()
    wave = multislice(by_torch, 1.0, 10.0, 300.0)
    (torch.view_as_real(wave) * weights).sum().backward()

    rows, columns = _fresnel_factors((12, 16), 1.0, wavelength(300.0), 10.0)
    phase = torch.full((1,), interaction_constant(300.0), dtype=torch.float64)
    incident = torch.ones(12, 16, dtype=torch.complex128)
    kept, out = torch.empty(5, 12, 16, dtype=torch.complex128), torch.empty_like(incident)
    out.grad = torch.zeros_like(out)
    seen = torch.view_as_real(out)
    seen.grad = torch.view_as_real(out.grad)
    slices.grad = torch.zeros_like(slices)
    loss = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss.grad = torch.zeros_like(loss)
    with ti.ad.Tape(loss):
        _interact(slices, slices[:0], incident, rows, columns, phase, 0 * phase, 1, kept, out)
        weighted_sum(seen, weights, loss)
    assert torch.allclose(slices.grad, by_torch.grad, rtol=1e-12)
    assert float(slices.grad.abs().max()) > 0
