"""Cameras from configurations: those shipped, and those of one's own."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from tem_taichi.cameras import detector_from_config
from tem_taichi.curves import evaluate, radial_frequency, read_mtf
from tem_taichi.detector import detect
from tem_taichi.device import as_tensor

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
    ("falcon2_300kv", "mtf_falcon2_300kV", 0.0027), ("de20_300kv", "mtf_de20_300kV", 0.0021),
])
def test_shipped_detectors_follow_measured_curves(shared, name, curve, error):
    node = OmegaConf.load(next(path for path in CONFIGS if path.stem == name))
    frequencies, values = read_mtf(shared / "data" / "mtf" / f"{curve}.star")
    mtf = evaluate(detector_from_config(node).mtf, as_tensor(frequencies)).cpu().double().numpy()
    assert np.abs(mtf - values).max() < error  # the error that the file states, rounded up


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
