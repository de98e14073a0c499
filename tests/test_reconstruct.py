"""The recipe on tilt series: what our own simulation puts somewhere is there in the tomogram."""

import itertools
import json
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from tem_taichi.files.mrc import write_mrc
from tem_taichi.fit import main
from tem_taichi.simulate import main as simulate

BEADS = np.array([(60, -90, 20), (-100, -30, -30), (30, 80, -20), (-40, 20, 35)])
"""No mirror image of these, nor they turned, are themselves [A]."""
PIXEL = 4.0


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Path:
    """Gold beads in ice, with errors of shifts, angles and axis, as our own command writes them."""
    folder = tmp_path_factory.mktemp("gold")
    assert simulate([
        "name=gold", "specimen=empty", "shape=[96,90]", f"pixel_size={PIXEL}", "dose=1000",
        "specimen.damage=0",
        "specimen.ice.thickness=120", "specimen.ice.granularity=0",
        "specimen.particles.bead={fiducial: 30, placement: listed}",
        f"specimen.particles.bead.positions={BEADS.tolist()}", "optics.defocus=3000",
        "tilts={scheme: dose_symmetric, minimum: -60, maximum: 60, step: 6, axis_angle: 25}",
        "tilts.errors={shift: 15, angle: 0.5, axis_angle: 2}", "compute.arch=cpu",
        f"output={folder}/series"]) == 0
    return folder / "series"


def reconstruct(series: Path, output: Path, *words: str) -> tuple[dict, np.ndarray, np.ndarray]:
    """Results, the tomogram, and where its voxels are [A]."""
    assert main(["recipe=reconstruct", f"input={series}/gold.mrc",
                 f"angles={series}/gold_tilts.csv", "thickness=200", f"output={output}",
                 *words]) == 0
    with mrcfile.open(output / "tomogram.mrc") as file:
        volume, size, first = file.data.copy(), float(file.voxel_size.x), file.header.origin
        origin = np.array([float(first[axis]) for axis in "xyz"])
        assert file.is_volume()
    assert size == float(json.loads((output / "results.json").read_text())["voxel_size_A"])
    assert volume.shape == tuple(json.loads((output / "results.json").read_text())["shape"])
    return json.loads((output / "results.json").read_text()), volume, origin


def value_at(volume, origin, voxel, point):
    """Largest of the voxels within one of a place, found as ChimeraX does: by origin and size."""
    x, y, z = np.rint((np.asarray(point) - origin) / voxel).astype(int)
    return volume[z - 1:z + 2, y - 1:y + 2, x - 1:x + 2].max()


@pytest.mark.parametrize("words", [
    ["method=wbp", "resolution=12"], ["method=wbp", "bin=2"],
    ["method=sirt", "bin=2", "held_out=0", "iterations=4"],
    ["method=sirt_tv", "bin=2", "iterations=3", "positive=true"]])
def test_gold_is_where_the_scene_put_it(series, tmp_path, words):
    """Every sign: of the tilt, its axis, the shifts, the frame and the origin."""
    found, volume, origin = reconstruct(series, tmp_path / "out", *words)
    voxel = found["voxel_size_A"]
    values = [value_at(volume, origin, voxel, bead) for bead in BEADS]
    others = [value_at(volume, origin, voxel, bead * signs) for bead in BEADS
              for signs in itertools.product((1, -1), repeat=3) if signs != (1, 1, 1)]
    assert min(values) > 2 * max(others)
    assert min(values) > 0.5 * volume[3:-3, 3:-3, 3:-3].max()  # but at the rim


def test_without_the_alignment_gold_is_not_found(series, tmp_path):
    """The shifts of 15 A are what the test above rests on."""
    import pandas as pd

    table = pd.read_csv(series / "gold_tilts.csv").assign(dx=0.0, dy=0.0)
    table.to_csv(tmp_path / "flat.csv", index=False)
    heights = []
    for extra in ([], [f"angles={tmp_path}/flat.csv", "shifts=[dx,dy]"]):
        _, volume, origin = reconstruct(series, tmp_path / f"out{len(extra)}", "bin=2", *extra)
        heights.append(np.mean([value_at(volume, origin, 8.0, bead) for bead in BEADS]))
    assert heights[1] < 0.7 * heights[0]


def test_cut_images_are_aligned_as_their_frames(series, tmp_path):
    """Of the upper part alone the axis runs beside the middle."""
    images = mrcfile.read(series / "gold.mrc")[:, 40:]
    write_mrc(tmp_path / "cut.mrc", images.astype(np.float32), PIXEL)
    middle = (40 + 28 - 48) * PIXEL
    _, volume, origin = reconstruct(series, tmp_path / "out", f"input={tmp_path}/cut.mrc",
                                    f"cut_from=[0,{middle}]")
    kept = [bead - [0, middle, 0] for bead in BEADS if bead[1] > -20]
    assert len(kept) == 2
    _, whole, corner = reconstruct(series, tmp_path / "whole")
    for bead in kept:
        assert value_at(volume, origin, PIXEL, bead) > 0.7 * value_at(
            whole, corner, PIXEL, np.add(bead, [0, middle, 0]))


def test_halves_and_what_is_held_out(series, tmp_path):
    found, volume, origin = reconstruct(series, tmp_path / "out", "method=sirt", "bin=2",
                                        "halves=true", "iterations=6")
    curve = found["held_out"]
    assert curve[0] == 1 and found["iterations"] == np.argmin(curve) and min(curve) < 0.8
    halves = [mrcfile.read(tmp_path / "out" / f"half{n}.mrc") for n in (1, 2)]
    for half in (volume, *halves):
        others = half[3:-3, 3:-3, 3:-3].std()
        assert min(value_at(half, origin, 8.0, bead) for bead in BEADS) > 5 * others
    assert np.corrcoef(*(half.ravel() for half in halves))[0, 1] < 0.9


def test_masked_pixels_are_not_used(series, tmp_path):
    """Beads painted into a corner of every image, and out of it again by the mask."""
    images = mrcfile.read(series / "gold.mrc").astype(np.float32)
    mask = np.ones(images.shape[1:], np.float32)
    mask[80:, 70:] = 0
    write_mrc(tmp_path / "mask.mrc", mask, PIXEL)
    for name, value in (("a", 0.0), ("b", 1e4)):
        images[:, mask == 0] = value
        write_mrc(tmp_path / f"{name}.mrc", images, PIXEL)
    one, other = (reconstruct(series, tmp_path / name, f"input={tmp_path}/{name}.mrc",
                              f"mask={tmp_path}/mask.mrc")[1] for name in "ab")
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("words", "said"), [
    (["method=art"], 'method="art": must be one of wbp, sirt, sirt_tv'),
    (["thickness=0"], "thickness=0"), (["bin=0"], "bin=0"), (["bin=64"], "bin=64: must leave"),
    (["iterations=0"], "iterations=0"), (["tv=-1"], "tv=-1"), (["held_out=1"], "held_out=1"),
    (["method=sirt_tv", "held_out=0"], "tv=null: must be given where held_out=0"),
    (["shifts=[dx,dy]"], "shifts=dx: must be a column of the table"),
    (["mask=none.mrc"], "mask: none.mrc"), (["cut_from=[1]"], "cut_from"),
    (["resolution=-3"], "resolution=-3")])
def test_what_cannot_be_is_one_line(series, tmp_path, capsys, words, said):
    assert main(["recipe=reconstruct", f"input={series}/gold.mrc",
                 f"angles={series}/gold_tilts.csv", f"output={tmp_path}/out", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_angles_without_an_axis_ask_for_it(series, tmp_path, capsys):
    angles = tmp_path / "gold.rawtlt"
    np.savetxt(angles, np.arange(-60, 61, 6))
    assert main(["recipe=reconstruct", f"input={series}/gold.mrc", f"angles={angles}",
                 f"output={tmp_path}/out"]) == 2
    assert "axis_angle=null: the table of angles has none" in capsys.readouterr().err
