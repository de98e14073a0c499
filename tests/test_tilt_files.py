from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tem_taichi.files.tilts import (
    TILT_COLUMNS,
    image_names,
    read_mdoc,
    read_rawtlt,
    write_mdoc,
    write_rawtlt,
    write_tilt_table,
)


def series(n: int = 5, **columns: object) -> pd.DataFrame:
    """A dose-symmetric series, sorted by angle, with a little of everything."""
    rng = np.random.default_rng(0)
    angle = 3.0 * (np.arange(n) - n // 2) + 0.1234
    acquisition = np.argsort(np.argsort(np.abs(angle - 0.2), kind="stable"))
    truth = {"tilt_angle": angle, "acquisition_index": acquisition,
             "prior_dose": 3.1 * acquisition, "dose": np.full(n, 3.1),
             "axis_angle": 85.3 + 0 * angle, "shift_x": rng.normal(size=n),
             "shift_y": rng.normal(size=n), "defocus_u": 30500 + 100 * rng.normal(size=n),
             "defocus_v": 29500 + 100 * rng.normal(size=n), "astigmatism_angle": 40.0 + 0 * angle,
             "phase_shift": np.zeros(n)}
    return pd.DataFrame(truth | columns)


def write_series(path: Path, table: pd.DataFrame, **options: object) -> None:
    write_mdoc(path, table, image_file="TS_01.mrc", pixel_size=2.62, voltage=300.0,
               shape=(310, 652), **options)


def test_rawtlt_has_one_angle_a_line(tmp_path):
    write_rawtlt(tmp_path / "a.rawtlt", [-60.00123, -0.00001, 0, 3, 60])
    assert (tmp_path / "a.rawtlt").read_text() == "-60.0012\n0.0000\n0.0000\n3.0000\n60.0000\n"
    with pytest.raises(ValueError, match="must be finite"):
        write_rawtlt(tmp_path / "b.rawtlt", [0, np.nan])
    assert not (tmp_path / "b.rawtlt").exists()


def test_tilt_table_comes_back_equal(tmp_path):
    table = series(7)
    write_tilt_table(tmp_path / "a.csv", table[list(reversed(TILT_COLUMNS))])
    # float() of Python itself: pandas' own parser may lose the last bit.
    back = pd.read_csv(tmp_path / "a.csv", dtype=str).astype(table.dtypes)
    pd.testing.assert_frame_equal(back, table[list(TILT_COLUMNS)], check_exact=True)


def test_mdoc_is_read_by_mdocfile(tmp_path):
    mdocfile = pytest.importorskip("mdocfile", reason="the independent reader of mdoc files")
    table = series(7)
    names = image_names("TS_01", table)
    write_series(tmp_path / "TS_01.mrc.mdoc", table, frames=(names, 4), mode=1)
    mdoc = mdocfile.read(tmp_path / "TS_01.mrc.mdoc")
    assert mdoc.ZValue.tolist() == list(range(7))
    # Half a unit of the last digit written.
    np.testing.assert_allclose(mdoc.TiltAngle, table.tilt_angle, atol=5.1e-5)
    np.testing.assert_allclose(mdoc.Defocus, -(table.defocus_u + table.defocus_v) / 2e4,
                               atol=5.1e-5)
    np.testing.assert_allclose(mdoc.ExposureDose, table.dose, rtol=1e-5)
    np.testing.assert_allclose(mdoc.PriorRecordDose, table.prior_dose, rtol=1e-5)
    assert mdoc.TargetDefocus.nunique() == 1 and mdoc.TargetDefocus[0] == pytest.approx(-3, 0.01)
    assert set(mdoc.NumSubFrames) == {4}
    assert set(mdoc.PixelSpacing) == {2.62} and set(mdoc.Voltage) == {300.0}
    assert mdoc.ImageSize[0] == (652, 310) and mdoc.DataMode[0] == 1
    assert str(mdoc.ImageFile[0]) == "TS_01.mrc"
    assert [str(path) for path in mdoc.SubFramePath] == names and len(set(names)) == 7
    times = [datetime.strptime(text, "%d-%b-%y  %H:%M:%S") for text in mdoc.DateTime]
    np.testing.assert_array_equal(np.argsort(times), np.argsort(table.acquisition_index))
    # In the order of time every image's prior dose is what the earlier ones brought.
    order = np.argsort(times)
    brought = np.cumsum(mdoc.ExposureDose.to_numpy()[order])[:-1]
    np.testing.assert_allclose(mdoc.PriorRecordDose.to_numpy()[order][1:], brought, rtol=1e-5)


@pytest.mark.parametrize(("axis", "rotation"), [(85.3, 175.3), (-86.7, 3.3), (-4.3, 85.7),
                                                (100.0, -170.0)])
def test_mdoc_axis_is_serialems(tmp_path, axis, rotation):
    # SerialEM's own files: axis 85.3 with rotation 175.3 (EMPIAR-10164), -86.7 with 3.3.
    write_series(tmp_path / "a.mdoc", series(axis_angle=axis))
    text = (tmp_path / "a.mdoc").read_text()
    assert f"[T =     Tilt axis angle = {axis:.2f}, binning = 1  spot = 1  camera = 0]" in text
    assert f"RotationAngle = {rotation:.4f}\n" in text


def test_mdoc_axis_is_the_mean_direction(tmp_path):
    write_series(tmp_path / "a.mdoc", series(4, axis_angle=[179.5, -179.9, 179.7, -179.3]))
    # The mean direction is 180.0 deg, whatever its sign; a plain mean would be 0.0.
    line = next(line for line in (tmp_path / "a.mdoc").read_text().splitlines() if "axis" in line)
    assert abs(float(line.split("angle = ")[1].split(",")[0])) == pytest.approx(180, abs=0.01)


def test_mdoc_overfocus_is_positive(tmp_path):
    write_series(tmp_path / "a.mdoc", series(defocus_u=-5000.0, defocus_v=-5000.0))
    assert "TargetDefocus = 0.5000" in (tmp_path / "a.mdoc").read_text()


def test_mdoc_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        write_series(tmp_path / name, series())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("table", "words"), [
    (series().drop(columns=["dose", "shift_x"]), "columns dose, shift_x are missing"),
    (series(dose=np.nan), "a value of dose is not finite"),
    (series().iloc[::-1], "tilt_angle must ascend"),
    (series(acquisition_index=0), "acquisition_index must hold 0 .. n-1, each once"),
])
def test_table_that_makes_no_sense_is_refused(tmp_path, table, words):
    for write in (write_series, write_tilt_table):
        with pytest.raises(ValueError, match=words):
            write(tmp_path / "a", table)
    assert not list(tmp_path.iterdir())


# --- reading -----------------------------------------------------------------------------------

SERIALEM = """PixelSpacing = 2.62\r
Voltage = 300\r
ImageFile = TS_01.mrc\r
ImageSize = 3838 3710\r
DataMode = 1\r
\r
[T = SerialEM: Titan Krios at Universit\xe4t      12-Mar-23  10:00:00    ]\r
\r
[T =     Tilt axis angle = 85.3, binning = 1  spot = 8  camera = 1]\r
\r
[ZValue = 1]\r
TiltAngle = 3.00121\r
StagePosition = -59.4 311.2\r
ExposureDose = 3.1\r
RotationAngle = 175.3\r
TargetDefocus = -4.2\r
SubFramePath = X:\\frames\\TS_01_001_3.0.tif\r
NumSubFrames = 8\r
DateTime = 12-Mar-23  10:02:11\r
\r
[ZValue = 0]\r
TiltAngle = 0.0012\r
ExposureDose = 3.0\r
TargetDefocus = -4\r
DateTime = 12-Mar-23  10:01:00\r
\r
[ZValue = 2]\r
TiltAngle = -2.9991\r
ExposureDose = 3.2\r
TargetDefocus = -4\r
DateTime = 12-Mar-2023  10:03:00\r
"""


def test_mdoc_of_serialem_is_read(tmp_path):
    (tmp_path / "a.mdoc").write_bytes(SERIALEM.encode("latin-1"))
    table = read_mdoc(tmp_path / "a.mdoc")
    assert table.tilt_angle.tolist() == [0.0012, 3.00121, -2.9991]
    assert table.acquisition_index.tolist() == [0, 1, 2]
    assert table.dose.tolist() == [3.0, 3.1, 3.2]
    assert table.prior_dose.tolist() == pytest.approx([0, 3.0, 6.1])
    assert table.axis_angle.tolist() == [85.3] * 3
    assert table.target_defocus.tolist() == pytest.approx([4e4, 4.2e4, 4e4])
    assert table.sub_frame_path.tolist() == ["", "TS_01_001_3.0.tif", ""]


@pytest.mark.parametrize("axis", [85.3, -86.7, 179.9])
def test_mdoc_comes_back(tmp_path, axis):
    table = series(7, axis_angle=axis)
    write_series(tmp_path / "a.mdoc", table)
    back = read_mdoc(tmp_path / "a.mdoc")
    for name in ("tilt_angle", "prior_dose", "dose"):  # half a unit of the last digit written
        np.testing.assert_allclose(back[name], table[name], atol=5.1e-5)
    assert back.acquisition_index.tolist() == table.acquisition_index.tolist()
    assert back.axis_angle.tolist() == pytest.approx([axis] * 7)
    np.testing.assert_allclose(back.target_defocus, 3e4, rtol=0.01)


def test_mdoc_without_header_time_or_prior_dose(tmp_path):
    """The axis is from RotationAngle, and the order that of the sections."""
    text = "".join(f"[ZValue = {z}]\nTiltAngle = {3 * z}\nRotationAngle = 3.3\n"
                   f"ExposureDose = 2\n\n" for z in (2, 0, 1))
    (tmp_path / "a.mdoc").write_text(text)
    table = read_mdoc(tmp_path / "a.mdoc")
    assert table.tilt_angle.tolist() == [0, 3, 6]
    assert table.acquisition_index.tolist() == [0, 1, 2]
    assert table.prior_dose.tolist() == [0, 2, 4]
    assert table.axis_angle.tolist() == pytest.approx([-86.7] * 3)


@pytest.mark.parametrize(("text", "words"), [
    ("", "has no section"), ("PixelSpacing = 2\n", "has no section"),
    ("[ZValue = 0]\nExposureDose = 3\n", "section 0 has no TiltAngle"),
    ("[ZValue = 0]\nTiltAngle = x\n", "section 0, TiltAngle: 'x' must be a finite number"),
    ("[ZValue = 0]\nTiltAngle = nan\n", "section 0, TiltAngle: 'nan' must be a finite number"),
    ("[ZValue = a]\nTiltAngle = 1\n", "ZValue: 'a' must be a finite number"),
    ("[T = Tilt axis angle = ?, binning = 1]\n[ZValue = 0]\nTiltAngle = 1\n", "tilt axis angle"),
])
def test_mdoc_that_makes_no_sense_is_refused(tmp_path, text, words):
    (tmp_path / "a.mdoc").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_mdoc(tmp_path / "a.mdoc")
    assert str(caught.value).startswith(f"{tmp_path / 'a.mdoc'}: ")
    with pytest.raises(ValueError, match="can't be read"):
        read_mdoc(tmp_path / "absent.mdoc")


def test_rawtlt_comes_back(tmp_path):
    write_rawtlt(tmp_path / "a.rawtlt", [-60.00123, 0, 60])
    assert read_rawtlt(tmp_path / "a.rawtlt").tolist() == [-60.0012, 0, 60]
    (tmp_path / "b.tlt").write_text("\n  -3.00\r\n 0\n\n")
    assert read_rawtlt(tmp_path / "b.tlt").tolist() == [-3, 0]


@pytest.mark.parametrize(("text", "words"), [
    ("\n", "has no tilt angles"), ("1\nx\n", "line 2: 'x' must be a finite number"),
    ("1 2\n", "line 1: '1 2' must"), ("inf\n", "line 1: 'inf' must"),
])
def test_rawtlt_that_makes_no_sense_is_refused(tmp_path, text, words):
    (tmp_path / "a.rawtlt").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_rawtlt(tmp_path / "a.rawtlt")


def test_names_of_frames_must_be_one_for_each_image(tmp_path):
    with pytest.raises(ValueError, match="frames: has 2 names; must have one for each of"):
        write_series(tmp_path / "a.mdoc", series(), frames=(["a", "b"], 1))
    write_series(tmp_path / "a.mdoc", series())
    assert "SubFramePath" not in (tmp_path / "a.mdoc").read_text()
