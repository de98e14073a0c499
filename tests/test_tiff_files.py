import numpy as np
import pytest
import tifffile

from tem_taichi.files.io import read_images
from tem_taichi.files.tiff_files import read_gain, write_gain, write_tiff


def numbers(shape, dtype="float32"):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint16", "int8", "uint8"])
def test_stack_comes_back_with_its_top_row_first_in_the_file(tmp_path, dtype):
    data = numbers((3, 4, 5), dtype)
    write_tiff(tmp_path / "a.tif", data, 1.37)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert len(file.pages) == 3
        stored = file.asarray()
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, data[:, ::-1])
    values, pixel_size = read_images(tmp_path / "a.tif")
    np.testing.assert_array_equal(values, data)
    assert values.dtype == np.float32
    assert pixel_size == pytest.approx(1.37, rel=1e-6)  # a ratio of two 32-bit numbers


@pytest.mark.parametrize("pixel_size", [0.05, 1.0, 10.0, 900.0])
def test_pixel_size_comes_back(tmp_path, pixel_size):
    write_tiff(tmp_path / "a.tif", numbers((4, 5)), pixel_size)
    assert read_images(tmp_path / "a.tif")[1] == pytest.approx(pixel_size, rel=1e-6)


def test_resolution_of_a_printer_is_no_pixel_size(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", numbers((4, 5)), resolution=(72, 72),
                     resolutionunit="INCH")
    tifffile.imwrite(tmp_path / "b.tif", numbers((4, 5)))
    assert read_images(tmp_path / "a.tif")[1] is None
    assert read_images(tmp_path / "b.tif")[1] is None


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in "ab":
        write_tiff(tmp_path / name, numbers((3, 4, 5)), 2.0)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("images", "pixel", "words"), [
    (np.ones((2, 3, 4)), 1.0, "dtype=float64"), (np.ones(4, np.float32), 1.0, "shape"),
    (np.ones((2, 3, 4), np.float32), -1.0, r"pixel_size=-1.0: must be positive \[A\]"),
    (np.full((2, 3, 4), np.nan, np.float32), 1.0, "24 values are not finite"),
])
def test_what_is_no_stack_is_not_written(tmp_path, images, pixel, words):
    with pytest.raises(ValueError, match=words):
        write_tiff(tmp_path / "a.tif", images, pixel)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_stack_are_named_in_one_line(tmp_path):
    (tmp_path / "text.tif").write_text("hello")
    (tmp_path / "empty.tif").write_bytes(b"")
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((4, 5, 3), np.uint8), photometric="rgb")
    with tifffile.TiffWriter(tmp_path / "uneven.tif") as file:
        file.write(numbers((4, 5)))
        file.write(numbers((5, 5)))
    for name in ("text", "empty", "colour", "uneven"):
        with pytest.raises(ValueError, match="can't be read as TIFF") as caught:
            read_images(tmp_path / f"{name}.tif")
        assert str(caught.value).startswith(f"{tmp_path / name}.tif: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"absent\.tif: no such file"):
        read_images(tmp_path / "absent.tif")
    tifffile.imwrite(tmp_path / "nan.tif", np.full((4, 5), np.nan, np.float32))
    with pytest.raises(ValueError, match="20 values are not finite"):
        read_images(tmp_path / "nan.tif")


def test_gain_reference_comes_back(tmp_path):
    gain = numbers((4, 5)) / 50
    gain[1, 2] = 0  # a dead pixel
    write_gain(tmp_path / "gain.tif", gain)
    np.testing.assert_array_equal(read_gain(tmp_path / "gain.tif"), gain)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "gain.tif"), gain[::-1])


def test_what_is_no_gain_reference_is_refused(tmp_path):
    for bad in (np.full((4, 5), -1.0), np.zeros((4, 5)), np.full((4, 5), np.inf)):
        with pytest.raises(ValueError, match="gain runs from"):
            write_gain(tmp_path / "gain.tif", bad)
    with pytest.raises(ValueError, match=r"must be \(ny, nx\)"):
        write_gain(tmp_path / "gain.tif", np.ones((2, 4, 5)))
    write_tiff(tmp_path / "movie.tif", numbers((3, 4, 5)), 1.0)
    with pytest.raises(ValueError, match="has 3 pages; a gain reference has one"):
        read_gain(tmp_path / "movie.tif")
