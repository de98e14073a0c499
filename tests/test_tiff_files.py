import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from tem_taichi.files.io import read_images
from tem_taichi.files.tiff import read_gain, write_gain, write_tiff


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


def deflated_by_libtiff(path, data):
    """As other programs write: each directory behind its image, and its values behind that."""
    first, *rest = (Image.fromarray(page) for page in data)
    first.save(path, format="tiff", compression="tiff_adobe_deflate", save_all=True,
               append_images=rest)


WRITERS = {
    "plain": lambda path, data: write_tiff(path, data, 1.37),
    "big_endian": {"byteorder": ">", "metadata": None},
    "BigTIFF": {"bigtiff": True, "metadata": None},
    "tiled": {"tile": (16, 16), "metadata": None},
    "strips": {"rowsperstrip": 3, "metadata": None, "resolution": (3.1, 3.1)},
    "compressed": {"compression": "zlib", "metadata": None},
    "compressed tiles in BigTIFF": {"tile": (16, 16), "compression": "zlib", "bigtiff": True,
                                    "metadata": None},
    "libtiff": deflated_by_libtiff,
    "one piece": {}, "ImageJ": {"imagej": True, "photometric": None}, "OME": {"ome": True},
}


def write_as(kind, path, data):
    writer = WRITERS[kind]
    if isinstance(writer, dict):
        tifffile.imwrite(path, data, **({"photometric": "minisblack"} | writer))
    else:
        writer(path, data)


@pytest.mark.parametrize("kind", WRITERS)
def test_no_cut_of_a_file_is_read_as_another_stack(tmp_path, kind):
    """Every byte of a plain file, one in 29 of others; what pads the end may be missing."""
    data = numbers((3, 4, 5) if kind == "plain" else (3, 20, 21), "uint16")
    write_as(kind, tmp_path / "a.tif", data)
    content = (tmp_path / "a.tif").read_bytes()
    np.testing.assert_array_equal(read_images(tmp_path / "a.tif")[0], data[:, ::-1] if
                                  kind != "plain" else data)
    cut, refused = tmp_path / "cut.tif", 0
    for length in range(0, len(content), 1 if kind == "plain" else 29):
        cut.write_bytes(content[:length])
        try:
            values, _ = read_images(cut)
        except ValueError as error:
            assert str(error).startswith(f"{cut}: can't be read as TIFF (")
            refused += 1
            continue
        assert len(content) - length <= 32, length
        np.testing.assert_array_equal(values[:, ::-1] if kind != "plain" else values, data)
    assert refused > 50


def test_stack_that_is_described_once_is_read_whole(tmp_path):
    """As ImageJ writes stacks of more than 4 GB: one directory, and the images in one piece."""
    data = numbers((5, 8, 9), "uint16")
    for name, keywords in (("imagej", {"imagej": True}), ("tifffile", {})):
        file = tmp_path / f"{name}.tif"
        tifffile.imwrite(file, data, truncate=True, **keywords)
        with tifffile.TiffFile(file) as pages:
            assert len(pages.pages) == 1
        np.testing.assert_array_equal(read_images(file)[0][:, ::-1], data)
        content = file.read_bytes()
        file.write_bytes(content[:-200])
        with pytest.raises(ValueError, match="can't be read as TIFF"):
            read_images(file)


def test_pages_that_a_description_promises_are_missed(tmp_path):
    """Of a file that was not written to its end, though its pages are whole."""
    tifffile.imwrite(tmp_path / "a.tif", numbers((2, 8, 9), "uint16"), metadata=None,
                     description="ImageJ=1.11a\nimages=3\nslices=3\n")
    with pytest.raises(ValueError, match="says that it has 3 images and has 2"):
        read_images(tmp_path / "a.tif")


def test_directories_in_a_circle_are_refused(tmp_path):
    write_tiff(tmp_path / "a.tif", numbers((2, 4, 5)), 1.0)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        first, last = (page.offset for page in file.pages)
    entries, = struct.unpack_from("<H", content, last)
    struct.pack_into("<I", content, last + 2 + 12 * entries, first)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ValueError, match="can't be read as TIFF"):
        read_images(tmp_path / "a.tif")


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


def test_more_than_a_classic_file_holds_is_a_bigtiff(tmp_path, monkeypatch):
    data = numbers((3, 4, 5))
    for room, big in ((data.nbytes, False), (data.nbytes - 1, True)):
        monkeypatch.setattr("tem_taichi.files.tiff._CLASSIC", room)
        write_tiff(tmp_path / "a.tif", data, 2.0)
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            assert file.is_bigtiff == big
        np.testing.assert_array_equal(read_images(tmp_path / "a.tif")[0], data)
