"""CTF fits that must doubt themselves: wrong metadata, no rings, other lenses; and their errors."""

import csv
import math
import re

import mrcfile
import numpy as np
import pytest
import starfile
import torch

from experiments import ctf_hostile
from experiments.ctf_bench import Truth, linear_micrograph
from experiments.ctf_simulated import PIXEL_SIZE
from tem_taichi.estimate import ctf_pool
from tem_taichi.estimate.ctf_band import make_band
from tem_taichi.estimate.ctf_fit import CtfFit, fit_micrograph, fit_particles, fit_spectrum
from tem_taichi.estimate.ctf_pool import Pooled
from tem_taichi.estimate.ctf_search import CtfSearch
from tem_taichi.estimate.spectra import centred_frequencies
from tem_taichi.instrument import optics

LENS = ctf_hostile.LENS
REAL = 1.3995525, 200.0, 1.4, 0.1


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(5)


def exact_spectrum(defocus: float, spherical_aberration: float, size: int = 512) -> torch.Tensor:
    """Without noise, to Nyquist."""
    lens = optics.Optics(defocus=defocus, astigmatism=300, astigmatism_angle=20,
                         spherical_aberration=spherical_aberration)
    ctf = optics.ctf((size, size), PIXEL_SIZE, LENS[0], lens, LENS[2])
    kx, ky = centred_frequencies((size, size), PIXEL_SIZE)
    k = torch.hypot(kx, ky)
    return torch.exp(-5 * k) * (1 + torch.exp(-8 * k) * torch.fft.fftshift(ctf) ** 2)


@pytest.mark.parametrize("true", [1.9, 3.3])
def test_the_aberration_of_exact_rings_is_found(true):
    """Whatever is stated; splines that imitate a little of the rings leave 0.05 mm."""
    found = fit_spectrum(exact_spectrum(9000, true), PIXEL_SIZE, LENS[0], 2.7, LENS[2])
    assert found.spherical_aberration == pytest.approx(true, abs=0.05)


def real_fits(shared, names: slice, factor: float = 1.0, voltage: float = 200.0) -> list[CtfFit]:
    with open(shared / "data/ctf/betagal_ctf_truth.tsv") as file:
        rows = list(csv.DictReader((line for line in file if line[0] != "#"), delimiter="\t"))
    return [fit_spectrum(mrcfile.read(shared / f"data/ctf/{row['micrograph']}_PS.mrc"),
                         factor * REAL[0], voltage, *REAL[2:]) for row in rows[names]]


def test_real_spectra_want_another_aberration(shared):
    """1.05 of the stated 1.4 mm by another program's 24: a warning, but no fit is lost for it."""
    fits = real_fits(shared, slice(1, 4))
    assert all(fit.reliable for fit in fits)
    pooled = ctf_pool.pool(fits)
    assert abs(pooled.value - 1.05) < 4 * pooled.error < 0.4
    assert ctf_pool.differs(pooled, 1.4) and not ctf_pool.contradicts(pooled, 1.4)
    text = ctf_pool.verdict(pooled, 1.4, 0.885, 200.0)
    assert "pixel size is 0.9" in text and "voltage" in text and "mm (defoci then hold)" in text


def test_a_wrong_voltage_of_real_spectra_is_noticed(shared):
    """300 kV for 200 asks for 2.07 times the aberration."""
    pooled = ctf_pool.pool(real_fits(shared, slice(6, 8), voltage=300.0))
    assert ctf_pool.contradicts(pooled, 1.4)


@pytest.mark.parametrize("name", ["pixel x 1.1", "phase plate 30 deg", "overfocus"])
def test_other_metadata_are_noticed(name, generator):
    image = ctf_hostile.ringed(name, 9000.0, generator, 768)
    found, line = ctf_hostile.verdict(image, 9000.0, ctf_hostile.STATED[name][1])
    assert found == "flagged", line


def test_right_metadata_are_not_doubted(generator):
    image = ctf_hostile.ringed("right", 5000.0, generator, 768)
    found, line = ctf_hostile.verdict(image, 5000.0)
    assert found == "right", line


@pytest.mark.parametrize("name", ["blurred 3.3", "blurred 4 + noise 0.003", "balls 32 A",
                                  "balls 40 A", "beads 10 A"])
def test_no_rings_are_never_reliable(name, generator):
    image = ctf_hostile.RINGLESS[name](generator, 512)
    found, line = ctf_hostile.verdict(image, math.nan)
    assert found == "flagged", line


def test_rings_of_balls_of_unlike_sizes_are_told_by_their_distances():
    """Equal distances in k instead of k^2: nothing else doubts these."""
    image = ctf_hostile.RINGLESS["unlike balls 18 A"](np.random.default_rng(7), 512)
    fit = fit_micrograph(image, PIXEL_SIZE, *LENS)
    assert any("equal distances" in doubt for doubt in fit.doubts), fit.defocus


def test_a_blurred_image_has_no_kink(generator):
    """Where it is nothing but rounding it is not fitted, so that nothing there gains much.

    With the floor in its place the gain was 941.
    """
    fit = fit_micrograph(ctf_hostile.RINGLESS["blurred 2.5"](generator, 512), PIXEL_SIZE, *LENS)
    assert fit.gain < 30


def test_errors_hold_what_the_range_moves(shared):
    """Real rings up to 6 A and up to 4 A: 5 of the whole errors, of which both kinds are parts."""
    spectrum = mrcfile.read(shared / "data/ctf/20170629_00023_PS.mrc")
    fine = fit_spectrum(spectrum, *REAL)
    coarse = fit_spectrum(spectrum, *REAL, search=CtfSearch(resolution=(30.0, 6.0)))
    assert np.allclose(np.hypot(fine.statistical_errors, fine.model_errors), fine.errors)
    assert fine.model_errors[0] > fine.statistical_errors[0]
    assert abs(fine.defocus - coarse.defocus) < 3 * math.hypot(fine.errors[0], coarse.errors[0])


def pooled_fit(value: float, error: float) -> CtfFit:
    nothing = (math.nan,) * 4
    none = np.empty(0)
    return CtfFit(defocus_u=1e4, defocus_v=1e4, astigmatism_angle=0, phase_shift=0, errors=nothing,
                  resolution=4, gain=100, figure_of_merit=0.2, doubts=(), curves=None, model=none,
                  flattened=none, pixel_size=1.0,
                  spherical_aberration=value, spherical_error=error)


def test_pool():
    """Weighted mean, and the scatter where the errors are too small for it."""
    assert ctf_pool.pool([]) is None
    pooled = ctf_pool.pool([pooled_fit(1.0, 0.1), pooled_fit(1.1, 0.2)])
    assert pooled.value == pytest.approx(1.02) and pooled.error == pytest.approx(0.2 / 5**0.5)
    wide = ctf_pool.pool([pooled_fit(1.0, 0.1), pooled_fit(2.0, 0.1)])
    assert wide.error == pytest.approx(0.5)


def test_verdict_of_metadata():
    """Pixel size s times too large: Cs s^4; wavelength short by s: Cs s^3."""
    text = ctf_pool.verdict(Pooled(2.7 * 1.1**4, 0.05, 9), 2.7, 1.1, 300.0)
    assert "pixel size is 1 A instead of 1.1 (defoci then are -17.4%" in text
    assert ctf_pool.verdict(Pooled(2.72, 0.05, 9), 2.7, 1.1, 300.0) is None
    for pooled, stated in ((Pooled(0.0, 0.05, 9), 0.0), (Pooled(2.0, 1.0, 9), 2.7)):
        assert ctf_pool.verdict(pooled, stated, 1.1, 300.0) is None
        assert "cannot check them" in ctf_pool.assumption(pooled, stated)
    assert ctf_pool.assumption(Pooled(2.72, 0.05, 9), 2.7).endswith("within 0.5%")
    wave = ctf_pool.wavelength(200.0) / ctf_pool.wavelength(300.0)
    text = ctf_pool.verdict(Pooled(2.7 * wave**3, 0.05, 9), 2.7, 1.1, 300.0)
    assert "voltage is 200 kV instead of 300" in text


def test_particles_share_a_fit(generator):
    """Boxes of 160 pixels hold too little each; a blank one and one with NaN are left out."""
    whole = linear_micrograph(Truth(12000, 200, 30), 800, generator)
    boxes = whole.reshape(5, 160, 5, 160).swapaxes(1, 2).reshape(-1, 160, 160).copy()
    boxes[0], boxes[1, 3, 4] = 5.0, math.nan
    found = fit_particles(boxes, PIXEL_SIZE, *LENS)
    assert abs(found.defocus - 12000) < 5 * found.errors[0] < 600
    with pytest.raises(ValueError, match="none of 2 images can be used"):
        fit_particles(boxes[:2], PIXEL_SIZE, *LENS)


def test_real_particles_share_a_fit(shared):
    """242 boxes of one micrograph, which CTFFIND4 fitted whole: 1 %."""
    boxes = mrcfile.read(shared / "data/particles/betagal_20170629_00021.mrcs").astype(np.float32)
    found = fit_particles(boxes, 3.54, 200.0, 1.4, 0.1)
    assert abs(found.defocus / 10718.2 - 1) < 0.01


def test_seven_real_particles_agree_with_their_own_defoci(shared):
    """Of a star file that has one for each: the mean, and the astigmatism, within 3 errors."""
    folder = shared / "data/particles"
    rows = starfile.read(folder / "empiar_10076_7.star")
    row = rows.iloc[0]
    boxes = mrcfile.read(folder / "empiar_10076_7.mrcs").astype(np.float32)
    found = fit_particles(boxes, 1e4 * row.rlnDetectorPixelSize / row.rlnMagnification,
                          row.rlnVoltage, row.rlnSphericalAberration, row.rlnAmplitudeContrast)
    u, v = rows.rlnDefocusU.mean(), rows.rlnDefocusV.mean()
    assert found.reliable, found.doubts
    assert abs(found.defocus - (u + v) / 2) < 3 * found.errors[0] < 300
    vectors = [amount * np.exp(2j * np.radians(angle)) for amount, angle in (
        (found.defocus_u - found.defocus_v, found.astigmatism_angle),
        (u - v, row.rlnDefocusAngle))]
    # U and V are known apart.
    assert abs(vectors[0] - vectors[1]) < 3 * math.hypot(*found.errors[:2])


@pytest.mark.parametrize(("side", "pixel_size", "asked"), [
    (32, 4.0, (30.0, 8.0)), (48, 1.35, (30.0, 4.0)), (64, 1.35, (8.0, 4.0)),
    (64, 4.0, (15.0, 8.0)), (128, 10.0, (30.0, 4.0)), (512, 2.0, (8.0, 7.5))])
def test_what_too_few_rings_are_told_to_do_helps(generator, side, pixel_size, asked):
    def spectrum(side):
        return torch.as_tensor(generator.exponential(size=(side, side)), dtype=torch.float32)

    with pytest.raises(ValueError, match="must be 20 or more") as told:
        make_band(spectrum(side), pixel_size, *asked)
    range_told = re.search(r"resolution=\[(\S+),(\S+)\]", str(told.value))
    size_told = re.search(r"of (\d+) pixels or more", str(told.value))
    assert bool(range_told) != bool(size_told)
    if size_told:
        side = int(size_told[1])
        low, high = side * pixel_size / 3, 2 * pixel_size
    else:
        low, high = map(float, range_told.groups())
    make_band(spectrum(side), pixel_size, low, high)
