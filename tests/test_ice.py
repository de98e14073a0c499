import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tem_taichi import read_structure, slice_potential
from tem_taichi.device import as_tensor
from tem_taichi.instrument.multislice import multislice
from tem_taichi.instrument.optics import Optics, ctf, form_image
from tem_taichi.physics import interaction_constant
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.ice import (
    CARBON_DENSITY,
    ICE_DENSITY,
    MATERIALS,
    carbon_structure_factor,
    ice_power,
    ice_slice,
    mean_potential,
    molecule_scattering,
    slab_structure_factor,
    structure_factor,
)

# g(r) of the oxygens in the EPSR model of low-density amorphous ice at 80 K, refined against
# three neutron diffraction patterns (Soper 2019, J. Chem. Phys. 150, 234503; data of STFC,
# doi 10.5286/edata/729, CC BY 4.0).
EPSR_DENSITY = 0.031233
EPSR_G = {2.535: 1.3550, 2.655: 4.2730, 2.715: 4.3802, 2.835: 2.1884, 3.015: 0.4497,
          3.255: 0.2019, 3.615: 0.4050, 3.915: 0.8728, 4.215: 1.4097, 4.455: 1.6023,
          4.695: 1.4494, 4.995: 1.0962, 5.295: 0.9017, 5.655: 0.8343, 6.015: 0.8640,
          6.375: 0.9883, 6.735: 1.0530, 7.095: 0.9801, 7.395: 0.9466, 7.755: 0.9944}


def frequencies(shape, pixel_size):
    ky, kx = (np.fft.fftfreq(n, d=pixel_size) for n in shape)
    return np.hypot(ky[:, None], kx[None, :])


def power(image, pixel_size):
    """|V(k)|^2 per area [V^2 A^4] of a periodic image."""
    spectrum = np.fft.fft2(image.double().numpy()) * pixel_size**2
    return np.abs(spectrum) ** 2 / (image.numel() * pixel_size**2)


def rings(values, k, edges):
    """Means over rings, and how many independent coefficients each holds."""
    index = np.digitize(k, edges) - 1
    inside = (index >= 0) & (index < len(edges) - 1)
    count = np.bincount(index[inside], minlength=len(edges) - 1)
    total = np.bincount(index[inside], values[inside], minlength=len(edges) - 1)
    return total / count, count / 2


def pair_distribution(r, density):
    """g(r) = 1 + integral (S - 1) sin(2 pi k r) 2 k dk / (density r)."""
    k = torch.arange(0.5, 8000, dtype=torch.float64)[:, None] * 5e-4
    wave = (structure_factor(k) - 1) * torch.sin(2 * math.pi * k * r) * 2 * k
    return 1 + wave.sum(0) * 5e-4 / (density * r)


def water(rng, n, box):
    """Molecules anywhere, in any orientation: positions (3 n, 3), numbers."""
    angle = 2 * math.asin(1.55 / 2 / 0.976)
    molecule = np.array([[0, 0, 0], [0.976, 0, 0],
                         [0.976 * math.cos(angle), 0.976 * math.sin(angle), 0]])
    turns = np.linalg.qr(rng.standard_normal((n, 3, 3)))[0]
    centres = (rng.random((n, 3)) - 0.5) * box
    return (centres[:, None] + np.einsum("nij,aj->nai", turns, molecule)).reshape(-1, 3)


def atoms_of(positions):
    n = len(positions)
    numbers = torch.tensor([8, 1, 1]).repeat(n // 3)
    return Atoms(numbers, as_tensor(positions), torch.zeros(n, dtype=as_tensor(0).dtype),
                 torch.ones(n, dtype=as_tensor(0).dtype), torch.ones(n, dtype=torch.bool))


def test_structure_factor_has_its_limits_and_rings(double):
    k = torch.linspace(0, 4, 4001, dtype=torch.float64)
    s = structure_factor(k)
    assert float(s[0]) == pytest.approx(0.012)
    assert float(s.min()) > 0.01
    assert float((s[k > 2.5] - 1).abs().max()) < 0.02
    inner = [s.where((k > low) & (k < high), as_tensor(0.0)).argmax()
             for low, high in ((0.2, 0.35), (0.4, 0.6))]
    # Rings of amorphous ice in diffraction patterns: 3.7 A and 2.1 A.
    assert [1 / float(k[i]) for i in inner] == pytest.approx([3.7, 2.1], abs=0.06)


def test_structure_factor_is_that_of_the_refined_model_of_ice(double):
    g = np.array(list(EPSR_G.values()))
    found = pair_distribution(torch.tensor(list(EPSR_G), dtype=torch.float64), EPSR_DENSITY)
    # What 19 numbers for the whole curve leave: RMS, or the share of the first peak.
    error = (found.numpy() - g) / np.maximum(1, g)
    assert np.abs(error).max() < 0.2
    assert np.sqrt(np.mean(error**2)) < 0.08


def test_four_neighbours(double):
    r = torch.arange(180, 330, dtype=torch.float64) / 100
    g = pair_distribution(r, EPSR_DENSITY)
    # 3.95 in the refined model up to 3.3 A.
    assert float(4 * math.pi * EPSR_DENSITY * (g * r**2).sum() / 100) == pytest.approx(3.95,
                                                                                    abs=0.2)


def test_carbon_is_a_fluid_of_hard_spheres(double):
    # Carnahan & Starling (1969): S(0) = (1 - f)^4 / ((1 + 2 f)^2 + f^3 (f - 4)), f filled.
    f = math.pi / 6 * CARBON_DENSITY * 1.42**3
    expected = (1 - f) ** 4 / ((1 + 2 * f) ** 2 + f**3 * (f - 4))
    s = carbon_structure_factor(torch.linspace(0, 20, 4001, dtype=torch.float64))
    assert float(s[0]) == pytest.approx(expected, rel=0.01)  # PY's compressibility at f = 0.15
    assert float(s.min()) > 0.3
    assert float((s[-500:] - 1).abs().max()) < 0.01


def test_mean_potential_of_ice():
    # The atoms' sum at 0.92 g/cm^3 is 4.48 V; measured films of carbon have 9 to 11 V.
    assert mean_potential() == pytest.approx(4.48, abs=0.01)
    assert 9 < mean_potential("carbon") < 13


def test_scattering_of_a_molecule_at_its_limits(double):
    mean, square = molecule_scattering(as_tensor([0.0, 1.0]))
    assert float(square[0]) == pytest.approx(float(mean[0]) ** 2)
    assert float(square[1]) > float(mean[1]) ** 2


def test_molecules_without_order_scatter_like_one(double):
    rng = np.random.default_rng(5)
    box, n, shape, pixel_size = 40.0, 2000, (80, 80), 0.5
    k, edges = frequencies(shape, pixel_size), np.linspace(0.05, 0.65, 13)
    found = 0
    for _ in range(4):
        slices = slice_potential(atoms_of(water(rng, n, box)), shape, pixel_size, box, box,
                                 periodic=True)
        found = found + power(slices[0], pixel_size) / 4
    density = n / box**3
    gas = ice_power(as_tensor(k), torch.ones(shape, dtype=torch.float64)) / ICE_DENSITY
    measured, modes = rings(found, k, edges)
    expected, _ = rings(gas.numpy() * density * box, k, edges)
    # |V|^2 is exponentially distributed: a mean over m coefficients is off by 1 / sqrt(m).
    assert np.all(np.abs(measured / expected - 1) < 4.5 / np.sqrt(4 * modes))


@settings(deadline=None, max_examples=15)
@given(st.integers(60, 220), st.integers(60, 220), st.floats(0.4, 3.0), st.floats(1.0, 500.0),
       st.integers(0, 2**63), st.sampled_from(sorted(MATERIALS)))
def test_spectrum_of_a_slice_is_that_of_the_material(ny, nx, pixel_size, thickness, seed,
                                                      material):
    image = ice_slice((ny, nx), pixel_size, thickness, seed, 0, 3, material=material)
    k = frequencies((ny, nx), pixel_size)
    ratio = power(image, pixel_size) / (
        thickness * MATERIALS[material](as_tensor(k)).double().numpy())
    band = k * pixel_size <= 1 / 3 + 1e-9
    inside = ratio[band & (k > 0)]
    # Mean of exponential numbers, each of which occurs at k and -k.
    assert abs(inside.mean() - 1) < 5 * math.sqrt(2 / inside.size)
    assert abs((inside**2).mean() - 2) < 5 * math.sqrt(2 * 20 / inside.size)
    assert ratio[~band].max() < 1e-6 and ratio[0, 0] < 1e-6  # rounding in float32


def test_every_ring_of_the_spectrum():
    k, edges = frequencies((256, 256), 0.8), np.linspace(0.01, 0.41, 21)
    found = sum(power(ice_slice((256, 256), 0.8, 20.0, 1, 0, i), 0.8) for i in range(8)) / 8
    measured, modes = rings(found, k, edges)
    expected, _ = rings(20 * ice_power(as_tensor(k)).double().numpy(), k, edges)
    assert np.all(np.abs(measured / expected - 1) < 4.5 / np.sqrt(8 * modes))


def test_variance_grows_with_the_volume():
    k = frequencies((512, 512), 1.0)
    band = (k <= 1 / 3) & (k > 0)
    expected = 30 * ice_power(as_tensor(k[band])).double().sum() / 512**2
    found = ice_slice((512, 512), 1.0, 30.0, 0, 0, 0).double().var()
    assert float(found / expected) == pytest.approx(1, abs=5 * math.sqrt(4 / band.sum()))


def test_slices_are_independent():
    stack = torch.stack([ice_slice((256, 256), 1.0, 5.0, 7, s, i).double()
                         for s in (0, 1) for i in (-1, 0, 1, 2)])
    stack = torch.cat([stack, ice_slice((256, 256), 1.0, 5.0, 8, 0, 0).double()[None],
                       ice_slice((256, 256), 1.0, 5.0, 7, 0, 0, material="carbon").double()[None]])
    correlation = torch.corrcoef(stack.flatten(1)).fill_diagonal_(0)
    # Between fields of so many coefficients (pi / 9 of the pixels, weighted by the spectrum).
    assert float(correlation.abs().max()) < 5 / math.sqrt(256**2 * math.pi / 9 / 2)


def test_a_slice_does_not_depend_on_the_others():
    first = ice_slice((96, 80), 1.0, 20.0, 3, 2, 5)
    ice_slice((64, 64), 2.0, 10.0, 3, 2, 4)
    assert torch.equal(ice_slice((96, 80), 1.0, 20.0, 3, 2, 5), first)
    thicker = ice_slice((96, 80), 1.0, 80.0, 3, 2, 5)
    torch.testing.assert_close(thicker, 2 * first)


def test_same_field_in_both_precisions(double):
    from tem_taichi.device import init
    fine = ice_slice((96, 80), 1.0, 20.0, 3, 2, 5)
    init("cpu", "float32")
    torch.testing.assert_close(ice_slice((96, 80), 1.0, 20.0, 3, 2, 5).double(), fine,
                               atol=1e-4, rtol=1e-5)


def test_gradient_in_strength_and_thickness(double):
    strength, thickness = (as_tensor(v).requires_grad_() for v in (0.7, 30.0))

    def field(strength, thickness):
        return ice_slice((16, 18), 1.0, thickness, 0, 0, 0, strength)

    assert torch.autograd.gradcheck(field, (strength, thickness))
    torch.testing.assert_close(field(0.0, 30.0), torch.zeros(16, 18, dtype=torch.float64))


@pytest.mark.parametrize(("argument", "value"), [
    ("seed", -1), ("stream", -1), ("slice_thickness", -2.0), ("pixel_size", 0.0),
    ("material", "gold")])
def test_refused(argument, value):
    good = {"shape": (8, 8), "pixel_size": 1.0, "slice_thickness": 5.0, "seed": 0, "stream": 0,
            "index": 0, "material": "ice"}
    with pytest.raises(ValueError, match=argument):
        ice_slice(**(good | {argument: value}))


@pytest.mark.parametrize("thickness", [2.0, 12.0, 300.0])
def test_slab_of_a_gaussian_correlation(thickness, double):
    # h(z) = -0.9 exp(-z^2 / 2 s^2) / (s sqrt(2 pi)) under the triangle 1 - |z| / L, in closed form.
    s = 3.0
    x = thickness / s / math.sqrt(2)
    kept = math.erf(x) - (1 - math.exp(-(x**2))) / (x * math.sqrt(math.pi))
    k = torch.linspace(0, 0.3, 7, dtype=torch.float64)

    def bulk(k):
        return 1 - 0.9 * torch.exp(-((2 * math.pi * k * s) ** 2) / 2)

    torch.testing.assert_close(slab_structure_factor(k, thickness, bulk),
                               1 + kept * (bulk(k) - 1), rtol=0, atol=1e-3)


def test_a_thick_slab_has_no_faces(double):
    k = torch.linspace(0, 0.7, 50, dtype=torch.float64)
    error = [float((slab_structure_factor(k, t) - structure_factor(k)).abs().max())
             for t in (20.0, 40.0, 400.0, 4000.0)]
    assert all(a > b for a, b in pairwise(error))
    assert error[-1] < 1e-3


def test_thon_rings_of_ice_and_none_of_a_continuum():
    shape, pixel_size, thickness = (512, 512), 1.35, 20.0
    lens = Optics(defocus=8000.0, spherical_aberration=2.7)

    def image(stack):
        wave = multislice(stack, pixel_size, thickness, 300.0)
        return form_image(wave, pixel_size, 300.0, lens, linear=True)

    # Flat to the rounding of 10 phase gratings in float32.
    assert float(image(torch.full((10, *shape), 20 * mean_potential())).std()) < 1e-5
    found = sum(power(image(torch.stack([ice_slice(shape, pixel_size, thickness, 0, view, i)
                                         for i in range(10)])), pixel_size) for view in range(4))
    k = frequencies(shape, pixel_size)
    transfer = ctf(shape, pixel_size, 300.0, replace(lens, defocus=8000.0 - 110.0)).numpy()
    # Slices act where they begin, so their mean is 110 A nearer to focus than the exit plane.
    # From 10 A to 4.5 A: beyond, rings of the slices' own defoci smear into each other.
    seen = (k > 0.1) & (k < 0.22)
    bright, dark = (seen & part for part in (transfer**2 > 0.9, transfer**2 < 0.02))
    weak = (2 * interaction_constant(300.0)) ** 2 * 200 * ice_power(as_tensor(k)).double().numpy()
    ratio = found / 4 / weak
    # 7000 and 900 coefficients; the rest of 1 is that of sin^2, and of second-order scattering.
    assert ratio[bright].mean() == pytest.approx((transfer[bright] ** 2).mean(), rel=0.06)
    assert ratio[dark].mean() < 0.05


def box_spectra(shared, n=70, pixel_size=0.5, box=35.0):
    """Power per volume and oxygens' S of 35 A of water, seen along x, y and z; |k|."""
    atoms = read_structure(shared / "data/atoms/tip3p_box.pdb")
    k = np.fft.fftfreq(n, d=pixel_size)
    powers, structures = [], []
    for axis in range(3):
        turned = replace(atoms, positions=(atoms.positions - box / 2).roll(axis, 1).contiguous())
        projected = slice_potential(turned, (n, n), pixel_size, box, box, periodic=True)[0]
        powers.append(power(projected, pixel_size) / box)
        oxygens = turned.positions[atoms.numbers == 8].numpy()
        waves = [np.exp(-2j * np.pi * np.outer(k, oxygens[:, i])) for i in (1, 0)]
        structures.append(np.abs(waves[0] @ waves[1].T) ** 2 / len(oxygens))
    return (np.mean(powers, axis=0), np.mean(structures, axis=0), frequencies((n, n), pixel_size),
            len(oxygens) / box**3)


def test_molecules_of_a_liquid(shared, double):
    found, structure, k, density = box_spectra(shared)
    assert density * 29.915 == pytest.approx(1.03, abs=0.01)  # g/cm^3: liquid, not ice
    edges = np.arange(2.5, 24) / 35
    measured, _ = rings(found, k, edges)
    order, _ = rings(structure, k, edges)
    mid, _ = rings(k, k, edges)
    # With the oxygens' own order what is left is the molecules' orientation, here bound to each
    # other by hydrogen bonds: 5 % in the root mean square, 15 % at most.
    expected = ice_power(as_tensor(mid), as_tensor(order)).numpy() * density / ICE_DENSITY
    error = measured / expected - 1
    assert np.sqrt(np.mean(error**2)) < 0.08
    assert np.abs(error).max() < 0.2


def test_ice_beside_a_liquid(shared, double):
    found, _, k, density = box_spectra(shared)
    seen = (k > 0.05) & (k < 0.65)
    ice = ice_power(as_tensor(k)).numpy() * density / ICE_DENSITY
    # The same molecules fluctuate as much in all, but ice is arranged in a sharper ring at a
    # longer distance (3.7 A; a liquid 3.1 A) and has less than half of the power below 10 A.
    assert ice[seen].sum() / found[seen].sum() == pytest.approx(1, abs=0.15)
    edges = np.arange(1.5, 24) / 35
    measured, modelled, mid = (rings(v, k, edges)[0] for v in (found, ice, k))
    assert 0.25 < mid[modelled.argmax()] < 0.29 < mid[measured.argmax()] < 0.36
