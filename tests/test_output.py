"""The files of an output folder agree with each other and with what was simulated."""

import json
from dataclasses import replace

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch

from tem_taichi import simulate
from tem_taichi.cli.output import write_result
from tem_taichi.files.folder import new_folder
from tem_taichi.files.mrc import as_type, smallest_type
from tem_taichi.scene.load import load_scene
from tem_taichi.scene.settings import (
    ComputeSettings,
    DetectorSettings,
    IceSettings,
    OpticsSettings,
    Scene,
    SpecimenSettings,
    TiltSettings,
    particle_of,
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    structure = tmp_path_factory.mktemp("atom") / "gold.pdb"
    structure.write_text("HETATM    1 AU   AU  A   1       0.000   0.000   0.000  1.00 20.00"
                         "          AU\nEND\n")
    gold = particle_of(structure=str(structure), placement="listed",
                       positions=[[10.0, -20.0, 5.0], [0.0, 0.0, 0.0]],
                       orientations=[[10.0, 20.0, 30.0], [0.0, 0.0, 0.0]])
    return Scene(name="gold", seed=3, shape=[32, 48], pixel_size=2.5, dose=4.0,
                 specimen=SpecimenSettings(ice=IceSettings(thickness=100.0),
                                           particles={"au": gold}),
                 optics=OpticsSettings(defocus=2000.0), detector=DetectorSettings(),
                 tilts=TiltSettings(scheme="listed", angles=[0.0, 30.0, -30.0], axis_angle=5.0),
                 compute=ComputeSettings(arch="cpu"))


@pytest.fixture(scope="module")
def series(scene):
    return simulate(scene)


def test_files_agree(scene, series, tmp_path):
    names = write_result(tmp_path, scene, series)
    assert sorted(names) == sorted(p.name for p in tmp_path.iterdir())
    with mrcfile.open(tmp_path / "gold.mrc") as noisy, \
            mrcfile.open(tmp_path / "gold_noise_free.mrc") as clean:
        assert noisy.data.dtype == clean.data.dtype == np.float32
        assert np.array_equal(noisy.data, series.images.numpy())
        assert np.array_equal(clean.data, series.noise_free.numpy())
        assert noisy.is_image_stack() and noisy.voxel_size.x == pytest.approx(2.5)
    table = pd.read_csv(tmp_path / "gold_tilts.csv")
    assert np.loadtxt(tmp_path / "gold.rawtlt").tolist() == [-30, 0, 30]
    assert table.tilt_angle.tolist() == [-30, 0, 30]
    assert table.acquisition_index.tolist() == [2, 0, 1]
    assert table.prior_dose.tolist() == [8, 0, 4]
    particles = starfile.read(tmp_path / "gold_particles.star")["particles"]
    assert particles.rlnCenteredCoordinateYAngst.tolist() == [-20, 0]
    assert particles.rlnAngleTilt.tolist() == pytest.approx([20, 0], abs=1e-4)  # float32 matrices
    mdoc = (tmp_path / "gold.mrc.mdoc").read_text()
    assert "ImageFile = gold.mrc" in mdoc and "ImageSize = 48 32" in mdoc
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    assert (metadata["program"], metadata["seed"], metadata["particles"]) == ("tem_taichi", 3, 2)
    assert metadata["mean_counts"] == pytest.approx(float(series.noise_free.mean()))
    assert metadata["versions"]["tem_taichi"]
    assert load_scene(tmp_path / "scene.yaml") == scene


@pytest.mark.parametrize(("low", "high", "integer", "stored"), [
    (0, 32767, True, np.int16), (-5, 30, True, np.int16), (0, 32768, True, np.uint16),
    (0, 65535, True, np.uint16), (0, 65536, True, np.float32), (-1, 40000, True, np.float32),
    (0, 30, False, np.float32),
])
def test_whole_counts_take_two_bytes_where_they_fit(low, high, integer, stored):
    counts = np.array([[low, high]], dtype=np.float32)
    result = as_type(counts, smallest_type([counts[:, :1], counts[:, 1:]], integer))
    assert result.dtype == stored and np.array_equal(result, counts)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("which", ["images", "noise_free"])
def test_a_number_that_is_none_is_never_written(scene, series, tmp_path, bad, integer, which):
    images = getattr(series, which).clone()
    images[1, 2, 3] = bad
    broken = replace(series, integer=integer, **{which: images})
    with pytest.raises(ValueError, match="1 values are not finite"), \
            new_folder(tmp_path / "out", "simulate") as place:
        write_result(place, scene, broken)
    assert list(tmp_path.iterdir()) == []


def test_no_particles(scene, tmp_path):
    empty = replace(scene, specimen=SpecimenSettings(ice=IceSettings(thickness=100.0)))
    write_result(tmp_path, empty, simulate(empty))
    assert "rlnCenteredCoordinateXAngst" in (tmp_path / "gold_particles.star").read_text()
    assert json.loads((tmp_path / "metadata.json").read_text())["particles"] == 0
    assert load_scene(tmp_path / "scene.yaml") == empty


def test_series_is_left_as_it_was(scene, series, tmp_path):
    before = series.images.clone()
    write_result(tmp_path, scene, replace(series, integer=True))
    assert torch.equal(series.images, before)
