import numpy as np
import pytest

from tem_taichi.cameras import detector_from_config
from tem_taichi.curves import evaluate, numbers
from tem_taichi.detector import Detector, detect
from tem_taichi.device import as_tensor
from tem_taichi.fits.edge_fit import FREQUENCIES, estimate_mtf_from_edge

TMV = (0.7, 0.2, 0.1, 10.0, 40.0)
RESOLVED = FREQUENCIES >= 2 / 256


def half_plane(side, angle, offset, dark=0.2, fine=8):
    """Edge drawn 8 times finer and cropped in Fourier space, as the microscope's image is."""
    place = (np.arange(side * fine) + 0.5) / fine - 0.5 - side // 2
    distance = (np.cos(np.radians(angle)) * place + np.sin(np.radians(angle)) * place[:, None]
                - offset)
    spectrum = np.fft.fft2(dark + (1 - dark) * np.clip(distance * fine + 0.5, 0, 1)) / fine**2
    kept = np.fft.fftfreq(side, 1 / side).astype(int)
    shift = np.exp(1j * np.pi * np.fft.fftfreq(side) * (fine - 1) / fine)
    return np.fft.ifft2(spectrum[np.ix_(kept, kept)] * shift * shift[:, None]).real


def recorded(kind, angle=5.0, offset=3.3, dose=2000.0, mtf=TMV, side=192, seed=0):
    detector = Detector(kind, gain=3.0, mtf=mtf, dqe=0.5)
    scene = as_tensor(half_plane(side, angle, offset))
    return numbers(detect(scene, pixel_size=1.0, dose=dose, detector=detector, seed=seed))


def at(curve):
    return numbers(evaluate(curve, as_tensor(FREQUENCIES)))


def gaussian_edge(shape, angle, offset, width):
    """Point samples of a step blurred by a Gaussian of MTF exp(-2 pi^2 width^2 w^2)."""
    from scipy.special import ndtr
    y, x = (np.arange(n) - n // 2 for n in shape)
    distance = (np.cos(np.radians(angle)) * x + np.sin(np.radians(angle)) * y[:, None] - offset)
    return ndtr(distance / width)


@pytest.mark.parametrize("kind", ["integrating", "counting"])
@pytest.mark.parametrize("form", ["parametric", "free"])
def test_edge_gives_the_mtf_of_both_kinds(kind, form):
    # Square images cropped in Fourier space reach farther along a slanted normal.
    fit = estimate_mtf_from_edge(recorded(kind), form=form, highest=0.5 / np.cos(np.radians(5)))
    error = np.abs(fit.mtf.values - at(TMV))[RESOLVED]
    # Two deviations at the worst frequency, as the bands have it; free curves know less.
    assert error.max() < (0.02 if form == "parametric" else 0.04)
    inside = (fit.mtf.lower <= at(TMV)) & (at(TMV) <= fit.mtf.upper)
    assert inside[RESOLVED].mean() > 0.7
    assert fit.mtf.values[0] == pytest.approx(1, abs=1e-9)
    # Deviations of the position 1e-3, of the angle 2e-3, of levels 0.3 of 6000 counts.
    assert fit.angle == pytest.approx(5, abs=0.02)
    assert fit.offset == pytest.approx(3.3, abs=0.01)
    assert fit.bright == pytest.approx(6000, rel=0.005)
    assert fit.dark == pytest.approx(1200, rel=0.01)
    assert 0.3 < fit.misfit < 3
    camera = detector_from_config(fit.to_config(kind=kind, gain=3.0))
    np.testing.assert_allclose(at(camera.mtf), fit.mtf.values, atol=1e-3)


@pytest.mark.parametrize("angle", [-86.0, 94.0, 176.0, 40.0])
def test_every_orientation(angle):
    fit = estimate_mtf_from_edge(recorded("integrating", angle=angle, offset=-6.0),
                                 form="parametric", highest=0.5 / np.abs(
        [np.cos(np.radians(angle)), np.sin(np.radians(angle))]).max())
    assert (fit.angle - angle + 180) % 360 - 180 == pytest.approx(0, abs=0.02)
    assert fit.offset == pytest.approx(-6, abs=0.02)
    assert np.abs(fit.mtf.values - at(TMV))[RESOLVED].max() < 0.03


def test_aliased_pixels_of_a_real_camera():
    width = 0.35  # the MTF at Nyquist is 0.55: strongly aliased
    clean = 900 * gaussian_edge((160, 200), 6.0, 2.0, width) + 100
    noisy = np.random.default_rng(3).poisson(clean, (8, 160, 200))
    truth = np.exp(-2 * (np.pi * width * FREQUENCIES) ** 2)
    fit = estimate_mtf_from_edge(noisy)
    assert np.abs(fit.mtf.values - truth)[RESOLVED].max() < 0.03
    cut = estimate_mtf_from_edge(noisy, highest=0.5)
    assert cut.misfit > 3 * fit.misfit  # says that something is missing


def test_a_sloping_illumination_is_fitted_too():
    clean = 900 * gaussian_edge((160, 160), 5.0, 0.0, 0.6)
    slope = 1 + 0.1 * np.linspace(-1, 1, 160)[:, None]
    noisy = np.random.default_rng(3).poisson(clean * slope + 100, (8, 160, 160))
    fit = estimate_mtf_from_edge(noisy, highest=1.0)
    truth = np.exp(-2 * (np.pi * 0.6 * FREQUENCIES) ** 2)
    assert np.abs(fit.mtf.values - truth)[RESOLVED].max() < 0.03


@pytest.mark.parametrize(("image", "options", "message"), [
    (np.random.default_rng(0).poisson(20, (96, 96)), {}, "shows no straight edge"),
    (np.ones((96, 96)), {}, "shows no straight edge"),
    (np.full((96, 96), np.inf), {}, "image: must be finite"),
    (np.ones((8, 8)), {}, r"image has shape \(8, 8\)"),
    (half_plane(96, 0.0, 0.0), {}, "slanted by 0.0 degrees"),
    (half_plane(96, 5.0, 0.0), {"form": "gauss"}, "form='gauss'"),
    (half_plane(96, 5.0, 0.0), {"highest": 0.1}, "highest=0.1"),
    (half_plane(96, 5.0, 0.0), {"reach": -1.0}, "reach=-1"),
])
def test_unusable_images_are_refused(image, options, message):
    with pytest.raises(ValueError, match=message) as error:
        estimate_mtf_from_edge(image, **options)
    assert "\n" not in str(error.value)
