"""Whole tilts on a GPU that is pretended: no tensor is on the wrong device, and little waits.

The CPU computes what the GPU would, so that results are equal to the last bit, see
reference/pretended_gpu.py.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pretended_gpu import There, pretended_gpu

from tem_taichi import multislice
from tem_taichi.device import as_tensor, init, kernels_for_a_gpu
from tem_taichi.experiment import images
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
from tem_taichi.specimen.splatting import narrow, splat

KINDS = {"a": particle_of(globule=12.0, count=3), "b": particle_of(globule=8.0, count=2)}
CASES = {
    "granular lens in a film": (IceSettings(
        60.0, edge_thickness=70.0, hole_radius=50.0, carbon_thickness=20.0),
        "atoms"),
    "volumes": (IceSettings(60.0, granularity=0.0), "volume"),
}


def scene(ice: IceSettings, render: str) -> Scene:
    return Scene(
        shape=[32, 32], pixel_size=4.0, tilts=TiltSettings("listed", angles=[5.0]),
        interaction=InteractionSettings(slice_thickness=20.0, depth="smooth"),
        specimen=SpecimenSettings(ice, particles={
            name: replace(kind, render=render) for name, kind in KINDS.items()}))


def here(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.here if isinstance(tensor, There) else tensor


@pytest.mark.parametrize("case", CASES)
def test_a_tilt(case):
    """Counts and expectation, and what an image waits for: the numbers of copies and atoms in each
    group of slices, for each kind, and some forty more."""
    settings = scene(*CASES[case])

    def run(waits):
        experiment = plan(settings).experiment(build_specimen(settings))
        if case == "volumes":
            list(images(experiment, 0))  # which are made once
        waits.clear()
        (image,) = images(experiment, 0)
        return here(image.counts), here(image.expected)

    with kernels_for_a_gpu():
        expected = run({})
    with pretended_gpu() as found:
        given = run(found)
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))
    assert float(given[0].std()) > 0
    # Of groups, there are at most two here; counting how many atoms there are gives two a kind.
    in_groups = {where: n for where, n in found.items() if "pass_through" in where}
    assert sum(in_groups.values()) <= 4 * (2 * len(KINDS) + 4), in_groups
    assert found.total() <= sum(in_groups.values()) + 40, found


def test_gradients_of_waves_and_splats():
    """Through multislice, narrowing and the splat. (Those of complex functions of torch's own,
    such as `form_image`, are wrong for tensors that are pretended.)"""
    def run():
        rng = np.random.default_rng(0)
        x, y = (as_tensor(rng.uniform(0, 16, 9)).requires_grad_() for _ in range(2))
        ones = as_tensor(np.ones(9))
        index = as_tensor(rng.integers(0, 2, 9)).long()
        slices = narrow(splat(as_tensor(np.zeros((2, 16, 16))), x, y, index, 20 * ones, ones,
                       (0 * ones + 6).long(), peng_table()))
        weight = as_tensor(rng.random((16, 16)))
        wave = multislice(slices, 1.0, 10.0, 300.0)
        return [here(t) for t in torch.autograd.grad((wave.imag * weight).sum(), (x, y))]

    with kernels_for_a_gpu():
        expected = run()
    with pretended_gpu():
        given = run()
    for a, b in zip(given, expected, strict=True):
        assert float(a.abs().max()) > 0
        assert torch.equal(a, b)


@pytest.mark.parametrize("mistake", [
    lambda there: there + torch.ones(3), lambda there: there[[0, 1]],
    lambda there: torch.tensor([1.0, 2.0, 3.0], device=there.device) + there])
def test_what_fails_or_waits_on_a_gpu_is_seen(mistake):
    init("cpu")
    with pretended_gpu() as found:
        there = as_tensor([1.0, 2.0, 3.0])
        with pytest.raises(RuntimeError, match=r"on two devices|itself took to the device"):
            mistake(there)
        assert not found
        assert float(there.sum()) == 6.0 and there.cpu().tolist() == [1.0, 2.0, 3.0]
        assert found.total() == 2
