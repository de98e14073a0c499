"""The kernels made for a GPU give what those for a CPU do: run by the CPU, and by a GPU if any."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from taichi_twins import weighted_sum

from tem_taichi import form_image, multislice, read_structure, slice_potential
from tem_taichi.device import as_tensor, init, kernels_for_a_gpu, many_threads

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
    atoms = read_structure("4v1w").centred()
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
@pytest.mark.parametrize(("n", "absorbing"), [(3, False), (20, True)])
def test_fused_waves_are_those_of_torch(arch, dtype, tolerance, n, absorbing):
    def case():
        values = scatter(n, absorbing)
        wave = passed(*values)
        grads = torch.autograd.grad((wave.real**2 * wave.imag).sum(), values)
        return [t.detach().cpu().numpy() for t in (wave, *grads)]

    for expected, found in zip(*on_both(arch, case, dtype), strict=True):
        assert np.linalg.norm(expected) > 0
        assert relative(found, expected) < tolerance * (1 if found.ndim else 10)


@pytest.mark.parametrize("n", [2, 17])
def test_gradients_of_fused_waves_are_differences(arch, n):
    init(arch, "float64")
    with kernels_for_a_gpu():
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
