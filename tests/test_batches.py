"""Several images in one call are the images one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tem_taichi.batches import expected_image, expected_images
from tem_taichi.device import as_tensor
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.tem import TEM
from tem_taichi.rotations import rotation_from_vector
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.particles import Ice, ParticlesInIce, kind_of
from tem_taichi.specimen.poses import Poses

INSTRUMENT = TEM((32, 32), (48, 48), 1.5, slice_thickness=8.0)
ONE = Poses(np.zeros((1, 3)), np.eye(3)[None])


def specimen(poses=ONE, ice=None):
    positions = np.random.default_rng(0).uniform(-12, 12, (8, 3))
    atoms = Atoms(np.full(8, 26), positions, np.full(8, 20.0), np.full(8, 5.0),
                  np.zeros(8, dtype=bool))
    return ParticlesInIce((kind_of(atoms),), (poses,), ice or Ice())


def test_a_batch_of_foci_and_doses_passes_the_specimen_once(double, monkeypatch):
    calls = []
    real = TEM.exit_wave
    monkeypatch.setattr(TEM, "exit_wave", lambda *a: calls.append(1) or real(*a))
    several = Exposure(Optics(defocus=as_tensor([3000.0, 6000.0, 9000.0])), 10.0,
                       dose=as_tensor([5.0, 10.0, 20.0]))
    images = expected_images(specimen(), INSTRUMENT, several)
    assert len(calls) == 1 and images.shape == (3, 32, 32)
    for n, image in enumerate(images):
        alone = Exposure(Optics(defocus=several.optics.defocus[n]), 10.0, dose=several.dose[n])
        assert torch.equal(image, expected_image(specimen(), INSTRUMENT, alone))


@pytest.mark.parametrize("ice", [Ice(), Ice(60.0, 4.48, 3000.0, granularity=1.0, seed=2)])
def test_a_batch_of_tilts_and_shifts_is_the_images_one_by_one(double, ice):
    angles, shifts = as_tensor([-30.0, 0.0, 45.0]), as_tensor([0.0, 3.0, -5.0])
    images = expected_images(specimen(ice=ice), INSTRUMENT, Exposure(
        Optics(defocus=5000.0), angles, -8.0, shifts, dose=10.0))
    for n, image in enumerate(images):
        alone = Exposure(Optics(defocus=5000.0), angles[n], -8.0, shifts[n], dose=10.0, stream=n)
        assert torch.equal(image, expected_image(specimen(ice=ice), INSTRUMENT, alone))


def test_a_batch_of_poses_and_its_gradients(double):
    generator = torch.Generator().manual_seed(1)
    positions = (6 * torch.rand(2, 1, 3, generator=generator, dtype=torch.float64) - 3)
    turns = torch.rand(2, 1, 3, generator=generator, dtype=torch.float64)
    parameters = [positions.requires_grad_(), turns.requires_grad_()]
    weights = torch.rand(2, 32, 32, generator=generator, dtype=torch.float64) - 0.5
    exposure = Exposure(Optics(defocus=5000.0), 20.0, dose=10.0)

    def one(n, positions, turns):
        return specimen(Poses(positions[n], rotation_from_vector(turns[n])))

    images = expected_images(
        specimen(Poses(positions, rotation_from_vector(turns))), INSTRUMENT, exposure)
    gradients = torch.autograd.grad((images * weights).sum(), parameters)
    alone = torch.stack([expected_image(one(n, positions, turns), INSTRUMENT,
                                        replace(exposure, stream=n)) for n in range(2)])
    torch.testing.assert_close(images, alone, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad((alone * weights).sum(), parameters)
    for found, wanted in zip(gradients, expected, strict=True):
        assert float(wanted[..., 2].abs().min()) > 0  # in z too, by default
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_unequal_batches_and_batches_of_one_image_are_refused():
    two = Exposure(Optics(defocus=as_tensor([3000.0, 6000.0])), dose=as_tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="different numbers of images: dose for 3, defocus for 2"):
        expected_images(specimen(), INSTRUMENT, two)
    with pytest.raises(ValueError, match="defocus is given for 2 images: must be one; expected_im"):
        expected_image(specimen(), INSTRUMENT, replace(two, dose=1.0))
    poses = Poses(np.zeros((4, 1, 3)), np.eye(3)[None])
    with pytest.raises(ValueError, match="positions of atoms is given for 4 images: must be one"):
        expected_image(specimen(poses), INSTRUMENT, Exposure())
