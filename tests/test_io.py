import gzip
import io as streams
import json
import struct
import warnings
from datetime import datetime
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest

from tem_taichi import __version__
from tem_taichi.io import (
    TILT_COLUMNS,
    mrc_mode,
    read_volume,
    write_json,
    write_mdoc,
    write_mrc,
    write_rawtlt,
    write_tilt_table,
)

TYPES = ("float32", "int16", "uint16", "int8")


def numbers(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def raw_mrc(path: Path, data: np.ndarray, voxel: tuple[float, ...] = (2, 2, 2),
            **header: object) -> None:
    """A file as another program may write it; header fields as given."""
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(data)
        if data.ndim == 3:
            mrc.set_volume()
        mrc.voxel_size = voxel
        for name, value in header.items():
            mrc.header[name] = value


# --- MRC ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("volume", [False, True])
def test_mrc_is_valid_and_keeps_type_and_values(tmp_path, dtype, volume):
    path, data = tmp_path / "a.mrc", numbers((3, 4, 5), dtype)
    write_mrc(path, data, 1.37, volume=volume)
    report = streams.StringIO()
    assert mrcfile.validate(path, print_file=report), report.getvalue()
    with mrcfile.open(path) as mrc:
        np.testing.assert_array_equal(mrc.data, data)
        assert mrc.data.dtype == dtype
        assert mrc.header.mode == mrc_mode(np.dtype(dtype))
        assert (mrc.is_volume(), mrc.is_image_stack()) == (volume, not volume)
        assert mrc.header.ispg == int(volume)
        assert mrc.header.mz == (3 if volume else 1)
        # The header holds single precision.
        np.testing.assert_allclose(mrc.voxel_size.tolist(), (1.37,) * 3, rtol=1e-6)
        assert mrc.nstart.tolist() == mrc.header.origin.tolist() == (0, 0, 0)


def test_one_image_is_a_stack_of_one(tmp_path):
    write_mrc(tmp_path / "a.mrc", numbers((4, 5)), 2.0)
    with mrcfile.open(tmp_path / "a.mrc") as mrc:
        header = mrc.header
        assert (header.nx, header.ny, header.nz, header.mz, header.ispg) == (5, 4, 1, 1, 0)
        np.testing.assert_array_equal(mrc.data.squeeze(), numbers((4, 5)))


def test_mrc_label_has_no_time_of_day(tmp_path):
    # mrcfile's own label has one, and the same input would give other bytes.
    write_mrc(tmp_path / "a.mrc", numbers((2, 4, 5)), 2.0)
    with mrcfile.open(tmp_path / "a.mrc") as mrc:
        assert mrc.get_labels() == [f"tem_taichi {__version__}"]


def test_array_in_any_order_of_memory(tmp_path):
    data = numbers((2, 4, 5))
    write_mrc(tmp_path / "a.mrc", data, 2.0)
    write_mrc(tmp_path / "b.mrc", np.asfortranarray(data), 2.0)
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_writes_no_file(tmp_path, bad):
    data = numbers((2, 4, 5))
    data[1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"a\.mrc: 1 values are not finite"):
        write_mrc(tmp_path / "a.mrc", data, 2.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("array", "pixel", "words"), [
    (np.ones((2, 3, 4), complex), 1.0, "dtype=complex128: must be one of float32, int16"),
    (np.ones((2, 3, 4), np.complex64), 1.0, "dtype=complex64"),
    (np.ones((2, 3, 4)), 1.0, "dtype=float64"),
    (np.ones((2, 3, 4), np.float32), 0.0, r"pixel_size=0.0: must be positive \[A\]"),
    (np.ones((2, 3, 4), np.float32), np.nan, "pixel_size=nan"),
    (np.ones((0, 3, 4), np.float32), 1.0, "shape"),
    (np.ones(4, np.float32), 1.0, "shape"),
])
def test_what_mrc_can_not_hold_is_refused(tmp_path, array, pixel, words):
    with pytest.raises(ValueError, match=words):
        write_mrc(tmp_path / "a.mrc", array, pixel)
    assert not list(tmp_path.iterdir())


def test_single_image_is_no_volume(tmp_path):
    with pytest.raises(ValueError, match="shape"):
        write_mrc(tmp_path / "a.mrc", numbers((4, 5)), 2.0, volume=True)


# --- volumes from elsewhere --------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [*TYPES, "float16"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
def test_volume_comes_back(tmp_path, dtype, order, compressed):
    path, data = tmp_path / "a.mrc", numbers((3, 4, 5), dtype)
    raw_mrc(path, data.astype(np.dtype(dtype).newbyteorder(order)), (1.5, 1.5, 1.5))
    if compressed:
        path = tmp_path / "a.mrc.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.mrc").read_bytes()))
    values, voxel_size = read_volume(path)
    np.testing.assert_array_equal(values, data)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous and values.dtype.isnative
    assert voxel_size == pytest.approx(1.5, rel=1e-6)


def test_order_of_axes_in_the_file_is_undone(tmp_path):
    data = numbers((3, 4, 5))  # [z, y, x]
    stored = data.transpose(1, 2, 0)  # sections along y, rows along x, columns along z
    raw_mrc(tmp_path / "a.mrc", np.ascontiguousarray(stored), mapc=3, mapr=1, maps=2)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mrc", voxel_size=1.0)[0], data)
    raw_mrc(tmp_path / "b.mrc", data, mapc=0, mapr=0, maps=0)
    np.testing.assert_array_equal(read_volume(tmp_path / "b.mrc")[0], data)
    raw_mrc(tmp_path / "c.mrc", data, mapc=1, mapr=1, maps=3)
    with pytest.raises(ValueError, match=r"c\.mrc: axes \[1, 1, 3\] .* permutation"):
        read_volume(tmp_path / "c.mrc")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("stamp", "flags", "expected"), [
    (0, 0, -56), (1146047817, 1, -56), (1146047817, 0, 200),
])
def test_imods_unsigned_bytes(tmp_path, order, stamp, flags, expected):
    # IMOD's mrc_format: bytes are signed unless stamped with bit 0 of the flags unset.
    path = tmp_path / "a.mrc"
    raw_mrc(path, np.full((2, 2, 2), 200, np.uint8).view(np.int8))
    with mrcfile.open(path) as mrc:
        header = mrc.header.copy()
    if order == ">":
        header = header.byteswap().view(header.dtype.newbyteorder())
        header.machst = [0x11, 0x11, 0, 0]
    content = bytearray(header.tobytes() + bytes([200] * 8))
    content[152:160] = struct.pack(order + "2i", stamp, flags)
    path.write_bytes(content)
    assert np.all(read_volume(path)[0] == expected)


@pytest.mark.parametrize(("voxel", "words"), [
    ((0, 0, 0), r"voxel size 0 x 0 x 0 A .* must be positive; give voxel_size"),
    ((2, 2, 0), r"voxel size 2 x 2 x 0 A"),
    ((2, 2, 2.1), r"voxel size 2 x 2 x 2.1 A .* differs by more than 1 %; give voxel_size"),
])
def test_voxel_size_that_makes_no_sense_needs_an_override(tmp_path, voxel, words):
    raw_mrc(tmp_path / "a.mrc", numbers((3, 4, 5)), voxel)
    with pytest.raises(ValueError, match=words):
        read_volume(tmp_path / "a.mrc")
    values, voxel_size = read_volume(tmp_path / "a.mrc", voxel_size=2.5)
    np.testing.assert_array_equal(values, numbers((3, 4, 5)))
    assert voxel_size == 2.5


def test_voxel_size_may_differ_by_rounding(tmp_path):
    raw_mrc(tmp_path / "a.mrc", numbers((3, 4, 5)), (2.0, 2.0, 2.01))
    assert read_volume(tmp_path / "a.mrc")[1] == pytest.approx(6.01 / 3, rel=1e-6)
    with pytest.raises(ValueError, match=r"voxel_size=-1: must be positive \[A\]"):
        read_volume(tmp_path / "a.mrc", voxel_size=-1)


def broken_files(folder: Path) -> dict[str, str]:
    """Names of files that are no volume, and what the message must say."""
    good = folder / "good.mrc"
    raw_mrc(good, numbers((3, 4, 5)))
    content = good.read_bytes()
    compressed = gzip.compress(content)
    swap = {"short": content[:-7], "header": content[:500], "empty": b"", "text": b"hello" * 500,
            "longer": content + b"1234", "stamp": content[:212] + b"\0\0\0\0" + content[216:],
            "mode": content[:12] + struct.pack("<i", 101) + content[16:],
            "huge": struct.pack("<3i", *(2**31 - 1,) * 3) + content[12:],
            "negative": struct.pack("<3i", -3, 4, 5) + content[12:]}
    for name, data in swap.items():
        (folder / f"{name}.mrc").write_bytes(data)
    (folder / "short.mrc.gz").write_bytes(compressed[:-20])
    (folder / "damaged.mrc.gz").write_bytes(compressed[:20] + b"\xff" * 20 + compressed[40:])
    raw_mrc(folder / "image.mrc", numbers((4, 5)))
    raw_mrc(folder / "complex.mrc", np.ones((2, 3, 4), np.complex64))
    raw_mrc(folder / "skewed.mrc", numbers((3, 4, 5)), cellb=(90, 94, 90))
    data = numbers((3, 4, 5))
    raw_mrc(folder / "nan.mrc", data)
    (folder / "nan.mrc").write_bytes((folder / "nan.mrc").read_bytes()[:-4]
                                     + struct.pack("<f", np.nan))
    read = "can't be read as MRC"
    return {**{f"{name}.mrc": read for name in swap}, "short.mrc.gz": read,
            "damaged.mrc.gz": read, "absent.mrc": read, "image.mrc": "is no volume",
            "complex.mrc": "mode 4 must be one of", "skewed.mrc": "must be 90 deg",
            "nan.mrc": "1 values are not finite"}


def test_broken_files_are_named_in_one_line(tmp_path):
    warnings.simplefilter("ignore")  # what mrcfile only warns of must be an error all the same
    for name, words in broken_files(tmp_path).items():
        with pytest.raises(ValueError) as caught:
            read_volume(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: "), name
        assert words in message, name
        assert "\n" not in message, name


def test_real_maps(shared):
    maps = shared / "data" / "maps"
    values, voxel_size = read_volume(maps / "EMD-3197.map")
    assert (values.shape, voxel_size) == ((20, 20, 20), pytest.approx(11.4))
    with pytest.raises(ValueError, match="voxel size 0 x 0 x 0 A"):
        read_volume(maps / "clean70S_65.mrc")
    assert read_volume(maps / "clean70S_65.mrc", voxel_size=5.0)[0].shape == (65, 65, 65)
    with pytest.raises(ValueError, match="cell angles"):  # a monoclinic crystal
        read_volume(maps / "EMD-3001.map", voxel_size=1.0)
    values, voxel_size = read_volume(shared / "reference/temsim/tmv3/2OM3_map.mrc.gz")
    assert (values.shape, voxel_size) == ((120, 199, 199), 1.0)


# --- tilt series -------------------------------------------------------------------------------

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
    write_series(tmp_path / "TS_01.mrc.mdoc", table, n_frames=4, mode=1)
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
    assert mdoc.SubFramePath.nunique() == 7
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


# --- JSON --------------------------------------------------------------------------------------

def test_json_comes_back_in_order(tmp_path):
    content = {"program": "tem_taichi", "angle": np.float32(0.5), "n": np.int64(3), "name": "Å",
               "array": np.arange(3), "path": Path("a/b"), "nested": {"z": 1, "a": [True, None]}}
    write_json(tmp_path / "a.json", content)
    back = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert back == {"program": "tem_taichi", "angle": 0.5, "n": 3, "name": "Å", "array": [0, 1, 2],
                    "path": "a/b", "nested": {"z": 1, "a": [True, None]}}
    assert list(back) == list(content)
    assert list(back["nested"]) == ["z", "a"]


@pytest.mark.parametrize("bad", [np.nan, np.float32("inf"), np.array([1, np.nan]), object(), {1}])
def test_json_refuses_what_it_can_not_hold(tmp_path, bad):
    with pytest.raises(ValueError, match=r"a\.json: "):
        write_json(tmp_path / "a.json", {"value": bad})
    assert not list(tmp_path.iterdir())
