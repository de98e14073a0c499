"""The same numbers on a GPU as on the CPU."""

import numpy as np
import pytest
import torch

from tem_taichi import form_image, multislice, read_structure, slice_potential
from tem_taichi.device import as_tensor, init

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def image_and_gradient(arch):
    init(arch, "float32")
    atoms = read_structure("4v1w").centred()
    positions = atoms.positions.requires_grad_()
    defocus = as_tensor(1e4).requires_grad_()
    slices = slice_potential(atoms, (128, 128), 1.5, 20.0, 160.0)
    wave = multislice(slices, 1.5, 20.0, 300.0)
    image = form_image(wave, 1.5, 300.0, defocus=defocus)
    (image[40:90, 30:80] ** 2).sum().backward()
    return (image.detach().cpu().numpy(), positions.grad.cpu().numpy(), float(defocus.grad))


def test_gpu_agrees_with_cpu():
    """Images and gradients, the backward pass on torch's own thread; float32 rounding."""
    cpu, gpu = image_and_gradient("cpu"), image_and_gradient("gpu")
    assert np.abs(cpu[0] - gpu[0]).max() < 1e-4
    assert np.linalg.norm(cpu[1] - gpu[1]) < 1e-3 * np.linalg.norm(cpu[1])
    assert cpu[2] == pytest.approx(gpu[2], rel=1e-3)
