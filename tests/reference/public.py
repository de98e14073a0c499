"""Every function of the Python interface as a function of its continuous arguments by name.

`CALLS` maps a name to a function of a mapping of values, and to those values; where an argument is
complex its value is a pair of reals in the last axis. `test_gradient_net` and `test_arguments` go
through it, and check that no argument is missing.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from tem_taichi import slice_potential
from tem_taichi.batches import expected_image, expected_images
from tem_taichi.device import as_tensor
from tem_taichi.instrument.distortion import anisotropic
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.multislice import fresnel_propagator, multislice
from tem_taichi.instrument.optics import Optics, ctf, envelope, form_image
from tem_taichi.instrument.tem import TEM
from tem_taichi.noise.curves import smoothness_penalty
from tem_taichi.noise.detector import Detector, detect, expected_counts, noise_power_spectrum
from tem_taichi.noise.likelihood import log_prob, reparametrised_sample
from tem_taichi.physics import interaction_constant, wavelength
from tem_taichi.rotations import rotation_from_vector, tilt_rotation
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.damage import damping
from tem_taichi.specimen.filling import fill
from tem_taichi.specimen.ice_shape import IceShape, path_length
from tem_taichi.specimen.particles import Ice, Kind, ParticlesInIce, kind_of
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.potential import Gaussians

Values = dict[str, Any]
RNG = np.random.default_rng(11)

ATOMS: Values = {"positions": RNG.uniform(-5, 5, (4, 3)), "b_factors": RNG.uniform(20, 60, 4),
                 "occupancies": RNG.uniform(0.5, 4, 4)}
OPTICS: Values = {
    "defocus": 3000.0, "spherical_aberration": 2.7, "astigmatism": 400.0,
    "astigmatism_angle": 25.0, "phase_shift": 30.0, "beam_tilt_x": 0.8, "beam_tilt_y": -1.1,
    "coma": 2e4, "coma_angle": 15.0, "trefoil": 3e4, "trefoil_angle": -10.0,
    "chromatic_aberration": 2.2, "energy_spread": 0.8, "convergence": 0.1, "aperture": 90.0,
    "focal_length": 3.0}
DETECTOR: Values = {"gain": 1.4, "mtf": np.array([0.7, 0.2, 0.1, 10.0, 40.0]), "dqe": 0.8}
ICE: Values = {"thickness": 60.0, "potential": 4.5, "mean_free_path": 3000.0,
               "particle_absorption": 1.2, "granularity": 0.7}
SHAPE: Values = {
    "thickness": 40.0, "edge_thickness": 61.0, "hole_radius": 51.3, "centre_x": 30.0,
    "centre_y": 8.0, "slope_x": 0.06, "slope_y": -0.03, "carbon_thickness": 23.0,
    "carbon_edge": 19.0, "relief": 1 + 0.2 * RNG.random((4, 3)), "relief_spacing": 27.0,
    "relief_heights": 9 * RNG.random((4, 3)), "absorption_spacing": 23.0,
    "absorption": np.linspace(0.5, 1.5, 24).reshape(2, 4, 3)}
INSTRUMENT: Values = {"pixel_size": 1.5, "voltage": 280.0, "amplitude_contrast": 0.08,
                      "slice_thickness": 5.0, "anisotropy": 0.04, "anisotropy_angle": 20.0,
                      "damage": 1.0}
EXPOSURE: Values = {"tilt_angle": 20.0, "axis_angle": -7.0, "shift_x": 1.3, "shift_y": -0.8,
                    "dose": 12.0, "prior_dose": 8.0}
TURN = rotation_from_vector(torch.tensor([0.3, -0.2, 0.5])).double().numpy()
FIELD = 1 + 0.3 * RNG.random((12, 10))


def taken(cls: type, values: Values, **more: Any) -> Any:
    """A dataclass from those of the values that are its fields."""
    names = {f.name for f in fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in names}, **more)


def atoms(values: Values) -> Atoms:
    return Atoms([6, 8, 16, 26], values["positions"], values["b_factors"], values["occupancies"],
                 [False] * 4)


def complex_of(pair: Any) -> Any:
    """A complex array from a pair; what is no pair stays."""
    if isinstance(pair, torch.Tensor) and pair.shape[-1:] == (2,):
        return torch.view_as_complex(pair.contiguous())
    if isinstance(pair, np.ndarray) and pair.shape[-1:] == (2,):
        return pair[..., 0] + 1j * pair[..., 1]
    return pair


def _potential(depth: str | None) -> Callable[[Values], torch.Tensor]:
    def call(v: Values) -> torch.Tensor:
        return slice_potential(atoms(v), (12, 14), v["pixel_size"], v["slice_thickness"],
                               v["thickness"], depth=depth,
                               solvent_potential=v["solvent_potential"])
    return call


def _multislice(mode: str, band: bool = False) -> Callable[[Values], torch.Tensor]:
    def call(v: Values) -> torch.Tensor:
        wave = multislice(complex_of(v["slices"]), v["pixel_size"], v["slice_thickness"],
                          v["voltage"], amplitude_contrast=v["amplitude_contrast"], mode=mode,
                          incident=complex_of(v["incident"]), band=v["band"] if band else None)
        return torch.view_as_real(wave)
    return call


def _image(linear: bool) -> Callable[[Values], torch.Tensor]:
    return lambda v: form_image(complex_of(v["exit_wave"]), v["pixel_size"], v["voltage"],
                                taken(Optics, v), linear=linear)


def _specimen(values: Values, ice: Ice) -> ParticlesInIce:
    kind = kind_of(atoms(values))
    positions = values["copies"]
    rotations = values["rotations"]
    if isinstance(rotations, (torch.Tensor, np.ndarray)) and rotations.ndim:
        rotations = rotation_from_vector(rotations) @ as_tensor(TURN)
    return ParticlesInIce((kind,), (Poses(positions, rotations),), ice)


def _whole(values: Values, ice: Ice, several: bool = False, **more: Any) -> torch.Tensor:
    instrument = taken(TEM, values, detector_shape=(16, 14), wave_shape=(32, 28), **more)
    exposure = taken(Exposure, values, optics=Optics(defocus=values["defocus"]))
    image = expected_images if several else expected_image
    return image(_specimen(values, ice), instrument, exposure)


def _kind(values: Values) -> torch.Tensor:
    group = Gaussians(values["weight"], values["broadening"], torch.tensor([0, 1, 1]),
                      values["table"])
    kind = Kind("some", values["sites"], group)
    specimen = ParticlesInIce((kind,), (Poses(np.zeros((1, 3)), np.eye(3)[None]),))
    instrument = TEM((16, 14), (16, 14), 1.5, slice_thickness=5.0)
    return expected_image(specimen, instrument, Exposure(Optics(defocus=3000.0)))


WHOLE = {**ATOMS, "copies": np.array([[2.0, -1.0, 3.0]]),
         "rotations": np.array([[0.1, -0.2, 0.3]]), **INSTRUMENT, **EXPOSURE, "defocus": 3000.0}
CAMERA = {"intensity": FIELD, "pixel_size": 1.3, "dose": 9.0, **DETECTOR}
TILT = torch.as_tensor(TURN)

CALLS: dict[str, tuple[Callable[[Values], torch.Tensor], Values]] = {
    **{f"slice_potential, {depth}": (_potential(depth), {
        **ATOMS, "pixel_size": 1.5, "slice_thickness": 4.0, "thickness": 14.0,
        "solvent_potential": 4.5}) for depth in (None, "smooth")},
    **{f"multislice, {mode}{', band' if band else ''}": (_multislice(mode, band), {
        "slices": 40 * RNG.random((3, 10, 12, 2)), "pixel_size": 1.2, "slice_thickness": 30.0,
        "voltage": 250.0, "amplitude_contrast": 0.1, "incident": RNG.random((10, 12, 2)),
        **({"band": RNG.random((10, 12))} if band else {})})
       for mode, band in (("multislice", False), ("multislice", True), ("projection", False),
                          ("weak_phase", False))},
    **{f"form_image{', linear' if linear else ''}": (_image(linear), {
        "exit_wave": RNG.random((12, 14, 2)), "pixel_size": 1.4, "voltage": 250.0, **OPTICS})
       for linear in (False, True)},
    "ctf": (lambda v: ctf((12, 14), v["pixel_size"], v["voltage"], taken(Optics, v),
                          v["amplitude_contrast"]),
            {"pixel_size": 1.4, "voltage": 250.0, "amplitude_contrast": 0.1, **OPTICS}),
    "envelope": (lambda v: envelope((12, 14), v["pixel_size"], v["voltage"], taken(Optics, v)),
                 {"pixel_size": 1.4, "voltage": 250.0, **OPTICS}),
    "fresnel_propagator": (
        lambda v: torch.view_as_real(fresnel_propagator(
            (8, 9), v["pixel_size"], v["wavelength"], v["distance"])),
        {"pixel_size": 1.4, "wavelength": 0.02, "distance": 70.0}),
    "expected_counts": (lambda v: expected_counts(
        v["intensity"], pixel_size=v["pixel_size"], dose=v["dose"], detector=taken(Detector, v)),
        CAMERA),
    "detect": (lambda v: detect(v["intensity"], pixel_size=v["pixel_size"], dose=v["dose"],
                                detector=taken(Detector, v)), CAMERA),
    **{f"log_prob, {kind}": (lambda v, kind=kind: log_prob(
        v["counts"], v["intensity"], pixel_size=v["pixel_size"], dose=v["dose"],
        detector=taken(Detector, v, kind=kind)),
        {**CAMERA, "counts": 20 * FIELD}) for kind in ("counting", "integrating")},
    "noise_power_spectrum": (lambda v: noise_power_spectrum(
        v["w"], taken(Detector, v, kind="integrating"), dose=v["dose"],
        pixel_size=v["pixel_size"]),
        {"w": np.array([0.05, 0.2, 0.33]), "dose": 9.0, "pixel_size": 1.3, **DETECTOR}),
    "reparametrised_sample": (lambda v: reparametrised_sample(
        v["intensity"], pixel_size=v["pixel_size"], dose=v["dose"],
        detector=taken(Detector, v), noise=v["noise"]),
        {**CAMERA, "noise": RNG.standard_normal((12, 10))}),
    "damping": (lambda v: damping((8, 10), v["pixel_size"], v["exposure"], v["voltage"]),
                {"pixel_size": 1.5, "exposure": 20.0, "voltage": 250.0}),
    "smoothness_penalty": (lambda v: smoothness_penalty(v["frequencies"], v["values"],
                                                        v["slope_change"]),
                           {"frequencies": np.array([0.02, 0.1, 0.25, 0.5]),
                            "values": np.array([1.0, 0.8, 0.5, 0.4]), "slope_change": 2.0}),
    "wavelength": (lambda v: as_tensor(wavelength(v["voltage"])), {"voltage": 250.0}),
    "interaction_constant": (lambda v: as_tensor(interaction_constant(v["voltage"])),
                             {"voltage": 250.0}),
    "tilt_rotation": (lambda v: tilt_rotation(v["tilt_angle"], v["axis_angle"]),
                      {"tilt_angle": 20.0, "axis_angle": 8.0}),
    "rotation_from_vector": (lambda v: rotation_from_vector(v["vector"]),
                             {"vector": np.array([0.2, -0.1, 0.4])}),
    "anisotropic": (lambda v: anisotropic(v["anisotropy"], v["angle"]),
                    {"anisotropy": 0.1, "angle": 20.0}),
    "path_length": (lambda v: path_length(taken(IceShape, v), TILT.to(as_tensor(0.0)), v["x"],
                                          v["y"]),
                    {**SHAPE, "x": np.linspace(-40, 40, 6), "y": np.linspace(-30, 20, 6)}),
    "fill": (lambda v: fill(taken(IceShape, v), TILT.to(as_tensor(0.0)), (6, 7), v["pixel_size"],
                            -21.0, 17.0, shift=v["shift"]),
             {**SHAPE, "pixel_size": 11.0, "shift": np.array([3.0, -4.0])}),
    "expected_image": (lambda v: _whole(v, Ice()), WHOLE),
    "expected_images": (lambda v: _whole({**WHOLE, **v}, Ice(), True), {
        "copies": np.array([[[2.0, -1.0, 3.0]], [[1.0, 2.0, -3.0]]]),
        "tilt_angle": np.array([10.0, -20.0]), "dose": np.array([8.0, 9.0])}),
    "expected_image, granular ice": (
        lambda v: _whole({**WHOLE, **v}, taken(Ice, v, seed=3), energy_filter=False), ICE),
    "Kind": (_kind, {"weight": np.array([1.0, 2.0, 1.5]), "broadening": np.array([9.0, 8.0, 12.0]),
                     "sites": np.array([[0.0, 1.0, 2.0], [3.0, -2.0, 1.0], [-1.0, 2.0, -3.0]]),
                     "table": np.array([[[2.0, 1.0], [6.0, 9.0]], [[1.0, 3.0], [5.0, 12.0]]])}),
}
