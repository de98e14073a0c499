"""Natural scales of parameters: in which steps an optimiser should count them.

LBFGS and Adam know no units. Their first step is about 1 in every parameter: far too short for a
defocus in A, far too long for a shift in A of a sharp image. Counted in steps that each turn a
phase by about a radian, parameters of all kinds curve a loss alike, and one rate serves all:

    scales = natural_scales(start, resolution=4.0)
    numbers = {name: value.requires_grad_() for name, value in scaled(start, scales).items()}
    ...  # in the loss: values = unscaled(numbers, scales)

`minimise` does it when it is given the scales.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from tem_taichi.arguments import check_positive_number, check_voltage
from tem_taichi.device import as_tensor, number
from tem_taichi.physics import Value, wavelength

UNITS = {
    "defocus": "A", "astigmatism": "A", "astigmatism_angle": "deg", "spherical_aberration": "mm",
    "phase_shift": "deg", "beam_tilt_x": "mrad", "beam_tilt_y": "mrad", "coma": "A",
    "coma_angle": "deg", "trefoil": "A", "trefoil_angle": "deg", "chromatic_aberration": "mm",
    "energy_spread": "eV", "convergence": "mrad",
    "voltage": "kV", "amplitude_contrast": "1", "anisotropy": "1", "anisotropy_angle": "deg",
    "damage": "1", "tilt_angle": "deg", "axis_angle": "deg", "shift_x": "A", "shift_y": "A",
    "dose": "e-/A^2", "prior_dose": "e-/A^2",
    "positions": "A", "b_factors": "A^2", "occupancies": "1", "rotation_vector": "rad",
    "thickness": "A", "potential": "V", "mean_free_path": "A", "particle_absorption": "1",
    "granularity": "1", "stopped": "1", "edge_thickness": "A", "hole_radius": "A", "centre_x": "A",
    "centre_y": "A", "slope_x": "1", "slope_y": "1", "carbon_thickness": "A", "carbon_edge": "A",
    "relief": "1", "relief_heights": "A", "relief_spacing": "A",
    "absorption": "1", "absorption_spacing": "A",
    "gain": "counts per electron", "mtf": "1", "dqe": "1",
}
"""Of every continuous field of `Optics`, `Instrument`, `Exposure`, `Atoms`, `Ice`, `IceShape` and
`Detector`; rotation_vector is that of `rotations.rotation_from_vector`."""


def natural_scales(
    values: Mapping[str, Value], resolution: float, voltage: float = 300.0, *,
    spherical_aberration: float = 2.7, radius: float = 100.0,
) -> dict[str, float]:
    """How much of each parameter changes an image by about its signal at a resolution.

    Aberrations, shifts and turns: what turns the phase by 1 rad at k = 1 / resolution, by the
    formulas of `optics.aberration_phase` and `optics.odd_phase`. A B-factor: what leaves 1/e. Any
    other: its own size, or 1 where that is 0.

    Args:
        values: parameters by the names of `UNITS`; what stands before a dot is left out, as in
            "image3.defocus".
        resolution: finest detail that the data show [A].
        voltage: [kV].
        spherical_aberration: Cs [mm], for beam tilts.
        radius: of the particle or field that turns [A].

    Returns:
        A scale for each name, in the unit of the parameter.

    Raises:
        ValueError: if a number is not positive.
    """
    check_positive_number("resolution", resolution, "A")
    check_positive_number("radius", radius, "A")
    check_voltage(voltage)
    k, wave = 1 / resolution, wavelength(voltage)
    odd = 2 * math.pi * wave**2 * k**3
    shift = 1 / (2 * math.pi * k)
    turn = math.degrees(shift / radius)
    radian = math.degrees(1.0)
    known = {
        "defocus": 1 / (math.pi * wave * k**2), "astigmatism": 2 / (math.pi * wave * k**2),
        "spherical_aberration": 2e-7 / (math.pi * wave**3 * k**4), "phase_shift": radian,
        "coma": 3 / odd, "trefoil": 3 / odd,
        "astigmatism_angle": radian / 2, "coma_angle": radian, "trefoil_angle": radian / 3,
        "anisotropy_angle": radian / 2, "anisotropy": 2 * shift / radius,
        "positions": shift, "shift_x": shift, "shift_y": shift, "centre_x": shift,
        "centre_y": shift, "tilt_angle": turn, "axis_angle": turn,
        "rotation_vector": shift / radius, "b_factors": 4 / k**2, "occupancies": 1.0,
        "amplitude_contrast": 0.1, "mtf": 0.1, "dqe": 0.1, "slope_x": 0.1, "slope_y": 0.1,
    }
    tilts = 1e-4 / (odd * max(abs(spherical_aberration), 0.01))
    known |= {"beam_tilt_x": tilts, "beam_tilt_y": tilts}
    return {name: known.get(name.rpartition(".")[2]) or _size(value)
            for name, value in values.items()}


def _size(value: Value) -> float:
    """Largest magnitude; 1 if all is zero."""
    return number(as_tensor(value).detach().abs().max()) or 1.0


def scaled(values: Mapping[str, Value], scales: Mapping[str, float]) -> dict[str, Tensor]:
    """Parameters as numbers without units, each in its scale; without one, as they are."""
    return {name: as_tensor(value) / scales.get(name, 1.0) for name, value in values.items()}


def unscaled(numbers: Mapping[str, Tensor], scales: Mapping[str, float]) -> dict[str, Tensor]:
    """The inverse of `scaled`; gradients pass."""
    return {name: value * scales[name] if name in scales else value
            for name, value in numbers.items()}
