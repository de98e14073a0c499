"""Parameters counted in their natural steps, and the units that every field states."""

import ast
import inspect
import math
import textwrap
from itertools import pairwise

import pytest
import torch

from tem_taichi.device import as_tensor
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics, aberration_phase, ctf, odd_phase
from tem_taichi.instrument.tem import TEM
from tem_taichi.inverse.minimise import Optimiser, minimise
from tem_taichi.inverse.scales import UNITS, natural_scales, scaled, unscaled
from tem_taichi.noise.curves import requires_grad
from tem_taichi.noise.detector import Detector
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.ice_shape import IceShape
from tem_taichi.specimen.particles import Ice

RESOLUTION = 4.0
DISCRETE = {"detector_shape", "wave_shape", "depth", "linear", "stages", "energy_filter", "optics",
            "stream", "seed", "shape", "ratios", "kind", "integer", "numbers", "is_water"}
NO_GRADIENT = {"pixel_size": "A", "slice_thickness": "A", "aperture": "um", "focal_length": "mm"}


def field_texts(cls):
    """Docstring of each field, below it or under Attributes."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    texts = {a.target.id: ast.literal_eval(b.value) for a, b in pairwise(body)
             if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr)}
    return texts or {name: cls.__doc__ for name in inspect.signature(cls).parameters}


@pytest.mark.parametrize("cls", [Optics, Exposure, TEM, Ice, IceShape, Atoms, Detector])
def test_every_continuous_field_states_its_unit(cls):
    for name, text in field_texts(cls).items():
        if name in DISCRETE:
            continue
        unit = (UNITS | NO_GRADIENT)[name]
        # A of z per A of x, and curves over frequency, are pure numbers and say what of.
        assert unit == "1" or unit in text.replace("incident ", ""), (name, text)


EVEN = ("defocus", "astigmatism", "spherical_aberration", "phase_shift")
ODD = ("coma", "trefoil", "beam_tilt_x", "beam_tilt_y")


@pytest.mark.parametrize("name", EVEN + ODD)
@pytest.mark.parametrize("voltage", [200.0, 300.0])
def test_a_step_turns_the_phase_by_a_radian_at_the_resolution(double, name, voltage):
    n, pixel = 64, 1.0
    at = int(n * pixel / RESOLUTION)  # the pixel of the transform whose k is 1 / resolution
    step = natural_scales({name: 0.0}, RESOLUTION, voltage)[name]
    phase = aberration_phase if name in EVEN else odd_phase
    moved, still = (phase((n, n), pixel, voltage, Optics(**{name: value}))
                    for value in (step, 0.0))
    moved = moved - still
    along = moved[at, 0] if name.endswith("_y") else moved[0, at]
    assert abs(float(along)) == pytest.approx(1, rel=1e-9)


def test_other_names_take_their_own_size_and_names_may_have_a_front():
    scales = natural_scales({"image3.defocus": 0.0, "dose": 25.0, "odd": 0.0}, 4.0)
    assert scales["image3.defocus"] == natural_scales({"defocus": 1.0}, 4.0)["defocus"]
    assert scales["dose"] == 25.0 and scales["odd"] == 1.0
    with pytest.raises(ValueError, match="resolution=-4"):
        natural_scales({}, -4.0)


def test_scaled_and_back_keeps_values_and_gradients(double):
    values = {"defocus": as_tensor(12000.0), "shift_x": as_tensor([3.0, -2.0])}
    scales = natural_scales(values, 4.0)
    numbers = {name: value.requires_grad_() for name, value in scaled(values, scales).items()}
    back = unscaled(numbers, scales)
    for name, value in values.items():
        torch.testing.assert_close(back[name], value)
        assert requires_grad(back[name])


@pytest.fixture
def micrograph(double):
    """Mean squared misfit to a thin specimen's noisy image, over defocus and astigmatism."""
    generator = torch.Generator().manual_seed(3)
    shape, pixel, noise = (48, 48), 1.5, 0.03
    truth = {"defocus": as_tensor(9000.0), "astigmatism": as_tensor(350.0)}
    specimen = torch.fft.fft2(0.1 * torch.randn(shape, generator=generator, dtype=torch.float64))

    def image(values):
        lens = Optics(**values, astigmatism_angle=20.0)
        return 1 + 2 * torch.fft.ifft2(specimen * ctf(shape, pixel, 300.0, lens, 0.07)).real

    data = image(truth) + noise * torch.randn(shape, generator=generator, dtype=torch.float64)
    start = {"defocus": truth["defocus"] + 60.0, "astigmatism": truth["astigmatism"] - 100.0}
    return lambda values: ((image(values) - data) ** 2).mean(), start, truth


def lbfgs(loss, start, scales):
    """Values after torch's own LBFGS with its defaults, up to 100 evaluations."""
    numbers = {name: value.requires_grad_() for name, value in scaled(start, scales).items()}
    optimiser = torch.optim.LBFGS(list(numbers.values()))

    def closure():
        optimiser.zero_grad()
        value = loss(unscaled(numbers, scales))
        value.backward()
        return value

    for _ in range(5):
        optimiser.step(closure)
    return {name: value.detach() for name, value in unscaled(numbers, scales).items()}


def test_lbfgs_moves_a_defocus_that_is_counted_in_its_scale(micrograph):
    loss, start, truth = micrograph
    scales = natural_scales(start, 2 * 1.5)
    assert 100 < scales["defocus"] < 200  # 9 A^2 / (pi 0.0197 A)
    moved = lbfgs(loss, start, scales)
    stuck = lbfgs(loss, start, {})
    # Noise of 0.03 on 2304 pixels: standard errors of some A.
    assert max(abs(float(moved[name] - truth[name])) for name in truth) < 20
    assert max(abs(float(stuck[name] - start[name])) for name in truth) < 1


def test_fit_in_scales_ends_where_it_should(micrograph, tmp_path):
    loss, start, truth = micrograph
    steps = []
    found = minimise(loss, start, Optimiser(steps=40), scales=natural_scales(start, 3.0),
                     progress=lambda n, value, values: steps.append(values))
    assert abs(float(found.values["defocus"] - truth["defocus"])) < 20
    assert abs(float(steps[-1]["defocus"] - found.values["defocus"])) < 1  # in A, not in scales
    assert found.loss == pytest.approx(float(loss(found.values)))
    with pytest.raises(ValueError, match=r"scales.dose=2.0: must be a positive number for one of"):
        minimise(loss, start, scales={"dose": 2.0})
    with pytest.raises(ValueError, match=r"scales.defocus="):
        minimise(loss, start, scales={"defocus": math.nan})
