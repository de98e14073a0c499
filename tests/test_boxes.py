"""Boxes are read as they stand, and what is measured in them is that of their voxels."""

import pytest
import torch

from tem_taichi.files.boxes import read_boxes
from tem_taichi.inverse.boxes import measures_in_boxes
from tem_taichi.inverse.measures import contrast_to_noise, equivalent_looks

SHAPE = (20, 30, 40)
BOXES = {"gold": (slice(2, 10), slice(5, 14), slice(10, 20)),
         "ice": (slice(10, 20), slice(20, 30), slice(0, 10))}


@pytest.mark.parametrize(("name", "text"), [
    ("a.yaml", "gold: {from: [10, 5, 2], to: [20, 14, 10]}\nice: {from: [0, 20, 10], "
               "to: [10, 30, 20]}\n"),
    # 8 A a voxel, the first at -160, -120, -80
    ("b.yml", "unit: A\ngold: {from: [-80, -80, -64], to: [0, -8, 0]}\n"
              "ice: {from: [-160, 40, 0], to: [-80, 120, 80]}\n"),
    ("c.csv", "name, x0, y0, z0, x1, y1, z1\ngold, 10, 5, 2, 20, 14, 10\nice,0,20,10,10,30,20\n"),
    ("d.csv", "name,x0_A,y0_A,z0_A,x1_A,y1_A,z1_A\ngold,-80,-80,-64,0,-8,0\n"
              "ice,-160,40,0,-80,120,80\n")])
def test_boxes_of_every_kind_of_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_boxes(tmp_path / name, SHAPE, 8.0, (-160.0, -120.0, -80.0)) == BOXES


@pytest.mark.parametrize(("name", "text", "said"), [
    ("a.yaml", "gold: [1, 2]\n", "gold: must be {from"),
    ("a.yaml", "unit: nm\n", "unit=nm: must be voxel or A"),
    ("a.yaml", "gold: {from: [0, 0, 0], to: [41, 1, 1]}\n", "x from 0 to 41: must hold a voxel"),
    ("a.yaml", "gold: {from: [0, 3, 0], to: [1, 3, 1]}\n", "y from 3 to 3"),
    ("a.yaml", "gold: {from: [0.5, 0, 0], to: [1, 1, 1]}\n", "whole numbers of voxels"),
    ("a.yaml", "- 1\n", "boxes by their names"), ("a.yaml", "a: [\n", "a.yaml: "),
    ("a.csv", "name,x0\ngold,1\n", "must have the columns name, x0"),
    ("a.csv", "name,x0,y0,z0,x1,y1,z1\ngold,1,2,3,4,5,six\n", "row 1, gold: must have six")])
def test_what_is_no_box_is_one_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"must|a\.yaml") as error:
        read_boxes(tmp_path / name, SHAPE)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_measures_are_those_of_the_boxes_voxels():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(SHAPE, generator=generator)
    truth[BOXES["gold"]] += 5
    volume = 2 * truth + 3 + 0.1 * torch.randn(SHAPE, generator=generator)
    table = measures_in_boxes(volume, BOXES, [("gold", "ice")], truth).set_index("box")
    assert table["enl"]["gold"] == pytest.approx(float(equivalent_looks(volume, BOXES["gold"])))
    assert table["cnr"]["gold / ice"] == pytest.approx(
        float(contrast_to_noise(volume, BOXES["gold"], BOXES["ice"])))
    # Noise of 0.05 in the truth's unit, whose range is 1: 26 dB.
    assert table["psnr"][["gold", "ice"]].between(25.5, 26.5).all()
    assert table["ssim"][["gold", "ice"]].min() > 0.95
    thin = {"thin": (slice(0, 3), slice(0, 9), slice(0, 9))}
    assert "ssim" not in measures_in_boxes(volume, thin, (), truth)
    with pytest.raises(ValueError, match="pairs: air: must be one of the boxes gold, ice"):
        measures_in_boxes(volume, BOXES, [("gold", "air")])
