"""The kernels made for a GPU give what those for a CPU do: run by the CPU, and by a GPU if any."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from host_waits import host_waits
from taichi_twins import weighted_sum

from tem_taichi import device, form_image, multislice, read_structure, slice_potential
from tem_taichi.device import as_tensor, init, kernels_for_a_gpu, many_threads
from tem_taichi.experiment import images
from tem_taichi.instrument.groups import group_size
from tem_taichi.scene.settings import (
    IceSettings,
    InteractionSettings,
    Scene,
    SpecimenSettings,
    TiltSettings,
    particle_of,
)
from tem_taichi.series.build import build_specimen
from tem_taichi.series.plan import plan
from tem_taichi.specimen.potential import peng_table
from tem_taichi.specimen.splatting import splat

GPU = pytest.param("gpu", marks=[
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")])


@pytest.fixture(params=["cpu", GPU])
def arch(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the kernels made for a GPU run; those for a CPU run on it as ever."""
    yield request.param
    init("cpu", "float32")


def on_both(arch, case, dtype="float32"):
    """What a case gives by kernels made for a CPU, there, and by those for a GPU."""
    init("cpu", dtype)
    expected = case()
    init(arch, dtype)
    with kernels_for_a_gpu():
        found = case()
    return expected, found


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def image_and_gradient():
    atoms = read_structure("4v1w").centred()[::6]
    positions = atoms.positions.requires_grad_()
    defocus = as_tensor(1e4).requires_grad_()
    slices = slice_potential(atoms, (128, 128), 1.5, 20.0, 160.0)
    wave = multislice(slices, 1.5, 20.0, 300.0)
    image = form_image(wave, 1.5, 300.0, defocus=defocus)
    (image[40:90, 30:80] ** 2).sum().backward()
    return (image.detach().cpu().numpy(), positions.grad.cpu().numpy(), float(defocus.grad))


def test_images_and_gradients(arch):
    """The backward pass runs on torch's own thread; float32 rounding."""
    expected, found = on_both(arch, image_and_gradient)
    assert np.abs(expected[0] - found[0]).max() < 1e-4
    assert relative(found[1], expected[1]) < 1e-3
    assert expected[2] == pytest.approx(found[2], rel=1e-3)


def scatter(n, absorbing=True, leaf=True):
    """Random slices, and every number of `multislice`, each with a gradient."""
    rng = np.random.default_rng(5)
    slices = rng.uniform(-100, 300, (n, 14, 18))
    if absorbing:
        slices = slices + 1j * rng.uniform(0, 50, slices.shape)
    incident = rng.standard_normal((14, 18)) + 1j * rng.standard_normal((14, 18))
    return [torch.as_tensor(value, device=as_tensor(0.0).device).to(kind).requires_grad_(leaf)
            for value, kind in ((slices, as_tensor(0.0).dtype.to_complex() if absorbing
                                 else as_tensor(0.0).dtype),
                                (incident, as_tensor(0.0).dtype.to_complex()),
                                *((number, as_tensor(0.0).dtype)
                                  for number in (1.1, 8.0, 250.0, 0.1)))]


def passed(slices, incident, pixel_size, thickness, voltage, contrast):
    return multislice(slices, pixel_size, thickness, voltage, incident=incident,
                      amplitude_contrast=contrast)


# Beyond 16 slices waves are computed again. Rounding, 6e-8 or 1e-16, in a few operations of each of
# 20 slices; gradients of single numbers are sums of thousands of terms of both signs.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("float64", 6e-15)])
def test_fused_waves_are_those_of_torch(arch, dtype, tolerance):
    def case():
        found = []
        for n, absorbing in ((3, False), (20, True)):
            values = scatter(n, absorbing)
            wave = passed(*values)
            grads = torch.autograd.grad((wave.real**2 * wave.imag).sum(), values)
            found += [t.detach().cpu().numpy() for t in (wave, *grads)]
        return found

    for expected, found in zip(*on_both(arch, case, dtype), strict=True):
        assert np.linalg.norm(expected) > 0
        assert relative(found, expected) < tolerance * (1 if found.ndim else 10)


def test_gradients_of_fused_waves_are_differences(arch):
    init(arch, "float64")
    with kernels_for_a_gpu():
        for n in (2, 17):
            assert torch.autograd.gradcheck(passed, scatter(n), fast_mode=True)


def test_fused_waves_under_a_taichi_tape(arch):
    """The stage on the tape, with a kernel for a loss, gives the gradients that torch gets."""
    import taichi as ti

    from tem_taichi.instrument.multislice import _fresnel_factors, _interact
    from tem_taichi.physics import interaction_constant, wavelength

    init(arch, "float64")
    with kernels_for_a_gpu():
        slices, incident, *_ = scatter(5, absorbing=False)
        weights = torch.rand((14, 18, 2), generator=torch.Generator().manual_seed(0)).to(slices)
        wave = multislice(slices, 1.0, 10.0, 300.0, incident=incident)
        by_torch = torch.autograd.grad((torch.view_as_real(wave) * weights).sum(),
                                       (slices, incident))
        rows, columns = _fresnel_factors((14, 18), 1.0, wavelength(300.0), 10.0)
        phase = as_tensor([interaction_constant(300.0)])
        inputs = [slices.detach(), incident.detach(), rows, columns, phase, 0 * phase]
        kept, out = incident.new_empty((5, 14, 18)), torch.empty_like(incident)
        for t in (*inputs, out):
            t.grad = torch.zeros_like(t)
        seen = torch.view_as_real(out.detach())
        seen.grad = torch.view_as_real(out.grad)
        loss = torch.zeros(1, dtype=torch.float64, device=slices.device, requires_grad=True)
        loss.grad = torch.zeros_like(loss)
        with ti.ad.Tape(loss):
            _interact(inputs[0], slices[:0].detach(), *inputs[1:], 1, kept, out.detach_())
            weighted_sum(seen, weights, loss)
    for found, expected in zip(inputs, by_torch, strict=False):
        assert torch.allclose(found.grad, expected, rtol=1e-12)
    assert all(float(t.grad.abs().max()) > 0 for t in inputs)


def test_each_device_takes_its_kernels(arch):
    init(arch)
    assert many_threads() == (arch == "gpu")
    with kernels_for_a_gpu(arch == "cpu"):
        assert many_threads() == (arch == "cpu")
    assert many_threads() == (arch == "gpu")


def atoms_anywhere(n, shape, n_slices, reach, seed):
    """Arguments of `splat`: atoms on the grid and off it, some wider than the grid."""
    rng = np.random.default_rng(seed)
    table = peng_table().clone()
    table[:, 1] /= 1.3**2
    values = [rng.uniform(-1, 2, n) * shape[1], rng.uniform(-1, 2, n) * shape[0]]
    below = np.nextafter(np.float32(-0.5), np.float32(-1))  # the last pixel, but not when rounded
    values[0][:4] = below, 0.5, shape[1] - 0.5, -0.5
    values[1][:4] = shape[0] - 0.5, -0.5, below, below
    values += [rng.standard_normal(n), rng.uniform(0, reach, n)]
    x, y, weight, broadening = (as_tensor(v).requires_grad_() for v in values)
    whole = [torch.as_tensor(w, device=x.device) for w in (
        rng.integers(0, n_slices, n), rng.choice([1, 6, 8, 79], n))]
    out = as_tensor(rng.standard_normal((n_slices, *shape)))
    return out, (x, y, whole[0], weight, broadening, whole[1], table)


def splatted(*case):
    """Slices, and the gradients of a weighted sum of them."""
    out, values = atoms_anywhere(*case)
    result = splat(out, *values)
    weights = torch.linspace(-1, 1, result.numel()).to(result).reshape(result.shape)
    grads = torch.autograd.grad((result * weights).sum(), [v for v in values if v.requires_grad])
    return [t.detach().cpu().numpy() for t in (result, *grads)]


# Cells and tiles of 4 and 8 pixels, cut by edges; stencils that wrap once, and several times.
GRIDS = (((40, 56), 20.0), ((41, 59), 20.0), ((17, 33), 200.0), ((3, 5), 50.0),
         ((8, 8), 4000.0), ((30, 6), 900.0))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-13)])
def test_tiles_add_up_to_what_bands_do(arch, dtype, tolerance):
    """Rounding, in recurrences over tens of pixels and sums of tens of atoms. In single precision
    one on the line between two pixels has either as its centre: the rims of its stencil differ."""
    def case():
        return [part for shape, reach in GRIDS for part in splatted(60, shape, 3, reach, 4)]

    for expected, found in zip(*on_both(arch, case, dtype), strict=True):
        assert relative(found, expected) < tolerance


def test_tiles_give_the_same_bits_each_time(arch):
    init(arch)
    with kernels_for_a_gpu():
        first, again = (splatted(300, (40, 56), 2, 20.0, 1) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


def test_a_splat_of_one_tile_takes_every_atom_once(arch):
    """The sum over all pixels of one broad atom is its weight times the sum of its a_g."""
    init(arch, "float64")
    with kernels_for_a_gpu():
        table = as_tensor([[[2.0], [0.0]]])
        for x in (0.0, 3.3, 7.4, 11.0):
            out = splat(as_tensor(np.zeros((1, 12, 12))), as_tensor([x]), as_tensor([5.0]),
                        torch.tensor([0], device=table.device), as_tensor([1.5]),
                        as_tensor([30.0]), torch.tensor([0], device=table.device), table)
            assert float(out.sum()) == pytest.approx(3.0, rel=1e-3)  # what the stencil leaves out


def test_splat_leaves_out_what_lies_in_other_slices(arch):
    """Before, behind and within, with no gradient where nothing is added."""
    def case(taken):
        out, (x, y, index, weight, broadening, kind, table) = atoms_anywhere(
            40, (20, 24), 6, 20.0, 3)
        index, inside = index - 2, (index >= 2) & (index < 4)
        rows = torch.nonzero(inside | (index > 90)).flatten() if taken else slice(None)
        result = splat(out[2:4], x[rows], y[rows], index[rows], weight[rows], broadening[rows],
                       kind[rows], table)
        (grad,) = torch.autograd.grad((result**2).sum(), x)
        return result.detach(), grad

    for gpu in (True, False):
        init(arch if gpu else "cpu")
        with kernels_for_a_gpu(gpu):
            for found, expected in zip(case(False), case(True), strict=True):
                assert torch.equal(found, expected)


def waits_of(count, thickness, angle=20.0):
    """Where the processor waits in one tilt of particles in ice, and the slices it has."""
    kinds = {name: particle_of(globule=size, count=count)
             for name, size in (("a", 30.0), ("b", 20.0))}
    scene = Scene(shape=[32, 32], pixel_size=4.0, interaction=InteractionSettings(
        slice_thickness=20.0), tilts=TiltSettings("listed", angles=[angle]),
        specimen=SpecimenSettings(IceSettings(thickness, granularity=0.0), particles=kinds))
    experiment = plan(scene).experiment(build_specimen(scene))
    (exposure,) = experiment.exposures
    n_slices = experiment.instrument.view(experiment.specimen, exposure).n_slices
    list(images(experiment, 0))  # what is kept for all tilts is made
    with host_waits() as found:
        list(images(experiment, 0))
    return found, n_slices


def test_the_tilt_loop_seldom_waits_for_the_device(arch):
    """A tilt waits up to thirty times, and to find the copies of each kind that a group of slices
    holds, and their atoms; no more for more copies, and never in the wave's way."""
    init(arch)
    with kernels_for_a_gpu():
        for count, thickness in ((2, 100.0), (4, 500.0)):
            found, n_slices = waits_of(count, thickness)
            groups = -(-n_slices // group_size(n_slices))
            assert found.total() <= 30 + 2 * 2 * groups, found
            assert not [where for where in found if "multislice.py" in where
                        or "passes.py" in where or "splatting.py" in where]
    assert groups > 3


def test_waits_are_found():
    """So that the count is known to count."""
    with host_waits() as found:
        values = torch.arange(3.0)
        bool(values[0]), values.cpu(), values.tolist(), values[values > 0], values.nonzero()
    assert sorted(name.partition(":")[0] for name in found) == [
        "_local_scalar_dense", "cpu", "index.Tensor", "nonzero", "tolist"]


def test_numbers_reach_a_gpu_without_waiting(monkeypatch):
    """A fill, or a copy from memory that the device reads by itself; "meta" stands for a GPU."""
    pinned = []
    monkeypatch.setattr(device, "_current", device.Device(
        "gpu", torch.device("meta"), torch.float32))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t) or t)
    assert as_tensor(2.5).device.type == "meta" and not pinned
    assert as_tensor([1, 2]).dtype == torch.float32
    assert as_tensor(np.arange(3)).device.type == "meta"
    assert [t.tolist() for t in pinned] == [[1.0, 2.0], [0.0, 1.0, 2.0]]
