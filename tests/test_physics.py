import math

import pytest
import torch

from tem_taichi import physics


# Kirkland 2020, table 2.2 and CODATA; the digits given bound the tolerance.
@pytest.mark.parametrize(("voltage", "wavelength", "sigma"), [
    (100, 0.0370144, 9.24397e-4), (200, 0.0250793, 7.28840e-4), (300, 0.0196875, 6.526161e-4)])
def test_beam_constants(voltage, wavelength, sigma):
    assert physics.wavelength(voltage) == pytest.approx(wavelength, rel=3e-6)
    assert physics.interaction_constant(voltage) == pytest.approx(sigma, rel=3e-6)


@pytest.mark.parametrize("function", [physics.wavelength, physics.interaction_constant])
def test_single_precision_tensor_voltage(function):
    assert float(function(torch.tensor(300.0))) == pytest.approx(function(300.0), rel=1e-6)


def test_potential_of_a_scattering_factor():
    assert physics.SCATTERING_TO_POTENTIAL == pytest.approx(47.87765, rel=1e-7)


def test_voltage_has_a_gradient():
    voltage = torch.tensor(300.0, dtype=torch.float64, requires_grad=True)
    physics.wavelength(voltage).backward()
    slope = (physics.wavelength(300.01) - physics.wavelength(299.99)) / 0.02
    assert float(voltage.grad) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("voltage", [0.0, -1.0, math.nan, math.inf])
def test_impossible_voltage(voltage):
    with pytest.raises(ValueError, match=r"voltage=.*must be from 10 up to 3000 \[kV\]"):
        physics.wavelength(voltage)
