"""recipe=reconstruct instrument=stem: what scanned images show is where it is, by every method."""

import json

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch

from tem_taichi.files.mrc import write_mrc
from tem_taichi.fit import main
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.stem import STEM
from tem_taichi.specimen.field import voxels

ANGLES = np.arange(-64, 65, 8.0)
PLACES = ((4, -3, 1, 1.0), (-4, 2, -2, 0.6))
"""x, y, z of two balls and their densities; their mirror images are elsewhere."""


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    """Bright and dark fields of 1000 electrons a pixel, aligned but for shifts that are known."""
    folder = tmp_path_factory.mktemp("stem")
    z, y, x = np.meshgrid(*[np.arange(n) - n // 2 for n in (10, 18, 20)], indexing="ij")
    density = sum(w * np.clip(2.5 - np.sqrt((x - a)**2 + (y - b)**2 + (z - c)**2), 0, 1)
                  for a, b, c, w in PLACES)
    specimen = voxels(torch.tensor(0.015 * density).float(), 10.0)
    rng = np.random.default_rng(0)
    shifts = 10 * rng.uniform(-1, 1, (len(ANGLES), 2))
    table = pd.DataFrame({"tilt_angle": ANGLES, "axis_angle": 20.0, "shift_x": shifts[:, 0],
                          "shift_y": shifts[:, 1]})
    table.to_csv(folder / "tilts.csv")
    for signal in ("bright", "dark"):
        stem = STEM((18, 20), 10.0, signal)
        seen = np.stack([stem.intensity(specimen, Exposure(
            tilt_angle=row.tilt_angle, axis_angle=20.0, shift_x=row.shift_x,
            shift_y=row.shift_y)).numpy() for row in table.itertuples()])
        counts = rng.poisson(1000 * np.maximum(seen, 0)) + 50
        write_mrc(folder / f"{signal}.mrc", counts.astype(np.float32), 10.0)
    return folder


def made(stacks, output, signal, *words):
    assert main(["recipe=reconstruct", f"input={stacks}/{signal}.mrc", f"angles={stacks}/tilts.csv",
                 "thickness=100", "instrument=stem", f"signal={signal}", "dark_counts=50",
                 "margin=0", f"output={output}", *words]) == 0
    return (mrcfile.read(output / "tomogram.mrc"),
            json.loads((output / "results.json").read_text()))


def checked(volume, beam_known):
    """Balls denser than all but a twentieth of the voxels; their mirror images are not."""
    def at(x, y, z):
        return volume[5 + z, 9 + y, 10 + x]

    (a, b) = PLACES
    dense = np.quantile(volume, 0.95)
    assert at(*a[:3]) > dense and at(*b[:3]) > 0.8 * dense
    for sx, sy, sz in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)):
        assert at(a[0] * sx, a[1] * sy, a[2] * sz) < 0.8 * at(*a[:3])
    if beam_known:
        assert at(*a[:3]) == pytest.approx(0.015, rel=0.4)


@pytest.mark.parametrize(("signal", "words"), [
    ("bright", ["method=wbp"]), ("dark", ["method=sirt", "beam=1000", "held_out=0",
                                           "iterations=20"]),
    ("bright", ["method=gradient", "tv=0.1", "beam=1000", "iterations=20", "held_out=6"]),
    ("dark", ["method=gradient", "specimen=implicit", "noise=flow", "beam=1000", "iterations=12",
              "warm=25", "width=16", "held_out=6", "law_layers=4", "tv=0", "rate=0.01"]),
    ("bright", ["method=gradient", "specimen=implicit", "rays=256", "points=[16,16]", "beam=1000",
                "iterations=6", "width=16", "held_out=6", "rate=0.01"]),
    ("bright", ["method=gradient", "specimen=octree", "samples=4", "depth=2", "leaves=100",
                "beam=1000", "held_out=6", "iterations=20"]),
    ("dark", ["method=gradient", "specimen=octree", "samples=4", "depth=2", "leaves=100",
              "beam=1000", "held_out=6", "iterations=3"])])
def test_density_is_where_it_is(stacks, tmp_path, signal, words):
    volume, results = made(stacks, tmp_path / "out", signal, *words)
    assert results["unit"] == "1/A"
    checked(volume, "beam=1000" in words and "method=sirt" not in words)
    assert any("whole beam" in line for line in results["assumptions"])


def test_the_cone_is_told(stacks, tmp_path):
    _, results = made(stacks, tmp_path / "out", "bright", "method=gradient", "tv=0.1",
                      "iterations=2", "convergence=20", "find_convergence=true", "held_out=0")
    assert 15 < results["convergence_mrad"] < 30


@pytest.mark.parametrize(("words", "said"), [
    (["instrument=xray"], "must be one of tem, stem"),
    (["signal=dark"], 'instrument="tem": must be stem with signal'),
    (["instrument=stem", "specimen=octree"], "must be voxels with method=wbp"),
    (["specimen=network", "method=gradient"], "must be one of voxels, octree, implicit"),
    (["instrument=stem", "method=gradient", "specimen=octree", "convergence=5",
      "find_convergence=true"], "false with specimen=octree"),
    (["instrument=stem", "method=gradient", "specimen=octree", "noise=flow"], "gauss with spec"),
    (["instrument=stem", "align=[shifts]"], "left out with instrument=stem"),
    (["instrument=stem", "noise=poisson"], "noise"), (["instrument=stem", "beam=0"], "beam=0"),
    (["instrument=stem", "law_layers=3"], "law_layers=3"),
    (["method=gradient", "specimen=implicit", "rays=64"], "0 with instrument=tem"),
    (["instrument=stem", "method=gradient", "rays=64"], "0 with specimen=voxels"),
    (["instrument=stem", "method=gradient", "specimen=implicit", "rays=64", "convergence=9"],
     "0 with convergence"),
    (["instrument=stem", "find_convergence=true"], "convergence=0.0: must be above 0"),
    (["instrument=stem", "signal=bright", "dark_counts=1e6"], "dark_counts"),
    (["instrument=stem", "method=gradient", "held_out=50"], "held_out=50: must leave")])
def test_what_cannot_be_is_one_line(stacks, tmp_path, capsys, words, said):
    assert main(["recipe=reconstruct", f"input={stacks}/bright.mrc",
                 f"angles={stacks}/tilts.csv", f"output={tmp_path}/out", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
