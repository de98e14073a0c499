"""Cameras from configurations: those shipped, and those of one's own."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from tem_taichi.device import as_tensor
from tem_taichi.noise.curves import evaluate, radial_frequency, read_mtf
from tem_taichi.noise.detector import detect, noise_power_spectrum, quantum_efficiency
from tem_taichi.scene.load import load_scene
from tem_taichi.scene.settings import doubts
from tem_taichi.series.camera import detector_from_config

CONFIGS = sorted((Path(__file__).parent.parent / "conf" / "detector").glob("*.yaml"))
PARAMETERS = (0.7, 0.2, 0.1, 10.0, 40.0)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_detectors(path):
    node = OmegaConf.load(path)
    detector = detector_from_config(OmegaConf.to_object(node))
    assert node.name == path.stem
    mtf = evaluate(detector.mtf, radial_frequency(64, 64))
    assert float(mtf[0, 0]) == pytest.approx(1, abs=1e-6)
    assert mtf.min() > 0
    assert mtf.max() <= 1 + 1e-6
    counts = detect(as_tensor(np.ones((8, 8))), detector=detector, pixel_size=2.0,
                    dose=50.0)
    assert counts.isfinite().all()


@pytest.mark.parametrize(("name", "curve", "error"), [
    ("k2_300kv", "mtf_k2_300kV_FL2", 0.0016),
    ("k3_300kv", "mtf_k3_standard_300kV_FL2", 0.003),
    ("falcon3ec_300kv", "mtf_falcon3EC_300kV", 0.0026),
    ("falcon4ec_300kv", "mtf_falcon4EC_300kV", 0.0075),
    ("k3_200kv", "mtf_k3_standard_200kV_FL2", 0.0029),
    ("falcon3ec_200kv", "mtf_falcon3EC_200kV", 0.0023),
    ("falcon2_300kv", "mtf_falcon2_300kV", 0.0027), ("de20_300kv", "mtf_de20_300kV", 0.0021),
])
def test_shipped_detectors_follow_measured_curves(shared, name, curve, error):
    node = OmegaConf.load(next(path for path in CONFIGS if path.stem == name))
    frequencies, values = read_mtf(shared / "data" / "mtf" / f"{curve}.star")
    mtf = evaluate(detector_from_config(node).mtf, as_tensor(frequencies)).cpu().double().numpy()
    assert np.abs(mtf - values).max() < error  # the error that the file states, rounded up


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_efficiencies(path):
    """DQE at 0, half and full Nyquist: what the makers publish, and an order where they do not."""
    w = as_tensor([0.0, 0.25, 0.5])
    camera = detector_from_config(OmegaConf.to_object(OmegaConf.load(path)))
    dqe = quantum_efficiency(w, camera).cpu().numpy()
    # By its definition, (signal / noise)^2 over the electrons, from the camera's own NPS.
    power = noise_power_spectrum(w, camera, dose=7.0, pixel_size=1.0).cpu().numpy()
    signal = camera.gain * 7.0 * evaluate(camera.mtf, w).cpu().numpy()
    np.testing.assert_allclose(dqe, signal**2 / power / 7.0, rtol=1e-5)
    published = {"falcon4ec_300kv": (0.9, 0.7, 0.5), "k3_300kv": (0.95, 0.71, 0.40)}
    if path.stem in published:
        # Read from a figure to two digits, and K3's noise taken as white.
        np.testing.assert_allclose(dqe, published[path.stem], atol=0.03)
    if path.stem.endswith("kv"):
        assert (np.diff(dqe) < -0.05).all()
        # Film, the least at 300 kV (McMullan et al. 2009, as others read it; 0.33 at half Nyquist).
        assert (dqe > (0.37, 0.33, 0.07)).all()


def test_a_beam_of_another_voltage_is_doubted():
    overrides = ["microscope=talos_arctica", "detector=falcon4ec_300kv"]
    (doubt,) = doubts(load_scene(overrides=overrides))
    assert "detector.voltage=300" in doubt
    assert "microscope.voltage=200" in doubt
    for good in ("detector=falcon3ec_200kv", "detector=k3_200kv", "detector=ideal",
                 "microscope.voltage=300"):
        assert doubts(load_scene(overrides=[*overrides, good])) == []


def test_counts_that_round_to_nothing_are_doubted():
    small = ["detector.integer=true", "detector.gain=0.01"]  # 12 electrons a pixel
    (doubt,) = doubts(load_scene(overrides=small))
    assert "detector.gain=0.01: 0.12 counts a pixel" in doubt
    assert doubts(load_scene(overrides=[*small, "dose=20"])) == []  # 0.8 counts
    assert doubts(load_scene(overrides=["detector.integer=true", "dose=0.05"])) == []  # 0 or 1


def test_curves_come_from_files_and_objects_too(tmp_path):
    path = tmp_path / "curve.txt"
    path.write_text("0 1\n0.5 0.25\n")
    node = SimpleNamespace(name="mine", kind="counting", gain=1.0, mtf=None, mtf_file=str(path),
                           dqe=None, dqe_file=str(path), integer=True)
    detector = detector_from_config(node)
    assert detector.integer
    for curve in (detector.mtf, detector.dqe):
        assert float(evaluate(curve, as_tensor(0.25))) == pytest.approx(0.625)


@pytest.mark.parametrize(("node", "message"), [
    ({"gian": 2.0}, "detector.gian: no such key"),
    ({"mtf": PARAMETERS, "mtf_file": "k3.star"}, "give one of them"),
    ({"dqe": 0.5, "dqe_file": "dqe.txt"}, "give one of them"),
    ({"mtf_file": "absent.star"}, "absent.star: cannot be read"),
    ({"mtf_table": [[0, 1], [0.5]]}, "every row"),
    ({"mtf_table": [[0, 1]]}, "at least 2"),
    ({"gain": -1.0}, "gain=-1.0"),
])
def test_bad_configurations_are_refused(node, message):
    with pytest.raises(ValueError, match=message):
        detector_from_config(node)
