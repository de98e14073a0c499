import math
from dataclasses import replace

import numpy as np
import pytest
import taichi as ti
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import exact_potential, in_band

from tem_taichi import read_structure, slice_potential
from tem_taichi.device import as_tensor, current
from tem_taichi.physics import SCATTERING_TO_POTENTIAL
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.depth import depth_weights
from tem_taichi.specimen.potential import (
    Gaussians,
    narrow,
    peng_table,
    render,
    splat,
)
from tem_taichi.specimen.splatting import _TAIL, WIDENING

ELEMENTS = (1, 6, 7, 8, 15, 16, 26, 79)

BAND_ERROR = 1e-3
"""The accuracy promised inside 2/3 Nyquist; the method was measured at 2e-4 to 6e-4."""


def make_atoms(positions, numbers=None, b_factors=0.0, occupancies=1.0, water=False):
    positions = as_tensor(positions)
    n = len(positions)
    numbers = np.resize(ELEMENTS, n) if numbers is None else np.broadcast_to(numbers, n)
    return Atoms(torch.as_tensor(np.array(numbers)), positions,
                 as_tensor(b_factors) * torch.ones(n, dtype=current().dtype),
                 as_tensor(occupancies) * torch.ones(n, dtype=current().dtype),
                 torch.full((n,), water))


def random_atoms(rng, n, box, **kwargs):
    return make_atoms((rng.random((n, 3)) - 0.5) * np.asarray(box) * 0.95, **kwargs)


def band_error(slices, expected):
    """Relative L2 distance to exact Fourier coefficients inside the band."""
    mask = in_band(slices.shape[-2:])
    found = np.fft.fft2(slices.sum(0).double().numpy())
    return np.linalg.norm((found - expected)[mask]) / np.linalg.norm(expected[mask])


@settings(deadline=None, max_examples=40)
@given(st.integers(24, 70), st.integers(24, 70), st.floats(0.3, 5.0), st.floats(0.0, 500.0),
       st.integers(0, 2**31))
def test_exact_fourier_sum(ny, nx, pixel_size, b_factor, seed):
    rng = np.random.default_rng(seed)
    box = np.array([nx, ny, 4]) * pixel_size - np.array([2, 2, 0]) * pixel_size
    atoms = random_atoms(rng, 30, box, b_factors=b_factor, occupancies=rng.random(30))
    slices = slice_potential(atoms, (ny, nx), pixel_size, pixel_size, 4 * pixel_size)
    expected = exact_potential(atoms.numbers, atoms.positions.double().numpy(),
                               atoms.b_factors.numpy(), atoms.occupancies.double().numpy(),
                               (ny, nx), pixel_size)
    assert band_error(slices, expected) < BAND_ERROR


def test_every_element_of_the_table():
    for number in range(1, 99):
        atoms = make_atoms([[0.3, -0.2, 0.0]], numbers=[number])
        slices = slice_potential(atoms, (32, 32), 1.0, 1.0, 1.0)
        expected = exact_potential([number], [[0.3, -0.2]], [0.0], [1.0], (32, 32), 1.0)
        assert band_error(slices, expected) < BAND_ERROR


def test_apoferritin_against_the_exact_sum_of_an_outside_program(shared):
    """Their table of Peng's factors differs from ours by 1e-4."""
    data = np.load(shared / "reference/abtem/apoferritin_4v1w_heavy.npz")
    atoms = make_atoms(data["xyz"], numbers=data["Z"])
    name = "apoferritin_256_1.0A_peng_exact_projected_potential.npz"
    exact = np.load(shared / "reference/abtem" / name)["exact"].T
    slices = slice_potential(atoms, (256, 256), 1.0, 10.0, 160.0)
    assert band_error(slices, np.fft.fft2(exact)) < BAND_ERROR


def test_splat_is_its_twin(double):
    """The kernel's recurrences against the Gaussians themselves, on the same stencil."""
    rng = np.random.default_rng(3)
    n, shape = 40, (3, 37, 50)
    x, y = rng.uniform(0, 50, n), rng.uniform(0, 37, n)
    weight, broadening = rng.random(n), rng.random(n) * 10
    index, kind = rng.integers(0, 3, n), rng.choice(ELEMENTS, n)
    table = peng_table().numpy()
    out = splat(torch.zeros(shape, dtype=torch.float64), *(torch.as_tensor(v) for v in (
        x, y, index, weight, broadening, kind)), torch.as_tensor(table))
    expected = np.zeros(shape)
    for i in range(n):
        a, b = table[kind[i], 0], table[kind[i], 1] + WIDENING + broadening[i]
        share = np.log(np.clip(np.abs(a) / np.abs(a).sum() / _TAIL, 1, None))
        radius = max(1, math.ceil(np.sqrt((b * share).max()) / np.pi - 0.5))
        cx, cy = math.floor(x[i] + 0.5), math.floor(y[i] + 0.5)
        for row in range(cy - radius, cy + radius + 1):
            for column in range(cx - radius - 1, cx + radius + 1):
                squared = (row - y[i]) ** 2 + (column - x[i]) ** 2
                expected[index[i], row % 37, column % 50] += weight[i] * (
                    a * np.pi / b * np.exp(-np.pi**2 * squared / b)).sum()
    assert np.abs(out.numpy() - expected).max() < 1e-12 * expected.max()


def test_a_slice_holds_the_atoms_of_its_depth():
    z = np.array([-14.9, -5.1, -4.9, 4.9, 14.9])
    atoms = make_atoms(np.stack([0 * z, 0 * z, z], axis=1), numbers=6)
    sums = slice_potential(atoms, (32, 32), 1.0, 10.0, 30.0).sum((1, 2))
    one = float(slice_potential(atoms[:1], (32, 32), 1.0, 10.0, 30.0).sum())
    assert np.allclose(sums.numpy() / one, [2, 2, 1], rtol=1e-5)


def test_the_mean_is_the_forward_scattering():
    """Tails of at most _TAIL are cut."""
    slices = slice_potential(make_atoms([[1.2, 3.4, 0]], numbers=8), (40, 44), 0.8, 1.0, 1.0)
    forward = float(peng_table()[8, 0].sum())
    expected = SCATTERING_TO_POTENTIAL * forward / 0.8**2
    assert float(slices.sum()) == pytest.approx(expected, rel=2 * _TAIL)


def test_x_runs_along_columns_and_y_along_rows():
    slices = slice_potential(make_atoms([[5.0, -3.0, 0.0]], numbers=79), (32, 48), 1.0, 1.0, 1.0)
    assert divmod(int(slices[0].argmax()), 48) == (32 // 2 - 3, 48 // 2 + 5)


def test_periodic_and_clip():
    inside = make_atoms([[5.0, -3.0, 1.0]], numbers=16)
    outside = make_atoms([[5.0 + 32, -3.0 - 2 * 24, 1.0 - 8]], numbers=16)
    box = dict(shape=(24, 32), pixel_size=1.0, slice_thickness=4.0, thickness=8.0)
    expected = slice_potential(inside, **box)
    with pytest.raises(ValueError, match=r"1 atoms lie outside the box .* periodic=True or clip"):
        slice_potential(outside, **box)
    wrapped = slice_potential(outside, **box, periodic=True)
    # float32 positions of a few tens of pixels
    assert torch.allclose(wrapped, expected, atol=1e-4 * float(expected.max()))
    assert float(slice_potential(outside, **box, clip=True).abs().max()) == 0


def test_smooth_depth_shares_an_atom_between_two_slices(double):
    z = torch.linspace(0, 5, 101, dtype=torch.float64)
    layers, weights = depth_weights(z, 5, "smooth")
    assert layers.shape == weights.shape == (2, 101)
    assert bool((weights >= 0).all()) and torch.allclose(weights.sum(0), torch.ones_like(z))
    inner = (z >= 0.5) & (z <= 4.5)  # the mean depth is its own, but for the outermost halves
    assert torch.allclose(((layers + 0.5) * weights).sum(0)[inner], z[inner], rtol=1e-14)
    # One for each slice, so that no thread adds twice to what it owns.
    assert bool((layers[1] == layers[0] + 1).all())
    atoms = make_atoms([[0.0, 0.0, 2.0]], numbers=6)
    both = slice_potential(atoms, (32, 32), 1.0, 10.0, 40.0, depth="smooth")
    whole = slice_potential(atoms, (32, 32), 1.0, 10.0, 40.0)
    assert torch.allclose(both.sum(0), whole.sum(0), atol=1e-4)
    assert int((both.abs().amax((1, 2)) > 1).sum()) == 2


def test_same_sum_in_every_run():
    atoms = random_atoms(np.random.default_rng(0), 5000, [60, 60, 60], b_factors=30.0)
    first, *others = (slice_potential(atoms, (64, 64), 1.0, 10.0, 60.0) for _ in range(4))
    assert all(torch.equal(first, other) for other in others)


def test_order_of_the_atoms_does_not_matter():
    atoms = random_atoms(np.random.default_rng(1), 500, [60, 60, 60])
    shuffled = atoms[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    a, b = (slice_potential(x, (64, 64), 1.0, 10.0, 60.0) for x in (atoms, shuffled))
    assert float((a - b).abs().max()) < 1e-5 * float(a.max())  # float32 sums


def test_parts_of_a_stack_are_the_whole(double):
    atoms = random_atoms(np.random.default_rng(2), 200, [30, 30, 40])
    pixels = atoms.positions / as_tensor([1, 1, 5.0]) + as_tensor([16, 16, 4])
    group = Gaussians(atoms.occupancies, atoms.b_factors / 4, atoms.numbers, peng_table())

    def part(first, count, depth):
        out = torch.zeros(count, 32, 32, dtype=torch.float64)
        return render(out, (group,), pixels, 1.0, first_slice=first, n_slices=8, depth=depth)

    for depth in ("nearest", "smooth"):
        pieces = torch.cat([part(0, 3, depth), part(3, 1, depth), part(4, 4, depth)])
        assert torch.equal(pieces, part(0, 8, depth))


def test_water_in_ice_has_no_mean_contrast():
    """Oxygen and two hydrogens have the potential of the ice that they displace, to 1 %: the
    4.48 V of ice are its atoms' sum to three digits."""
    water = make_atoms(np.zeros((3, 3)), numbers=[8, 1, 1], water=True)
    vacuum, ice = (float(slice_potential(water, (64, 64), 0.5, 1.0, 1.0,
                                         solvent_potential=u).sum()) for u in (0.0, 4.48))
    assert abs(ice) < 0.01 * vacuum


def test_protein_in_ice_keeps_a_third_of_its_contrast():
    """Protein's mean potential of about 6.5 to 8 V against 4.48 V of ice."""
    atoms = read_structure("4v1w", hydrogens="parent").centred()
    box = dict(shape=(128, 128), pixel_size=2.0, slice_thickness=150.0, thickness=150.0)
    vacuum = float(slice_potential(atoms, **box).sum())
    ice = float(slice_potential(atoms, **box, solvent_potential=4.48).sum())
    assert 0.25 < ice / vacuum < 0.5


@pytest.mark.parametrize("depth", ["nearest", "smooth"])
def test_gradients(double, depth):
    rng = np.random.default_rng(5)
    n = 9
    atoms = random_atoms(rng, n, [12, 12, 12], b_factors=rng.random(n) * 30 + 1,
                         occupancies=rng.random(n))
    columns = atoms.positions.T.contiguous()[: 3 if depth == "smooth" else 2].requires_grad_()
    solvent = as_tensor(4.48).requires_grad_()
    b, occupancy = atoms.b_factors.requires_grad_(), atoms.occupancies.requires_grad_()

    def slices(columns, b, occupancy, solvent):
        z = atoms.positions[:, 2:].T if len(columns) == 2 else columns[2:]
        moved = Atoms(atoms.numbers, torch.cat([columns[:2], z]).T, b, occupancy, atoms.is_water)
        return slice_potential(moved, (11, 12), 1.5, 4.0, 14.0, depth=depth,
                               solvent_potential=solvent)

    # The cut-off of a stencil is no smooth function of B or position: 2e-4 of a Gaussian's
    # tail. Positions and B here keep every stencil as it is within the finite difference.
    assert torch.autograd.gradcheck(slices, (columns, b, occupancy, solvent))


def test_slices_are_smooth_in_z_where_a_gradient_is_asked_for(double):
    """By default; images without gradients stay as they were, and "nearest" has none in z."""
    box = ((32, 32), 1.0, 2.0, 10.0)
    atoms = make_atoms([[0.2, 0.1, 3.3]], numbers=6)
    plain = slice_potential(atoms, *box)
    assert torch.equal(plain, slice_potential(atoms, *box, depth="nearest"))
    position = atoms.positions.requires_grad_()
    smooth = slice_potential(atoms, *box)
    assert torch.equal(smooth, slice_potential(atoms, *box, depth="smooth"))
    with torch.no_grad():  # the same function with and without
        assert torch.equal(smooth, slice_potential(atoms, *box))
    gradient, = torch.autograd.grad(smooth[4].square().sum(), position)
    assert abs(float(gradient[0, 2])) > 0
    hard = slice_potential(atoms, *box, depth="nearest")
    gradient, = torch.autograd.grad(hard[4].square().sum(), position)
    assert float(gradient[0, 2]) == 0 and torch.equal(hard, plain)


def test_a_single_slice_holds_every_atom_whole_at_either_depth():
    atoms = make_atoms([[0.2, 0.1, z] for z in (-4.9, 0.0, 3.0, 4.9)], numbers=6)
    hard, smooth = (slice_potential(atoms, (32, 32), 1.0, 10.0, 10.0, depth=depth)
                    for depth in ("nearest", "smooth"))
    assert torch.equal(hard, smooth)


def test_splat_under_a_taichi_tape(double):
    """The stage also runs on Taichi's own tape, with a loss that is a kernel."""
    from tem_taichi.specimen.splatting import _splat

    @ti.kernel
    def power(slices: ti.types.ndarray(ndim=3, needs_grad=True),
              loss: ti.types.ndarray(ndim=1, needs_grad=True)):
        for s, y, x in slices:
            loss[0] += slices[s, y, x] ** 2

    atoms = random_atoms(np.random.default_rng(0), 5, [20, 20, 1], numbers=6)
    x, y = (atoms.positions[:, i].contiguous() + 16 for i in (0, 1))
    out, loss = torch.zeros(1, 32, 32, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    loss.requires_grad_()  # Taichi's tape asks for it
    for t in (x, y, out, loss):
        t.grad = torch.zeros_like(t)
    table = peng_table()
    table[:, 1] += 14
    one, kind = torch.ones(5, dtype=torch.float64), torch.full((5,), 6, dtype=torch.int32)
    radius, index = (torch.full((5,), v, dtype=torch.int32) for v in (6, 0))
    with ti.ad.Tape(loss):
        _splat(x, y, one, 0 * one, kind, radius, index, table, out)
        power(out, loss)

    shift = 1e-5
    moved = []
    for sign in (1, -1):
        again = torch.zeros_like(out)
        _splat(x + sign * shift * torch.eye(5, dtype=torch.float64)[2], y, one, 0 * one, kind,
               radius, index, table, again)
        moved.append(float((again**2).sum()))
    # central difference of a quadratic loss: rounding 1e-16 * loss / shift
    assert float(x.grad[2]) == pytest.approx((moved[0] - moved[1]) / (2 * shift), rel=1e-6)


def test_no_atoms():
    assert float(slice_potential(make_atoms(np.empty((0, 3))), (16, 16), 1.0, 1.0, 2.0).max()) == 0


def test_narrow_is_zero_outside_the_band():
    stack = narrow(torch.rand(1, 32, 32))
    outside = ~torch.as_tensor(in_band((32, 32)))
    outside &= torch.as_tensor(np.hypot(*np.meshgrid(*[np.fft.fftfreq(32)] * 2)) > 1 / 3 + 1e-5)
    assert float(torch.fft.fft2(stack[0])[outside].abs().max()) < 1e-4


@pytest.mark.parametrize(("changed", "message"), [
    ({"pixel_size": 0.0}, "pixel_size=0.0"),
    ({"slice_thickness": -2.0}, "slice_thickness=-2.0"),
    ({"thickness": math.nan}, "thickness=nan"),
    ({"slice_thickness": 50.0}, "slice_thickness=50.0: must be at most thickness=10.0"),
    ({"shape": (0, 8)}, "shape="), ({"shape": 8}, "shape=8"), ({"shape": (8.5, 8)}, "shape="),
    ({"depth": "soft"}, "depth='soft': must be 'nearest' or 'smooth'"),
])
def test_impossible_values(changed, message):
    arguments = dict(shape=(16, 16), pixel_size=1.0, slice_thickness=5.0, thickness=10.0)
    with pytest.raises(ValueError, match=message):
        slice_potential(make_atoms([[0.0, 0.0, 0.0]]), **{**arguments, **changed})


def test_single_gaussians_share_what_is_the_same():
    """One width for all takes no memory for each, and renders as a width given for each."""
    weight = as_tensor([1.0, 2.0, -0.5])
    one, each = Gaussians.single(weight, 40.0), Gaussians.single(weight, torch.full((3,), 40.0))
    assert one.broadening.stride() == one.kind.stride() == (0,)
    pixels = as_tensor([[5.0, 6.0, 0.5], [9.2, 3.3, 0.5], [11.0, 12.7, 0.5]])
    images = [render(torch.zeros(1, 16, 16), [group], pixels, 1.5) for group in (one, each)]
    assert torch.equal(*images)
    assert float(images[0].sum()) == pytest.approx(2.5, rel=_TAIL)  # less what stencils leave out


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_the_way_back_of_narrowing_leaves_the_gradient_it_was_given(double, kind):
    grad = torch.randn(2, 8, 9, dtype=kind)
    before, splatted = grad.clone(), torch.randn(2, 8, 9, dtype=kind, requires_grad=True)
    found, = torch.autograd.grad(narrow(splatted.clone(), 2.0), splatted, grad)
    assert torch.equal(grad, before)
    # Its own adjoint; rounding of transforms.
    assert torch.allclose(found, narrow(grad, 2.0), rtol=0, atol=1e-11)


def test_empty_slices_stay_empty_and_others_do_not(double):
    """Least values and negative zeros count as what they are, also beside an empty slice."""
    splatted = torch.zeros(3, 8, 8, dtype=torch.float64)
    splatted[1, 2, 3] = 1e-300
    held = narrow(splatted).abs().amax((1, 2))
    assert held[0] == held[2] == 0 < held[1]


def test_positions_have_the_same_gradient_whether_b_factors_have_one(double):
    atoms = make_atoms([[0.3, -1.2, 0.4], [2.1, 0.7, -1.0]], b_factors=[10.0, 30.0])

    def gradient(with_b):
        moved = replace(atoms, positions=atoms.positions.clone().requires_grad_(),
                        b_factors=atoms.b_factors.clone().requires_grad_(with_b))
        slices = slice_potential(moved, (16, 16), 1.0, 4.0, 8.0)
        slices.square().sum().backward()
        return moved.positions.grad

    alone, beside = gradient(False), gradient(True)
    assert float(alone.abs().min()) > 0
    assert torch.allclose(alone, beside, rtol=1e-12)  # the order of sums in another kernel
