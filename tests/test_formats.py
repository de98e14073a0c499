"""Files for other programs, read as those programs' sources say, show what was simulated."""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import tifffile
import torch
from scipy.spatial.transform import Rotation

from tem_taichi import simulate
from tem_taichi.cli.output import write_result
from tem_taichi.export.formats import write_formats
from tem_taichi.export.shrec import zxz_angles
from tem_taichi.files.tilts import read_mdoc
from tem_taichi.rotations import euler_to_matrix
from tem_taichi.scene.settings import (
    FORMATS,
    ComputeSettings,
    IceSettings,
    InteractionSettings,
    MicroscopeSettings,
    OpticsSettings,
    Scene,
    SpecimenSettings,
    TiltErrorSettings,
    TiltSettings,
    particle_of,
)
from tem_taichi.series.build import build_specimen
from tem_taichi.series.record import recorded
from tem_taichi.simulate import main

PIXEL, NX, NY = 3.0, 80, 72
POSITIONS = [[40.0, -22.0, 25.0], [-45.0, 30.0, -20.0]]


@pytest.fixture(scope="module")
def gold(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("atom") / "gold.pdb"
    path.write_text("HETATM    1 AU   AU  A   1       0.000   0.000   0.000  1.00 80.00"
                    "          AU\nEND\n")
    return str(path)


@pytest.fixture(scope="module")
def scene(gold) -> Scene:
    """Two gold atoms that absorb, in focus: dark dots; and every kind of error."""
    atom = particle_of(structure=gold, placement="listed", positions=POSITIONS[:1],
                       orientations=[[10.0, 20.0, 30.0]])
    bead = particle_of(structure=gold, placement="listed", positions=POSITIONS[1:])
    return Scene(
        name="gold", seed=3, shape=[NY, NX], pixel_size=PIXEL, dose=400.0, formats=list(FORMATS),
        specimen=SpecimenSettings(ice=IceSettings(thickness=130.0, potential=0.0, granularity=0.0),
                                  damage=0.0, particles={"au_one": atom, "fiducial": bead}),
        optics=OpticsSettings(defocus=0.0, astigmatism=-30.0, astigmatism_angle=80.0,
                              phase_shift=5.0, amplitude_contrast=0.5),
        tilts=TiltSettings(minimum=-60, maximum=60, step=20, axis_angle=85.0,
                           errors=TiltErrorSettings(shift=6.0, angle=0.5, axis_angle=1.0,
                                                    dose=0.1)),
        interaction=InteractionSettings(margin=30.0), compute=ComputeSettings(arch="cpu"))


@pytest.fixture(scope="module")
def series(scene):
    result = simulate(scene)
    images = result.images
    return replace(result, halves=torch.stack([0.4 * images, 0.6 * images]),
                   frames=torch.stack([0.1 * images, 0.7 * images, 0.2 * images], dim=1))


@pytest.fixture(scope="module")
def folder(scene, series, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("out")
    write_result(place, scene, series)
    return place


def dots(series) -> np.ndarray:
    """x, y in pixels from pixel 0 of both dark dots in the images without noise, (n, 2, 2)."""
    found = []
    for image, tilt in zip(series.noise_free.numpy(), series.tilts.itertuples(), strict=True):
        dark = 1 - image / np.median(image)
        places = []
        for _ in POSITIONS:
            y, x = np.unravel_index(dark.argmax(), dark.shape)
            rows, columns = np.mgrid[y - 2:y + 3, x - 2:x + 3]
            weight = np.clip(dark[rows, columns], 0, None)
            places.append([(weight * columns).sum(), (weight * rows).sum()] / weight.sum())
            dark[y - 4:y + 5, x - 4:x + 5] = 0
        found.append(places)
        assert np.isfinite(places).all(), tilt
    return np.array(found)


def same_places(expected: np.ndarray, found: np.ndarray, atol: float) -> None:
    """Whether each image's two places are the same, in either order."""
    turned = found[:, ::-1]
    apart, apart_turned = (np.abs(expected - places).max(axis=(1, 2)) for places in (found, turned))
    np.testing.assert_array_less(np.minimum(apart, apart_turned), atol)


# --- RELION 5 ----------------------------------------------------------------------------------

def turn(axis: int, degrees: float) -> np.ndarray:
    """gravis' t4Matrix::rotation: right-handed about an axis, in degrees."""
    vector = np.zeros(3)
    vector[axis] = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(vector).as_matrix()
    return matrix


def shift(*vector: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = vector
    return matrix


def relion(folder: Path) -> tuple[pd.Series, pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Tomogram, tilts by angle, particles and what Tomogram::setProjectionMatrix makes of them."""
    root = folder / "relion5"
    tomogram = starfile.read(root / "tomograms.star", always_dict=True)["global"].iloc[0]
    blocks = starfile.read(root / tomogram.rlnTomoTiltSeriesStarFile, always_dict=True)
    tilts = blocks[tomogram.rlnTomoName].sort_values("rlnTomoNominalStageTiltAngle")
    particles = starfile.read(root / "particles.star")["particles"]
    size = [int(tomogram[f"rlnTomoSize{axis}"] / 2) for axis in "XYZ"]
    pixel = tomogram.rlnTomoTiltSeriesPixelSize
    matrices = np.stack([
        shift(t.rlnTomoXShiftAngst / pixel, t.rlnTomoYShiftAngst / pixel, 0)
        @ shift(NX // 2, NY // 2, 0) @ turn(2, t.rlnTomoZRot) @ turn(1, t.rlnTomoYTilt)
        @ turn(0, t.rlnTomoXTilt) @ shift(*(-n for n in size)) for t in tilts.itertuples()])
    return tomogram, tilts, particles, matrices


def test_relion_projects_particles_onto_their_images(folder, series):
    tomogram, _, particles, matrices = relion(folder)
    size = np.array([tomogram[f"rlnTomoSize{axis}"] for axis in "XYZ"])
    assert np.all(size % 2 == 0)  # RELION halves them in two ways
    centred = particles[[f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]].to_numpy()
    pixels = np.concatenate([centred / PIXEL + size / 2, np.ones((2, 1))], axis=1)
    seen = np.einsum("nij,mj->nmi", matrices, pixels)[..., :2]
    # A centroid of few pixels; a wrong sign of anything is off by many.
    same_places(seen, dots(series), atol=0.25)


def test_relion_turns_particles_as_simulated(folder, scene, series):
    _, _, particles, matrices = relion(folder)
    inside = euler_to_matrix(*particles[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]]
                             .to_numpy().T)
    seen = matrices[:, None, :3, :3] @ inside
    truth = series.tilts
    axis = np.stack([-np.sin(np.deg2rad(truth.axis_angle)), np.cos(np.deg2rad(truth.axis_angle)),
                     0 * truth.axis_angle], axis=1)
    views = Rotation.from_rotvec(np.deg2rad(truth.tilt_angle.to_numpy())[:, None] * axis)
    given = euler_to_matrix([10, 0], [20, 0], [30, 0])
    # Six digits of an angle, and poses that come from single precision.
    np.testing.assert_allclose(seen, views.as_matrix()[:, None] @ given, atol=2e-6)


def test_relion_files_agree_with_the_truth(folder, scene, series):
    tomogram, tilts, particles, _ = relion(folder)
    truth = series.tilts
    assert tomogram.rlnTomoHand == 1
    assert (tomogram.rlnTomoSizeX, tomogram.rlnTomoSizeY, tomogram.rlnTomoSizeZ) == (NY, NX, 44)
    for label, column in (("rlnMicrographPreExposure", "prior_dose"), ("rlnDefocusU", "defocus_u"),
                          ("rlnDefocusV", "defocus_v"), ("rlnDefocusAngle", "astigmatism_angle"),
                          ("rlnPhaseShift", "phase_shift"), ("rlnTomoXShiftAngst", "shift_x"),
                          ("rlnTomoNominalStageTiltAngle", "nominal_angle")):
        np.testing.assert_allclose(tilts[label], truth[column], atol=6e-7)
    assert np.all(np.diff(tilts.sort_index().rlnMicrographPreExposure) > 0)
    for n, row in enumerate(tilts.itertuples()):
        for file, factor in ((row.rlnMicrographName, 1), (row.rlnMicrographNameEven, 0.4),
                             (row.rlnMicrographNameOdd, 0.6)):
            with mrcfile.open(folder / "relion5" / file) as mrc:
                np.testing.assert_allclose(mrc.data, factor * series.images[n], rtol=1e-6)
    blocks = starfile.read(folder / "relion5" / "particles.star")
    assert blocks["general"] == {"rlnTomoSubTomosAre2DStacks": 1}
    assert blocks["optics"].rlnVoltage.tolist() == [300]
    assert particles.rlnTomoName.tolist() == ["gold", "gold"]
    optimisation = starfile.read(folder / "relion5" / "optimisation_set.star")
    assert (folder / "relion5" / optimisation["rlnTomoTomogramsFile"]).is_file()
    assert (folder / "relion5" / optimisation["rlnTomoParticlesFile"]).is_file()


@pytest.mark.parametrize("angle", [-45.0, 45.0])
def test_relions_hand_is_that_of_the_defocus(gold, tmp_path, angle):
    """Of two atoms that only shift the phase, the one under focus is dark, the other bright."""
    atoms = particle_of(structure=gold, placement="listed",
                        positions=[[-110.0, 0.0, 0.0], [110.0, 0.0, 0.0]])
    scene = Scene(name="gold", shape=[NY, NX], pixel_size=PIXEL, formats=["relion5"],
                  specimen=SpecimenSettings(ice=IceSettings(thickness=130.0, granularity=0.0),
                                            damage=0.0, particles={"au": atoms}),
                  microscope=MicroscopeSettings(spherical_aberration=0.0),
                  compute=ComputeSettings(arch="cpu"),
                  optics=OpticsSettings(defocus=0.0, amplitude_contrast=0.0),
                  tilts=TiltSettings(scheme="listed", angles=[angle]),
                  interaction=InteractionSettings(margin=100.0, slice_thickness=5.0))
    series = simulate(scene)
    write_formats(tmp_path, series, ["relion5"])
    tomogram, tilts, particles, matrices = relion(tmp_path)
    centred = particles[[f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]].to_numpy()
    z = centred @ matrices[0, 2, :3]  # Tomogram::getDepthOffset, in A
    defocus = tilts.rlnDefocusU.iloc[0] + tomogram.rlnTomoHand * z  # Tomogram::getCtf
    assert sorted(defocus) == pytest.approx([-77.78, 77.78], abs=0.01)  # 110 A sin(45 deg)
    image = series.noise_free[0].numpy()
    dark = 1 - image / np.median(image)
    places = np.rint(NX // 2 + centred @ matrices[0, 0, :3] / PIXEL).astype(int)
    contrast = dark[NY // 2, places]
    assert np.array_equal(np.sign(contrast), np.sign(defocus))
    assert np.all(np.abs(contrast) > 1e-3)  # single precision leaves 1e-6


# --- Warp, AreTomo, IMOD -----------------------------------------------------------------------

def test_tomostar_is_what_warps_import_makes_of_the_mdoc(folder, series):
    root = folder / "warp"
    table = starfile.read(root / "tomostar" / "gold.tomostar")
    # ts_import: sorted by angle, then inverted; the axis and the dose before as in the mdoc.
    np.testing.assert_allclose(table.wrpAngleTilt, -series.tilt_angles)
    np.testing.assert_allclose(table.wrpAxisAngle, 85.0)
    np.testing.assert_allclose(table.wrpDose, series.tilts.prior_dose, atol=6e-7)
    for n, name in enumerate(table.wrpMovieName):
        movie = (root / "tomostar" / name).resolve()
        with mrcfile.open(movie.parent / "average" / movie.name) as mrc:
            np.testing.assert_array_equal(mrc.data, series.images[n].numpy())
            assert table.wrpAverageIntensity[n] == pytest.approx(np.median(mrc.data), rel=1e-6)


def test_warps_rotation_is_ours(folder, scene, series):
    """TiltSeries.GetPositionInAllTilts: Matrix3.Euler(0, angle, -axis) is RELION's passive one."""
    table = starfile.read(folder / "warp" / "tomostar" / "gold.tomostar")
    for angle, row in zip(series.tilt_angles, table.itertuples(), strict=True):
        warp = euler_to_matrix(0, row.wrpAngleTilt, -row.wrpAxisAngle)
        ours = turn(2, 85.0)[:3, :3] @ turn(1, angle)[:3, :3]
        np.testing.assert_allclose(warp, ours, atol=1e-12)
        # Its defocus grows with z where it is not flipped, as RELION's with a hand of 1.
        assert warp[2, 0] == pytest.approx(-np.sin(np.deg2rad(angle)))


def test_every_mdoc_names_files_that_exist(folder):
    mdocfile = pytest.importorskip("mdocfile", reason="the independent reader of mdoc files")
    for path in (folder / "gold.mrc.mdoc", folder / "warp" / "mdocs" / "gold.mdoc",
                 folder / "tiff" / "gold.tif.mdoc"):
        mdoc = mdocfile.read(path)
        for name in mdoc.SubFramePath:  # a path of Windows, as on a camera's computer
            assert (path.parent / name.as_posix()).is_file(), name


def test_aretomos_stack_has_its_angles_order_and_doses(folder, series):
    rows = np.loadtxt(folder / "aretomo" / "gold_TLT.txt")
    np.testing.assert_allclose(rows[:, 0], series.tilt_angles)
    np.testing.assert_array_equal(rows[:, 1], series.tilts.acquisition_index + 1)
    np.testing.assert_allclose(rows[:, 2], series.tilts.dose, atol=5.1e-3)
    for end, factor in (("", 1), ("_EVN", 0.4), ("_ODD", 0.6)):
        with mrcfile.open(folder / "aretomo" / f"gold{end}.mrc") as mrc:
            assert mrc.is_image_stack() and mrc.voxel_size.x == pytest.approx(PIXEL)
            np.testing.assert_allclose(mrc.data, factor * series.images.numpy(), rtol=1e-6)


def written_as_gold(folder: Path, series) -> Path:
    """imod/ of a series whose second kind is said to be a gold bead."""
    write_formats(folder, replace(series, kinds={**series.kinds, "fiducial": "fiducial"}), ["imod"])
    return folder / "imod"


def test_imods_transforms_bring_beads_onto_their_paths(tmp_path, series):
    root = written_as_gold(tmp_path, series)
    points, transforms = np.loadtxt(root / "gold_fid.txt"), np.loadtxt(root / "gold.xf")
    tilt = np.deg2rad(np.loadtxt(root / "gold.tlt"))
    assert np.array_equal(points[:, 4], np.arange(7)) and set(points[:, 1]) == {1}
    # IMOD's coordinates have 0 at the edge of pixel 0; transforms turn about the middle.
    raw = points[:, 2:4] - [NX / 2, NY / 2]
    aligned = np.einsum("nij,nj->ni", transforms[:, :4].reshape(-1, 2, 2), raw) + transforms[:, 4:]
    x, y, z = turn(2, -85.0)[:3, :3] @ POSITIONS[1] / PIXEL
    # Errors of the axis by about 1 deg also turn the specimen beneath it, which .xf and .tlt
    # can't say: 2 deg of 18 pixels.
    np.testing.assert_allclose(aligned[:, 1], y, atol=0.7)
    np.testing.assert_allclose(aligned[:, 0], x * np.cos(tilt) + z * np.sin(tilt), atol=0.7)
    image = dots(series)
    apart = np.abs(image + 0.5 - points[:, None, 2:4]).max(axis=2).min(axis=1)
    assert np.all(apart < 0.25)


def test_imods_transforms_are_exact_without_errors_of_the_axis(scene, tmp_path):
    errors = TiltErrorSettings(shift=6.0, angle=0.5)
    exact = replace(scene, tilts=replace(scene.tilts, errors=errors))
    root = written_as_gold(tmp_path, simulate(exact))
    points, transforms = np.loadtxt(root / "gold_fid.txt"), np.loadtxt(root / "gold.xf")
    tilt = np.deg2rad(np.loadtxt(root / "gold.tlt"))
    raw = points[:, 2:4] - [NX / 2, NY / 2]
    aligned = np.einsum("nij,nj->ni", transforms[:, :4].reshape(-1, 2, 2), raw) + transforms[:, 4:]
    x, y, z = turn(2, -85.0)[:3, :3] @ POSITIONS[1] / PIXEL
    # Three digits of the points and shifts.
    np.testing.assert_allclose(aligned[:, 1], y, atol=2e-3)
    np.testing.assert_allclose(aligned[:, 0], x * np.cos(tilt) + z * np.sin(tilt), atol=2e-3)


def test_imods_defocus_file_holds_the_truth(folder, series):
    lines = (folder / "imod" / "gold.defocus").read_text().splitlines()
    assert lines[0] == "5 0 0. 0. 0 3"  # astigmatism and phase shift, degrees
    rows = np.array([[float(word) for word in line.split()] for line in lines[1:]])
    np.testing.assert_array_equal(rows[:, 0], np.arange(1, 8))
    # Angles as ctfplotter -invert writes them.
    np.testing.assert_allclose(rows[:, 2], -np.loadtxt(folder / "imod" / "gold.tlt"), atol=5.1e-3)
    # The larger defocus first [nm] with its direction: V is larger, across 80 deg.
    np.testing.assert_allclose(rows[:, 4], series.tilts.defocus_v / 10, atol=0.051)
    np.testing.assert_allclose(rows[:, 5], series.tilts.defocus_u / 10, atol=0.051)
    np.testing.assert_allclose(rows[:, 6], -10)
    np.testing.assert_allclose(rows[:, 7], 5)


# --- SHREC, copick, TIFF -----------------------------------------------------------------------

def test_shrecs_locations_point_into_its_masks(scene, series, tmp_path):
    write_formats(tmp_path, replace(series, images=series.noise_free), ["shrec"])
    root = tmp_path / "shrec" / "model_0"
    volumes = {name: mrcfile.read(root / f"{name}.mrc") for name in (
        "grandmodel", "class_mask", "occupancy_mask", "reconstruction", "projections")}
    assert {volumes[name].shape for name in list(volumes)[:4]} == {(44, NY, NX)}
    lines = (root / "particle_locations.txt").read_text().splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        name, x, y, z, *_ = line.split()
        place = int(z), int(y), int(x)
        assert name == ["au_one", "fiducial"][number - 1]
        assert volumes["occupancy_mask"][place] == volumes["class_mask"][place] == number
        near = tuple(slice(n - 1, n + 2) for n in place)
        assert volumes["grandmodel"][near].max() > 0.5 * volumes["grandmodel"].max()
        # In focus an absorbing atom is dark.
        assert volumes["reconstruction"][near].min() < 0.5 * volumes["reconstruction"].min()
    table = (root / "class_conversion_table.txt").read_text()
    assert table == "au_one 1\nfiducial 2\n"
    with mrcfile.open(root / "grandmodel.mrc") as mrc:
        assert mrc.is_volume() and mrc.voxel_size.x == pytest.approx(PIXEL)


@pytest.mark.parametrize("angles", [(10, 20, 30), (0, 0, 0), (50, 180, -20), (-170, 90, 170)])
def test_zxz_angles_are_intrinsic(angles):
    matrix = euler_to_matrix(*angles)
    back = zxz_angles(matrix[None])[0]
    np.testing.assert_allclose(Rotation.from_euler("ZXZ", back, degrees=True).as_matrix(), matrix,
                               atol=1e-12)


def test_copick_has_picks_and_tomograms(folder, scene, series):
    root = folder / "copick"
    config = json.loads((root / "config.json").read_text())
    assert [entry["name"] for entry in config["pickable_objects"]] == ["au-one", "fiducial"]
    run = root / "ExperimentRuns" / "gold"
    picks = json.loads((run / "Picks" / "tem-taichi_0_au-one.json").read_text())
    assert (picks["pickable_object_name"], picks["unit"]) == ("au-one", "angstrom")
    point, = picks["points"]
    centre = np.array([NX // 2, NY // 2, 22]) * PIXEL
    assert [point["location"][axis] for axis in "xyz"] == pytest.approx(POSITIONS[0] + centre)
    matrix = np.array(point["transformation_"])
    np.testing.assert_allclose(matrix[:3, :3], euler_to_matrix(10, 20, 30), atol=1e-6)
    assert matrix[:, 3].tolist() == [0, 0, 0, 1]
    for name, other in (("wbp", "reconstruction"), ("potential", "grandmodel")):
        expected = mrcfile.read(folder / "shrec" / "model_0" / f"{other}.mrc")
        place = run / "VoxelSpacing3.000" / f"{name}.zarr"
        np.testing.assert_array_equal(zarr_array(place / "0"), expected)
        np.testing.assert_allclose(zarr_array(place / "1")[3, 4, 5],
                                   expected[6:8, 8:10, 10:12].mean(), rtol=1e-4, atol=1e-9)
        assert zarr_array(place / "2").shape == (11, NY // 4, NX // 4)
    # Mostly nothing: it is compressed.
    assert sum(file.stat().st_size for file in (place / "0").rglob("*")) < expected.nbytes / 2


def zarr_array(folder: Path) -> np.ndarray:
    """An array of one chunk, which Zarr 2 compressed by zlib."""
    header = json.loads((folder / ".zarray").read_text())
    assert header["compressor"]["id"] == "zlib" and header["shape"] == header["chunks"]
    return np.frombuffer(zlib.decompress((folder / "0" / "0" / "0").read_bytes()),
                         header["dtype"]).reshape(header["shape"])


def test_copicks_masks_are_those_of_its_picks(folder):
    run = folder / "copick" / "ExperimentRuns" / "gold"
    kinds = zarr_array(run / "Segmentations" / "3.000_tem-taichi_0_kinds-multilabel.zarr" / "0")
    labels = {entry["name"]: entry["label"] for entry in json.loads(
        (folder / "copick" / "config.json").read_text())["pickable_objects"]}
    for name, label in labels.items():
        instances = zarr_array(
            run / "InstanceSegmentations" / f"3.000_tem-taichi_0_{name}.zarr" / "0")
        np.testing.assert_array_equal(instances > 0, kinds == label)
        picks = json.loads((run / "Picks" / f"tem-taichi_0_{name}.json").read_text())
        for point in picks["points"]:
            x, y, z = (round(point["location"][axis] / PIXEL) for axis in "xyz")
            assert instances[z, y, x] == point["instance_id"]


def test_every_kind_has_its_map_and_mask(folder):
    for kind, entry in (("au_one", "au-one"), ("fiducial", "fiducial")):
        with mrcfile.open(folder / "shrec" / "references" / f"{kind}.mrc") as mrc:
            potential, voxel = mrc.data.copy(), mrc.voxel_size.x
        mask = mrcfile.read(folder / "shrec" / "references" / f"{kind}_mask.mrc")
        middle = tuple(n // 2 for n in potential.shape)
        assert voxel == PIXEL and mask.shape == potential.shape
        assert potential[middle] == potential.max() > 0
        assert mask[middle] == 1 and mask.sum() <= 7  # one atom and the voxels next to it
        np.testing.assert_array_equal(
            zarr_array(folder / "copick" / "Objects" / f"{entry}.zarr" / "0"), potential)


@pytest.mark.slow
def test_copick_itself_reads_its_project_from_any_folder(scene, series, tmp_path, monkeypatch):
    copick = pytest.importorskip("copick", reason="the program itself")
    partial, final = tmp_path / "partial", tmp_path / "final"
    partial.mkdir()
    membrane = particle_of(membrane=[60.0, 60.0], placement="listed",
                           positions=[[0.0, 0.0, 0.0]])
    kinds = {**scene.specimen.particles, "lipid_sheet": membrane}
    more = replace(scene, specimen=replace(scene.specimen, particles=kinds))
    write_formats(partial, recorded(more, build_specimen(more), series.tilts,
                                    images=series.images), ["copick"], final)
    partial.rename(final)
    monkeypatch.chdir(tmp_path)
    root = copick.from_file(str(final / "copick" / "config.json"))
    assert [run.name for run in root.runs] == ["gold"]
    run = root.get_run("gold")
    assert sorted(picks.pickable_object_name for picks in run.picks) == [
        "au-one", "fiducial", "lipid-sheet"]
    tomograms = run.get_voxel_spacing(PIXEL).tomograms
    assert sorted(tomogram.tomo_type for tomogram in tomograms) == ["potential", "wbp"]
    for tomogram in tomograms:
        assert [tomogram.numpy(level).shape for level in "012"] == [
            (44, NY, NX), (22, NY // 2, NX // 2), (11, NY // 4, NX // 4)]
    kinds, = run.get_segmentations(is_multilabel=True)
    assert kinds.name == "kinds" and set(np.unique(kinds.numpy())) == {0, 1, 2, 3}
    # The middle of the sheet is a particle for copick's masks alone.
    assert not root.get_object("lipid-sheet").is_particle
    binary, = run.get_segmentations(name="lipid-sheet", is_multilabel=False)
    assert binary.numpy()[22, NY // 2, NX // 2] == 1
    assert root.get_object("au-one").numpy().max() > 0


def test_tiff_stacks_show_the_same_picture(folder, series):
    for end, factor in (("", 1), ("_EVN", 0.4), ("_ODD", 0.6)):
        stack = tifffile.imread(folder / "tiff" / f"gold{end}.tif")
        np.testing.assert_allclose(stack[:, ::-1], factor * series.images.numpy(), rtol=1e-6)


def test_tiff_movies_hold_the_frames_of_each_image(folder, series):
    table = read_mdoc(folder / "tiff" / "gold.tif.mdoc")
    for n, name in enumerate(table.sub_frame_path):
        movie = tifffile.imread(folder / "tiff" / "frames" / name)
        assert movie.shape == (3, NY, NX)
        np.testing.assert_array_equal(movie[:, ::-1], series.frames[n].numpy())


# --- which ones --------------------------------------------------------------------------------

def test_only_what_is_asked_for_is_written(scene, series, tmp_path):
    for formats in ([], ["imod"], ["tiff", "warp"]):
        place = tmp_path / "-".join(["out", *formats])
        place.mkdir()
        names = write_result(place, replace(scene, formats=formats), series)
        assert {name for name in names if (place / name).is_dir()} == set(formats)
        assert "SubFramePath" not in (place / "gold.mrc.mdoc").read_text()


def test_series_without_particles_or_halves(scene, tmp_path):
    empty = replace(scene, specimen=SpecimenSettings(ice=IceSettings(thickness=130.0,
                                                                     granularity=0.0)))
    result = simulate(empty)
    write_formats(tmp_path, result, empty.formats)
    assert starfile.read(tmp_path / "relion5" / "particles.star")["optics"].shape[0] == 1
    assert (tmp_path / "shrec" / "model_0" / "particle_locations.txt").read_text() == ""
    assert not mrcfile.read(tmp_path / "shrec" / "model_0" / "class_mask.mrc").any()
    assert not (tmp_path / "imod" / "gold_fid.txt").exists()


def test_a_kind_named_as_anothers_mask_is_refused_for_shrec():
    """Both would be references/a_mask.mrc."""
    bead = particle_of(fiducial=50.0)
    kinds = SpecimenSettings(particles={"a": bead, "a_mask": bead})
    Scene(specimen=kinds, formats=["copick"])
    with pytest.raises(ValueError, match='particles="a_mask": must be named differently from'):
        Scene(specimen=kinds, formats=["shrec"])


def test_names_that_copick_can_not_tell_apart_are_refused(scene, gold):
    """Before anything is computed."""
    atom = particle_of(structure=gold, placement="listed", positions=[[0.0, 0.0, 0.0]])
    twice = replace(scene.specimen, particles={"a_b": atom, "a-b": replace(atom)})
    assert replace(scene, specimen=twice, formats=["shrec"]).formats == ("shrec",)
    with pytest.raises(ValueError, match=r'specimen\.particles="a-b": must be named differently '
                       r"from a_b for formats: \[copick\]"):
        replace(scene, formats=["copick"], specimen=twice)


@pytest.mark.parametrize(("formats", "words"), [
    (["relion"], r'formats\[0\]="relion": must be one of relion5, warp, aretomo, imod, shrec'),
    (["imod", "imod"], r'formats\[1\]="imod": must be given only once'),
])
def test_formats_that_make_no_sense_are_refused(formats, words):
    with pytest.raises(ValueError, match=words):
        Scene(formats=formats)


def test_command_line_refuses_an_unknown_format_in_one_line(capsys):
    assert main(["formats=[imod,eman]", "--check"]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: formats[1]="eman": must be one of relion5, warp')
    assert error.count("\n") == 1
