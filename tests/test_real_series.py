"""A real tilt series, read from the files of a microscope, is exported as a simulated one is."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch

from tem_taichi import simulate
from tem_taichi.export.formats import write_formats
from tem_taichi.scene.load import load_scene
from tem_taichi.series.read import read_series

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ANGLES, DOSES = [0.01, 3.02, -2.98, -6.01, 6.0], [3.0, 3.1, 3.2, 3.3, 3.4]
"""In the order of acquisition, which is that of the stack."""
FORMATS = ["relion5", "imod", "warp", "aretomo"]
LENS = {"spherical_aberration": 2.7, "amplitude_contrast": 0.07}


@pytest.fixture
def recorded(tmp_path) -> Path:
    """A stack and its mdoc as a microscope leaves them, by mrcfile and by hand."""
    images = np.random.default_rng(0).integers(0, 50, (5, 24, 30)).astype(np.int16)
    images += 100 * np.arange(5, dtype=np.int16)[:, None, None]  # tells which one it is
    with mrcfile.new(tmp_path / "TS_01.mrc") as mrc:
        mrc.set_data(images)
        mrc.set_image_stack()
        mrc.voxel_size = 2.5
    lines = ["PixelSpacing = 2.5", "Voltage = 200", "ImageFile = TS_01.mrc", "",
             "[T =     Tilt axis angle = 85.0, binning = 1  spot = 8  camera = 1]", ""]
    for z, (angle, dose) in enumerate(zip(ANGLES, DOSES, strict=True)):
        lines += [f"[ZValue = {z}]", f"TiltAngle = {angle}", f"ExposureDose = {dose}",
                  "TargetDefocus = -3", f"DateTime = 12-Mar-23  10:0{z}:00", ""]
    (tmp_path / "TS_01.mrc.mdoc").write_text("\r\n".join(lines))
    return tmp_path / "TS_01.mrc"


def number(image: np.ndarray) -> int:
    """Place of an image in the order of acquisition."""
    return int(image.mean() // 100)


def test_series_is_read_by_angle_with_its_order_and_doses(recorded):
    series = read_series(recorded, f"{recorded}.mdoc", **LENS)
    order = [3, 2, 0, 1, 4]
    assert (series.name, series.pixel_size, series.voltage) == ("TS_01", 2.5, 200)
    assert series.axis_angle == 85 and series.integer and series.hand == -1
    assert [number(image.numpy()) for image in series.images] == order
    assert series.tilt_angles.tolist() == [ANGLES[n] for n in order]
    assert series.tilts["acquisition_index"].tolist() == order
    assert series.tilts["dose"].tolist() == [DOSES[n] for n in order]
    np.testing.assert_allclose(series.tilts["prior_dose"], [sum(DOSES[:n]) for n in order])
    assert not {"shift_x", "defocus_u"} & set(series.tilts)
    assert series.particles is series.noise_free is series.specimen is series.height is None


@pytest.mark.parametrize(("file", "name"), [
    ("TS_1.20.mrc", "TS_1.20"), ("TS.st", "TS"), ("a.MRC", "a"), ("b.rec", "b.rec")])
def test_a_series_is_named_as_its_stack(recorded, file, name):
    series = read_series(recorded.rename(recorded.with_name(file)), f"{recorded}.mdoc")
    assert series.name == name


def test_every_program_gets_each_image_with_its_own_angle(recorded, tmp_path):
    series = read_series(recorded, f"{recorded}.mdoc", height=20, **LENS)
    write_formats(tmp_path, series, [*FORMATS, "tiff"])
    root = tmp_path / "relion5"
    tomogram = starfile.read(root / "tomograms.star").iloc[0]
    assert (tomogram.rlnVoltage, tomogram.rlnTomoHand, tomogram.rlnTomoSizeZ) == (200, -1, 20)
    rows = starfile.read(root / "tilt_series" / "TS_01.star")
    assert [number(mrcfile.read(root / name)) for name in rows.rlnMicrographName] == [*range(5)]
    assert rows.rlnTomoNominalStageTiltAngle.tolist() == ANGLES
    np.testing.assert_allclose(rows.rlnMicrographPreExposure, np.cumsum(DOSES) - DOSES, atol=1e-6)
    # What nobody has measured stands nowhere.
    assert not [name for name in rows if "Defocus" in name or "Shift" in name or "ZRot" in name]
    assert {path.name for path in root.iterdir()} == {"tilt_series", "tilts", "tomograms.star"}

    assert sorted(path.suffix for path in (tmp_path / "imod").iterdir()) == [
        ".edf", ".mrc", ".rawtlt"]
    angles = np.loadtxt(tmp_path / "imod" / "TS_01.rawtlt")
    stack = mrcfile.read(tmp_path / "imod" / "TS_01.mrc")
    assert stack.dtype == np.int16
    assert [ANGLES[number(image)] for image in stack] == angles.tolist() == sorted(ANGLES)

    warp = starfile.read(tmp_path / "warp" / "tomostar" / "TS_01.tomostar")
    averages = tmp_path / "warp" / "warp_frameseries" / "average"
    for row in warp.itertuples():
        first = number(mrcfile.read(averages / Path(row.wrpMovieName).name))
        assert -row.wrpAngleTilt == pytest.approx(ANGLES[first])
        assert row.wrpDose == pytest.approx(sum(DOSES[:first]))
    assert not (tmp_path / "warp" / "alignments").exists()

    rows = np.loadtxt(tmp_path / "aretomo" / "TS_01_TLT.txt")
    stack = mrcfile.read(tmp_path / "aretomo" / "TS_01.mrc")
    assert [number(image) + 1 for image in stack] == rows[:, 1].tolist()
    np.testing.assert_allclose(rows[:, 2], [DOSES[number(image)] for image in stack])
    assert not list((tmp_path / "aretomo").glob("*.aln"))


def test_hand_against_the_beam(recorded, tmp_path):
    """IMOD's own angles, and Warp's flipped handedness; with hand=1 it is the other way round."""
    for hand in (-1, 1):
        place = tmp_path / str(hand)
        place.mkdir()
        write_formats(place, read_series(
            recorded, f"{recorded}.mdoc", height=20, hand=hand, defocus=3e4, shift_x=1.0,
            shift_y=-2.0, **LENS), ["imod", "warp"])
        rows = np.loadtxt(place / "imod" / "TS_01.defocus", skiprows=1)
        np.testing.assert_allclose(rows[:, 2], -hand * np.sort(ANGLES))
        np.testing.assert_allclose(rows[:, 4], 3000)
        root = ElementTree.parse(place / "warp" / "warp_tiltseries" / "TS_01.xml").getroot()
        assert root.get("AreAnglesInverted") == str(hand == -1)


def test_simulated_files_read_back_are_exported_to_the_same_bytes(tmp_path):
    """With the truth given, as an alignment and a fit of the CTF would find it."""
    scene = load_scene(None, [
        "name=gold", "specimen=empty", "shape=[32,36]", "pixel_size=3", "dose=40",
        "specimen.ice.thickness=90", "specimen.particles.bead.fiducial=20", "optics.defocus=5000",
        "optics.astigmatism=300", "optics.phase_shift=20", "detector.integer=true",
        "tilts={scheme: dose_symmetric, minimum: -40, maximum: 40, step: 20, axis_angle: 30}",
        "tilts.errors={shift: 6, angle: 0.5, dose: 0.1, defocus: 50}", "compute.arch=cpu"])
    series = replace(simulate(scene), particles=None)
    for name in ("simulated", "read"):
        (tmp_path / name).mkdir()
    write_formats(tmp_path / "simulated", series, [*FORMATS, "tiff"])
    np.savetxt(tmp_path / "gold.rawtlt", series.tilt_angles)
    truth = {name: column.to_numpy() for name, column in series.tilts.items()
             if name != "nominal_angle"}
    back = read_series(
        tmp_path / "simulated" / "tiff" / "gold.tif", tmp_path / "gold.rawtlt", hand=1,
        height=series.height, **truth, **{
            name: getattr(series, name) for name in (
                "voltage", "spherical_aberration", "chromatic_aberration", "amplitude_contrast")})
    assert torch.equal(back.images, series.images)
    write_formats(tmp_path / "read", back, [*FORMATS, "tiff"])
    files = [path.relative_to(tmp_path / "simulated")
             for path in sorted((tmp_path / "simulated").rglob("*")) if path.is_file()]
    assert len(files) > 20
    for file in files:
        assert (tmp_path / "simulated" / file).read_bytes() == (
            tmp_path / "read" / file).read_bytes(), file


@pytest.mark.parametrize(("lacking", "formats", "said"), [
    ("voltage", "relion5", "relion5 needs voltage, which is not known of the series gold"),
    ("height", "relion5", "needs height"), ("axis_angle", "imod", "imod needs axis_angle"),
    ("dose", "aretomo", "aretomo needs dose"), ("prior_dose", "warp", "warp needs prior_dose"),
    ("specimen", "shrec", "needs specimen"), ("specimen", "copick", "needs specimen"),
])
def test_what_a_program_needs_is_asked_for(recorded, tmp_path, lacking, formats, said):
    series = replace(read_series(recorded, f"{recorded}.mdoc", height=20, **LENS), name="gold")
    if lacking in series.tilts:
        series = replace(series, tilts=series.tilts.drop(columns=lacking))
    if hasattr(series, lacking):
        series = replace(series, **{lacking: None})
    with pytest.raises(ValueError, match=said):
        write_formats(tmp_path, series, [formats])


@pytest.mark.parametrize(("known", "said"), [
    ({"volts": 300}, "volts: must be one of name, pixel_size"),
    ({"voltage": "high"}, 'voltage="high": must be a number'),
    ({"voltage": -1}, "voltage=-1: must be above 0"), ({"hand": 0}, "hand=0: must be 1 or -1"),
    ({"height": 31}, "height=31: must be an even number"),
    ({"name": "a b"}, 'name="a b": must be letters'),
    ({"dose": [1.0, 2.0]}, "dose: must be one finite number or one for each of the 5 images"),
    ({"shift_x": 1.0}, "shift_x, shift_y: must be given both or neither"),
    ({"acquisition_index": 0}, "acquisition_index: must hold 0 .. n-1"),
])
def test_impossible_values_are_refused(recorded, known, said):
    with pytest.raises(ValueError, match=said):
        read_series(recorded, f"{recorded}.mdoc", **known)


def test_other_formats_and_angles_are_refused(recorded, tmp_path):
    with pytest.raises(ValueError, match="formats: 'eman' must be one of relion5"):
        write_formats(tmp_path, read_series(recorded, f"{recorded}.mdoc"), ["eman"])
    (tmp_path / "few.tlt").write_text("1\n2\n")
    with pytest.raises(ValueError, match="has 2 tilt angles: must have one for each of the 5"):
        read_series(recorded, tmp_path / "few.tlt")
    with pytest.raises(ValueError, match=r"none\.csv: can't be read"):
        read_series(recorded, tmp_path / "none.csv")


# --- real data ---------------------------------------------------------------------------------

def real(name: str) -> Path:
    file = DATA / name
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    return file


def test_warps_own_alignment_of_a_real_series_comes_back(tmp_path):
    """EMPIAR-10499: what Warp says of it is what is written for Warp."""
    truth = ElementTree.parse(real("tilt/empiar10499_00254.warp.xml")).getroot()

    def column(root, name):
        return np.array(root.find(name).text.split(), dtype=float)

    series = read_series(
        real("tilt/empiar10499_00254_y0-310.mrc"), real("tilt/empiar10499_00254.tsv"),
        name="TS_254", dose=3.0, voltage=300.0, height=100, **LENS,
        shift_x=column(truth, "AxisOffsetX"), shift_y=column(truth, "AxisOffsetY"))
    assert series.shape == (310, 652) and series.pixel_size == pytest.approx(10)
    assert series.axis_angle == -4.3
    # By the dose before it, the 21st of the stack was the first.
    assert series.tilts["acquisition_index"].tolist().index(0) == 20
    write_formats(tmp_path, series, FORMATS)
    xml = ElementTree.parse(tmp_path / "warp" / "warp_tiltseries" / "TS_254.xml").getroot()
    for name in ("Dose", "AxisOffsetX", "AxisOffsetY"):
        np.testing.assert_allclose(column(xml, name), column(truth, name), rtol=1e-6, atol=1e-9)
    # Its angles were not inverted then; in the table they have four digits.
    np.testing.assert_allclose(column(xml, "Angles"), -column(truth, "Angles"), atol=5.1e-5)
    np.testing.assert_allclose(column(xml, "AxisAngle"), column(truth, "AxisAngle"), atol=1e-5)
    assert xml.get("AreAnglesInverted") == truth.get("AreAnglesInverted") == "True"
    defoci = pd.read_csv(DATA / "tilt/empiar10499_00254.tsv", sep="\t")["defocus_um"]
    rows = starfile.read(tmp_path / "relion5" / "tilt_series" / "TS_254.star")
    np.testing.assert_allclose(rows.rlnDefocusU, 1e4 * defoci.iloc[
        np.argsort(series.tilts["prior_dose"].to_numpy())], rtol=1e-6)
    stack = mrcfile.read(tmp_path / "imod" / "TS_254.mrc")
    np.testing.assert_array_equal(
        stack, mrcfile.read(DATA / "tilt/empiar10499_00254_y0-310.mrc").astype(np.float32))


@pytest.mark.filterwarnings("ignore:.*has not the id and stamp")
def test_a_real_series_with_nothing_but_angles(tmp_path):
    series = read_series(real("stem/HAADF_needle.mrc.gz"), real("stem/HAADF_needle.rawtlt"),
                         pixel_size=33.6, axis_angle=90.0)
    assert series.name == "HAADF_needle" and series.images.shape == (77, 256, 256)
    write_formats(tmp_path, series, ["imod", "tiff"])
    with mrcfile.open(tmp_path / "imod" / "HAADF_needle.mrc") as mrc:
        assert mrc.data.dtype == np.int16 and mrc.voxel_size.x == pytest.approx(33.6)
    assert (tmp_path / "imod" / "HAADF_needle.rawtlt").read_text().splitlines()[0] == "-76.0000"
