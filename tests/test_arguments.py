"""Whatever a caller passes: one line that names the argument, or a right result."""

import inspect
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from public import CALLS

import tem_taichi
from tem_taichi.device import as_tensor
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.multislice import multislice
from tem_taichi.instrument.optics import Optics, form_image
from tem_taichi.instrument.tem import TEM
from tem_taichi.noise.detector import Detector
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.ice_shape import IceShape
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.specimen.poses import Poses

NEVER = (math.nan, math.inf, "text", 2 + 1j, {}, object(), [[1.0], [2.0, 3.0]])
"""No number, nor an array of them."""

OPTIONAL = {"aperture", "mtf", "dqe", "incident", "band", "mean_free_path", "amplitude_contrast",
            "edge_thickness", "shift", "relief_heights", "absorption"}
"""May be None."""

POSITIVE = {"pixel_size", "slice_thickness", "voltage", "dose", "focal_length", "aperture", "gain",
            "mean_free_path", "hole_radius", "carbon_edge", "relief_spacing", "slope_change",
            "absorption_spacing", "wavelength"}

NAMES = {"copies": "positions", "sites": "positions", "rotations": "rotations|vector",
         "weight": "weight|broadening",
         "values": "table|values", "frequencies": "table|frequencies"}
"""What a message calls a value of `CALLS`, where it differs."""

COMPLEX = {"slices", "incident", "exit_wave"}
CASES = [(name, key) for name, (_, values) in CALLS.items() for key in values]


def refused(name, key, value):
    """Whether a value is refused by name; else the result must be finite."""
    function, values = CALLS[name]
    try:
        result = function({**values, key: value})
    except ValueError as error:
        lines = str(error).splitlines()
        assert len(lines) == 1, lines
        assert any(word in lines[0] for word in NAMES.get(key, key).split("|")), lines[0]
        return True
    assert bool(torch.isfinite(result).all()), (name, key, value)
    return False


@pytest.mark.parametrize(("name", "key"), CASES)
def test_what_is_no_number_is_refused_by_name(name, key):
    for value in NEVER:
        if key == "hole_radius" and value == math.inf:  # no hole
            continue
        if not (key in COMPLEX and isinstance(value, complex)):
            assert refused(name, key, value), value
    if key not in OPTIONAL:
        assert refused(name, key, None)
    if key in POSITIVE:
        for value in (-1.0, 0.0):
            assert refused(name, key, value), value
    for value in (1e30, -1e30):
        refused(name, key, value)


@pytest.mark.parametrize(("name", "key"), [
    (name, key) for name, key in CASES if np.ndim(CALLS[name][1][key])])
def test_arrays_of_another_shape_or_with_a_hole_are_refused_by_name(name, key):
    good = np.asarray(CALLS[name][1][key], dtype=float)
    hole = good.copy()
    hole.flat[-1] = math.nan
    assert refused(name, key, hole)
    if key not in ("x", "y", "w", "vector", "noise", "rotations"):  # of any number of axes
        assert refused(name, key, good[None, None, None])
    refused(name, key, good[..., :1])


@pytest.mark.parametrize("name", list(CALLS))
def test_lists_arrays_and_tensors_give_the_same(name):
    if name == "detect":
        return
    function, values = CALLS[name]
    expected = function(values)
    tensors = {key: as_tensor(value) if np.ndim(value) else value
               for key, value in values.items()}
    torch.testing.assert_close(function(tensors), expected)
    scalars = {key: np.float64(value) if not np.ndim(value) else value
               for key, value in values.items()}
    torch.testing.assert_close(function(scalars), expected)


@pytest.mark.parametrize("cls", [Atoms, Optics, Detector, TEM, Exposure, Ice, IceShape])
def test_the_table_of_calls_has_every_continuous_field(cls):
    known = {key for _, values in CALLS.values() for key in values}
    discrete = {"numbers", "is_water", "kind", "integer", "detector_shape", "wave_shape", "depth",
                "linear", "stages", "energy_filter", "optics", "stream", "seed", "shape", "ratios",
                "stopped"}
    assert {f.name for f in fields(cls)} - discrete <= known


def test_the_table_of_calls_has_every_public_function():
    known = " ".join(CALLS)
    for name in tem_taichi.__all__:
        thing = getattr(tem_taichi, name)
        if inspect.isfunction(thing) and name not in (
                "error_bars", "images", "init", "kind_of", "load_scene", "read_structure",
                "simulate"):
            assert name in known


def test_complex_arrays_of_numpy(double):
    rng = np.random.default_rng(0)
    slices = rng.random((2, 8, 8)) + 0.1j * rng.random((2, 8, 8))
    wave = multislice(slices, 1.0, 10.0, 300.0, incident=np.ones((8, 8)))
    assert torch.equal(wave, multislice(torch.as_tensor(slices), 1.0, 10.0, 300.0))
    assert torch.equal(form_image(wave.numpy(), 1.0, 300.0), form_image(wave, 1.0, 300.0))


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Atoms([0], [[0, 0, 0]], [1], [1], [False]), "numbers: must be atomic numbers from 1"),
    (lambda: Atoms([6.5], [[0, 0, 0]], [1], [1], [False]), "numbers: must be atomic numbers"),
    (lambda: Atoms([6], [[0, 0, 0]], [-1], [1], [False]), "b_factors=-1: must be 0 or positive"),
    (lambda: Atoms([6], [[0, 0]], [1], [1], [False]), r"positions of shape \(1, 2\)"),
    (lambda: Poses(np.zeros((1, 3)), -np.eye(3)[None]), "rotations: must be rotation matrices"),
    (lambda: Poses(np.zeros((1, 3)), 2 * np.eye(3)[None]), "rotations: must be rotation matrices"),
    (lambda: Poses(np.zeros((2, 3)), np.eye(3)[None]), r"rotations of shape \(1, 3, 3\)"),
    (lambda: ParticlesInIce((), (Poses(np.zeros((1, 3)), np.eye(3)[None]),)), "poses of 1 kinds"),
    (lambda: TEM((16, 16), (24, 20), 1.0), r"wave_shape=\(24, 20\): must be detector_shape"),
    (lambda: TEM((15, 15), (30, 30), 1.0), "wave_shape"),
    (lambda: TEM((16, 16), (24, 24), 1.0, depth="soft"), "depth"),
    (lambda: Exposure(tilt_angle=90.0), "tilt_angle=90.0: must be above -90 and below 90"),
])
def test_what_cannot_be_is_refused_when_it_is_made(make, words):
    with pytest.raises(ValueError, match=words):
        make()
