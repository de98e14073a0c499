"""Every continuous number of a scene: gradient through the whole chain against differences."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tem_taichi import multislice, slice_potential
from tem_taichi.batches import expected_image
from tem_taichi.device import as_tensor, init
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics, form_image
from tem_taichi.instrument.tem import TEM
from tem_taichi.noise.detector import Detector, expected_counts, noise_power_spectrum
from tem_taichi.rotations import euler_to_matrix, rotation_from_vector
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.ice_shape import IceShape
from tem_taichi.specimen.particles import Ice, ParticlesInIce, kind_of
from tem_taichi.specimen.poses import Poses

TABLE = Path(__file__).parent.parent / "docs" / "gradients.md"
TOLERANCE = 1e-6

VALUES: dict[str, tuple[object, str]] = {
    "atom positions": ("random", "A"), "B-factors": ("random", "A^2"),
    "occupancies": ("random", "1"),
    "particle positions": ([[4.0, -3.0, 6.0], [-7.0, 5.0, -11.0]], "A"),
    "particle orientations": ([[0.0, 0.0, 0.0], [0.1, -0.2, 0.3]], "rad"),
    "ice thickness": (300.0, "A"), "ice potential": (4.48, "V"),
    "ice mean free path": (3950.0, "A"),
    "tilt angle": (25.0, "deg"), "tilt axis angle": (-8.0, "deg"),
    "image shift": ([1.5, -2.5], "A"),
    "voltage": (280.0, "kV"), "amplitude contrast": (0.07, "1"),
    "defocus": (3000.0, "A"), "astigmatism": (700.0, "A"), "astigmatism angle": (35.0, "deg"),
    "spherical aberration": (2.7, "mm"), "phase shift": (25.0, "deg"),
    "chromatic aberration": (2.7, "mm"), "energy spread": (0.7, "eV"),
    "convergence": (0.2, "mrad"),
    "beam tilt": ([1.5, -0.8], "mrad"), "coma": (3e5, "A"), "coma angle": (40.0, "deg"),
    "trefoil": (2e5, "A"), "trefoil angle": (-20.0, "deg"),
    "magnification anisotropy": (0.05, "1"), "magnification angle": (25.0, "deg"),
    "dose": (20.0, "e-/A^2"), "detector gain": (1.7, "counts per electron"),
    "MTF parameters": ([0.7, 0.2, 0.1, 10.0, 40.0], "1"),
}
"""Parameters of the whole chain, where they are tested and in which unit."""


REALISM: dict[str, tuple[float, str]] = {
    "ice granularity": (0.8, "1"), "radiation damage": (1.0, "1"), "prior dose": (12.0, "e-/A^2"),
    "mean free path, absorbing": (3950.0, "A"), "particle absorption": (1.2, "1"),
    "thickness in the hole": (30.0, "A"),
    "thickness at the rim": (53.7, "A"), "hole radius": (60.0, "A"),
    "slope of the ice": (0.13, "1"), "carbon thickness": (20.0, "A"),
}
"""The same for a scene with granular ice in a hole, damage, and no energy filter."""


@pytest.fixture(autouse=True)
def whole_tails(monkeypatch):
    """Let stencils hold all of a Gaussian: a difference across the edge of one would jump."""
    monkeypatch.setattr("tem_taichi.specimen.splatting._TAIL", 1e-13)


@pytest.fixture(scope="module")
def start():
    init("cpu", "float64")
    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    values = {name: as_tensor(value) for name, (value, _) in VALUES.items() if value != "random"}
    values["atom positions"] = 16 * draw(10, 3) - 8
    values["B-factors"] = 20 + 60 * draw(10)
    values["occupancies"] = 0.3 + 0.7 * draw(10)
    # Without a mean, since that of the counts hardly changes: it would only add rounding.
    values["weights of the loss"] = draw(48, 48) - 0.5
    return values


STEPS = (2e-4, 2e-3, 1e-2, 1e-5, 3e-6, 1e-6, 1e-7)
"""Of differences, relative: a short one suffers from rounding where a parameter changes the image
little, a long one from curvature where it changes it much, or from surfaces of the ice that cross
the boundary of a slice in between. A wrong gradient agrees with none."""


def image(p):
    """Expected counts of two copies of ten atoms, tilted, in ice."""
    atoms = Atoms(torch.tensor([6, 7, 8, 16, 26] * 2), p["atom positions"], p["B-factors"],
                  p["occupancies"], torch.zeros(10, dtype=torch.bool))
    base = as_tensor(euler_to_matrix([10.0, 200.0], [30.0, 70.0], [50.0, -20.0]))
    poses = Poses(p["particle positions"],
                  rotation_from_vector(p["particle orientations"]) @ base)
    specimen = ParticlesInIce((kind_of(atoms),), (poses,), Ice(
        p["ice thickness"], p["ice potential"], p["ice mean free path"]))
    optics = Optics(
        defocus=p["defocus"], spherical_aberration=p["spherical aberration"],
        astigmatism=p["astigmatism"], astigmatism_angle=p["astigmatism angle"],
        phase_shift=p["phase shift"], chromatic_aberration=p["chromatic aberration"],
        energy_spread=p["energy spread"], convergence=p["convergence"],
        beam_tilt_x=p["beam tilt"][0], beam_tilt_y=p["beam tilt"][1], coma=p["coma"],
        coma_angle=p["coma angle"], trefoil=p["trefoil"], trefoil_angle=p["trefoil angle"])
    # Thin slices make several groups of them, so that waves are computed again on the way back.
    instrument = TEM((48, 48), (72, 72), 1.0, p["voltage"], p["amplitude contrast"],
                     slice_thickness=2.0, depth="smooth",
                     anisotropy=p["magnification anisotropy"],
                     anisotropy_angle=p["magnification angle"])
    exposure = Exposure(optics, p["tilt angle"], p["tilt axis angle"], *p["image shift"],
                        dose=p["dose"])
    return expected_image(specimen, instrument, exposure,
                          Detector(gain=p["detector gain"], mtf=p["MTF parameters"]))


def realistic_image(p):
    """Expected counts of ten atoms in a hole of granular ice at the edge of a carbon film."""
    atoms = Atoms(torch.tensor([6, 7, 8, 16, 26] * 2), p["atom positions"], p["B-factors"],
                  p["occupancies"], torch.zeros(10, dtype=torch.bool))
    poses = Poses(p["particle positions"][:1], as_tensor(euler_to_matrix([10.0], [30.0], [50.0])))
    shape = IceShape(thickness=p["thickness in the hole"], edge_thickness=p["thickness at the rim"],
                     hole_radius=p["hole radius"], centre_x=45.0, centre_y=10.0,
                     slope_x=p["slope of the ice"], carbon_thickness=p["carbon thickness"])
    ice = Ice(thickness=30.0, potential=4.48, mean_free_path=p["mean free path, absorbing"],
              particle_absorption=p["particle absorption"], granularity=p["ice granularity"],
              seed=3, shape=shape)
    instrument = TEM((48, 48), (72, 72), 1.0, 300.0, None, slice_thickness=4.0,
                     depth="smooth", energy_filter=False, damage=p["radiation damage"])
    exposure = Exposure(Optics(defocus=3000.0), 25.0, -8.0, dose=20.0, prior_dose=p["prior dose"])
    return expected_image(ParticlesInIce((kind_of(atoms),), (poses,), ice), instrument, exposure)


def loss(p):
    """A weighted sum of expected counts."""
    return (image(p) * p["weights of the loss"]).sum()


def relative_error(function, values, name):
    """Gradient against fourth-order central differences along a random direction."""
    value = values[name].detach().clone().requires_grad_()
    gradient, = torch.autograd.grad(function({**values, name: value}), value)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    scale = value.detach().abs().max().clamp(min=0.1) / direction.abs().max()
    errors = []
    for step in STEPS:
        with torch.no_grad():
            at = {m: float(function({**values, name: value + m * step * scale * direction}))
                  for m in (-2, -1, 1, 2)}
        slope = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * float(step * scale))
        errors.append(abs(float((gradient * direction).sum()) - slope) / abs(slope))
        if errors[-1] < TOLERANCE:
            break
    return min(errors)


ERRORS: dict[str, float] = {}


@pytest.mark.parametrize("name", list(VALUES))
def test_whole_chain(double, start, name):
    ERRORS[name] = relative_error(loss, start, name)
    assert ERRORS[name] < TOLERANCE


@pytest.mark.parametrize("name", [*REALISM, "atom positions"])
def test_realistic_chain(double, start, name):
    values = start | {key: as_tensor(value) for key, (value, _) in REALISM.items()}
    error = relative_error(lambda p: (realistic_image(p) * p["weights of the loss"]).sum(),
                           values, name)
    if name in REALISM:
        ERRORS[name] = error
    assert error < TOLERANCE


def test_slice_volume(double, start):
    def image(values):
        wave = multislice(values["slices"], 1.0, 5.0, 300.0, amplitude_contrast=0.1)
        return (form_image(wave, 1.0, 300.0, defocus=2000.0)[:12] ** 2).sum()

    slices = 100 * torch.rand(20, 24, 24, dtype=torch.float64,
                              generator=torch.Generator().manual_seed(3))
    ERRORS["slice volumes"] = relative_error(image, {"slices": slices}, "slices")
    assert ERRORS["slice volumes"] < TOLERANCE


def test_detector_tables(double, start):
    w = torch.linspace(0, 0.5, 9, dtype=torch.float64)
    image = 1 + 0.3 * torch.rand(24, 24, dtype=torch.float64,
                                 generator=torch.Generator().manual_seed(4))

    def counts(values):
        detector = Detector(mtf=(w, values["mtf"]))
        return (expected_counts(image, pixel_size=1.0, dose=10.0, detector=detector) ** 2).sum()

    def spectrum(values):
        detector = Detector(mtf=(w, values["mtf"]), dqe=(w, values["dqe"]))
        return (noise_power_spectrum(w[1:-1] + 0.01, detector, dose=10.0, pixel_size=1.0)
                ** 2).sum()

    values = {"mtf": 1 - 1.5 * w, "dqe": 0.8 - w}
    ERRORS["MTF table"] = relative_error(counts, values, "mtf")
    ERRORS["DQE table (in the noise spectrum)"] = relative_error(spectrum, values, "dqe")
    assert ERRORS["MTF table"] < TOLERANCE
    assert ERRORS["DQE table (in the noise spectrum)"] < TOLERANCE


def test_table_of_the_documentation_is_this_one(double):
    """TEM_TAICHI_WRITE_DOCS=1 writes it; otherwise it must list what was tested here."""
    if len(ERRORS) != len(VALUES) + len(REALISM) + 3:
        pytest.skip("the other tests of this file did not all run")
    if os.environ.get("TEM_TAICHI_WRITE_DOCS"):
        units = {name: unit for name, (_, unit) in (VALUES | REALISM).items()}
        rows = [f"| {name} | {units.get(name, '')} | {error:.0e} |"
                for name, error in ERRORS.items()]
        head, _, _ = TABLE.read_text(encoding="utf-8").partition("| parameter |")
        TABLE.write_text(head + "| parameter | unit | relative error |\n| --- | --- | --- |\n"
                         + "\n".join(rows) + "\n", encoding="utf-8")
    _, _, table = TABLE.read_text("utf-8").partition("| parameter |")
    listed = [line.split("|")[1].strip() for line in table.splitlines()
              if line.startswith("| ")][1:]
    assert listed == list(ERRORS)


def test_single_precision_is_enough(start):
    """float32 against float64: within 1e-3 of the gradient's norm, for all parameters.

    The loss is that of a fit, the misfit to the image of the one parameter 10 % up: where several
    are off at once, their shares of another one's gradient cancel by chance. Both get the misfit
    of float64, since rounding of the counts themselves may be as large as a weak parameter's.
    """
    def parameters(dtype):
        init("cpu", dtype)
        return {name: as_tensor(value.clone()).requires_grad_() for name, value in start.items()}

    def gradients(p, misfits):
        here = image(p)
        return {name: torch.autograd.grad(here, p[name], misfit.to(here), retain_graph=True)[0]
                for name, misfit in misfits.items()}

    p = parameters("float64")
    with torch.no_grad():
        misfits = {name: image(p) - image({**p, name: 1.1 * p[name]}) for name in VALUES}
    exact = gradients(p, misfits)
    single = gradients(parameters("float32"), misfits)
    for name, expected in exact.items():
        error = float((single[name].double() - expected).norm() / expected.norm())
        assert error < 1e-3, (name, error)


def test_repeated_and_nested_backward(double, start):
    p = {**start, "defocus": start["defocus"].clone().requires_grad_(),
         "atom positions": start["atom positions"].clone().requires_grad_()}
    wanted = [p["defocus"], p["atom positions"]]
    value = loss(p)
    once = torch.autograd.grad(value, wanted, retain_graph=True)
    twice = torch.autograd.grad(value, wanted, retain_graph=True)
    inner = loss(p)  # another graph in between
    torch.autograd.grad(inner, wanted)
    thrice = torch.autograd.grad(value, wanted)
    for a, b, c in zip(once, twice, thrice, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_gradient_from_two_threads_and_after_a_new_start(double, start):
    from concurrent.futures import ThreadPoolExecutor

    def gradient(_):
        defocus = start["defocus"].clone().requires_grad_()
        return float(torch.autograd.grad(loss({**start, "defocus": defocus}), defocus)[0])

    expected = gradient(0)
    init("cpu", "float32")
    init("cpu", "float64")
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(gradient, range(4))) == [expected] * 4


def test_every_atom_has_a_gradient_in_z(double, start):
    """The outermost ones, too, share a slice on either side with smooth depth."""
    positions = start["atom positions"].clone().requires_grad_()
    gradient, = torch.autograd.grad(loss({**start, "atom positions": positions}), positions)
    assert float(gradient[:, 2].abs().min()) > 0


def test_potential_from_a_leaf_of_float32_keeps_its_gradient():
    position = torch.tensor([[0.3, 0.1, 0.2]], requires_grad=True)
    atoms = Atoms(torch.tensor([8]), position, torch.tensor([10.0]), torch.tensor([1.0]),
                  torch.tensor([False]))
    slice_potential(atoms, (32, 32), 1.0, 2.0, 4.0)[:, :16].sum().backward()
    assert float(position.grad[0, 1].abs()) > 0
    assert replace(atoms, positions=position.detach()).positions.grad is None
