"""No gradient is lost without a word: a tensor has the right one, or is refused."""

import pytest
import torch
from public import CALLS

from tem_taichi.device import as_tensor

TOLERANCE = 2e-6
"""Of fourth-order differences in float64: rounding 1e-16 over steps of 1e-4 to 1e-6, curvature."""

GRIDS = {"pixel_size", "slice_thickness", "thickness"}
REFUSED = {
    **{name: GRIDS for name in CALLS if name.startswith("slice_potential")},
    "expected_image": {"pixel_size", "slice_thickness"},
    **{name: {"aperture", "focal_length"} for name in CALLS
       if name.startswith("form_image") or name in ("ctf", "envelope")},
    "damping": {"pixel_size"}, "fill": {"pixel_size"}, "Kind": {"table"},
    "detect": set(CALLS["detect"][1]),
}
"""What has no gradient, and says so; everything else has one."""

CASES = [(name, key) for name, (_, values) in CALLS.items() for key in values]


@pytest.fixture(autouse=True)
def whole_tails(monkeypatch):
    """Let stencils hold all of a Gaussian: a difference across the edge of one would jump."""
    monkeypatch.setattr("tem_taichi.specimen.splatting._TAIL", 1e-13)


def slope(loss, values, key, direction):
    """Derivatives along a direction by differences of several steps."""
    start = as_tensor(values[key])
    scale = float(start.abs().max().clamp(min=0.1))
    for step in (1e-4, 1e-5, 1e-3, 1e-6):
        # They, too, ask for a gradient, which decides how z is treated.
        at = {m: float(loss({**values, key: (start + m * step * scale * direction)
                             .requires_grad_()})) for m in (-2, -1, 1, 2)}
        yield (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step * scale)


@pytest.mark.parametrize(("name", "key"), CASES)
def test_every_tensor_has_its_gradient_or_is_refused(double, name, key):
    function, values = CALLS[name]
    parameter = as_tensor(values[key]).clone().requires_grad_()
    if key in REFUSED.get(name, ()):
        with pytest.raises(ValueError, match=rf"{key}.*: (has|requires a) gradient|{key}: has no"):
            function({**values, key: parameter})
        return
    # A seed of its own: what is random keeps to the case.
    generator = torch.Generator().manual_seed(len(name) + len(key))
    result = function({**values, key: parameter})
    weights = torch.rand(result.shape, generator=generator, dtype=torch.float64) - 0.5

    def loss(values):
        return (function(values).detach() * weights).sum()

    gradient = None
    if result.requires_grad:
        gradient, = torch.autograd.grad((result * weights).sum(), parameter, allow_unused=True)
    gradient = torch.zeros_like(parameter) if gradient is None else gradient
    direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    direction = direction / direction.abs().max()
    found = float((gradient * direction).sum())
    errors = []
    for expected in slope(loss, values, key, direction):
        errors.append(abs(found - expected) / max(abs(expected), 1e-12))
        if errors[-1] < TOLERANCE:
            break
    assert min(errors) < TOLERANCE, (found, expected)


def test_an_amplitude_contrast_of_exactly_zero_keeps_its_gradient(double):
    function, values = CALLS["expected_image"]
    gradients = []
    for contrast in (0.0, 1e-7):
        parameter = as_tensor(contrast).requires_grad_()
        image = function({**values, "amplitude_contrast": parameter})
        gradients.append(torch.autograd.grad((image**2).sum(), parameter)[0])
    # Beside it by the curvature of the loss times 1e-7.
    assert abs(float(gradients[0])) > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("key", ["positions", "copies", "rotations", "tilt_angle"])
def test_z_has_a_gradient_by_default_wherever_one_is_asked_for(double, key):
    """Each moves atoms in z; a gradient of atoms along z alone is zero with hard slices."""
    function, values = CALLS["expected_image"]
    parameter = as_tensor(values[key]).requires_grad_()
    rigid = {**values, "tilt_angle": 0.0} if key != "tilt_angle" else values
    image = function({**rigid, key: parameter})
    gradient, = torch.autograd.grad((image**2).sum(), parameter)
    assert float((gradient[..., 2] if gradient.ndim else gradient).abs().min()) > 0
    plain = function(values)
    hard = function({**values, "depth": "nearest"})
    assert torch.equal(plain, hard)
