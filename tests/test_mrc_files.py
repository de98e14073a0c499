import bz2
import gzip
import io as streams
import struct
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from tem_taichi import __version__
from tem_taichi.files.io import read_images
from tem_taichi.files.mrc import mrc_mode, read_volume, write_mrc, write_planes

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


@pytest.mark.parametrize("volume", [False, True])
def test_planes_one_by_one_make_the_file_of_the_whole(tmp_path, volume):
    """Header and data as mrcfile writes them at once; its mean and rms are sums of singles."""
    data = np.random.default_rng(0).normal(1000, 1, (7, 30, 40)).astype(np.float32)
    write_planes(tmp_path / "a.mrc", iter(data), 1.37, volume)
    with mrcfile.new(tmp_path / "b.mrc") as whole:
        whole.set_data(data)
        if not volume:
            whole.set_image_stack()
        whole.voxel_size = 1.37
    ours, theirs = (mrcfile.open(tmp_path / name) for name in ("a.mrc", "b.mrc"))
    with ours, theirs:
        assert np.array_equal(ours.data, theirs.data)
        for name in set(ours.header.dtype.names) - {"label", "dmean", "rms"}:
            assert np.array_equal(ours.header[name], theirs.header[name]), name
        # The header holds single precision, 24 bits.
        assert float(ours.header.dmean) == pytest.approx(data.mean(dtype=np.float64), rel=2**-24)
        assert float(ours.header.rms) == pytest.approx(data.std(dtype=np.float64), rel=2**-23)


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
            "longer": content + b"1234", "no_id": content[:208] + bytes(8) + content[216:-4],
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


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("old", [  # what stands in place of the id and the stamp
    bytes(8), struct.pack("<2f", 12.5, -40.0), b"MAP " + bytes(4), b"\0\0\0\0DA\0\0"])
def test_files_without_the_id_are_read_with_a_warning(tmp_path, order, compressed, old):
    """As RELION and IMOD read them: origins stood there before the year 2000."""
    data = numbers((3, 4, 5), "int16")
    raw_mrc(tmp_path / "a.mrc", data.astype(np.dtype("int16").newbyteorder(order)), (1.5, 1.5, 1.5))
    content = (tmp_path / "a.mrc").read_bytes()
    content = content[:208] + old + content[216:]
    path = tmp_path / ("a.mrc.gz" if compressed else "a.mrc")
    path.write_bytes(gzip.compress(content) if compressed else content)
    for read in (read_volume, read_images):
        with pytest.warns(UserWarning, match=f"{path}: has not the id and stamp of an MRC file"):
            values, voxel_size = read(path)
        np.testing.assert_array_equal(values, data)
        assert voxel_size == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize("kind", ["plain", "no_id", "gz", "bz2", "extended"])
def test_no_cut_of_a_file_is_read(tmp_path, kind):
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(numbers((3, 6, 7), "int16"))
        if kind == "extended":
            mrc.set_extended_header(np.zeros(80, "V1"))
    content = (tmp_path / "a.mrc").read_bytes()
    if kind == "no_id":
        content = content[:208] + bytes(8) + content[216:]
    pack = {"gz": gzip.compress, "bz2": bz2.compress}.get(kind, bytes)
    content = pack(content)
    cut = tmp_path / "cut.mrc"
    for length in [*range(0, len(content), 9), len(content) - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.mrc: can't be read as MRC"):
            read_images(cut)


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


# --- images from elsewhere ---------------------------------------------------------------------

@pytest.mark.parametrize(("dtype", "mode"), [
    ("int8", 0), ("int16", 1), ("float32", 2), ("uint16", 6), ("float16", 12)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_images_of_every_mode_come_back(tmp_path, dtype, mode, order):
    data = numbers((3, 4, 5), dtype)
    raw_mrc(tmp_path / "a.st", data.astype(np.dtype(dtype).newbyteorder(order)), (1.5, 1.5, 9))
    with mrcfile.open(tmp_path / "a.st") as mrc:
        assert mrc.header.mode == mode
    values, pixel_size = read_images(tmp_path / "a.st")
    np.testing.assert_array_equal(values, data)
    assert values.dtype == np.float32 and values.flags.c_contiguous and values.dtype.isnative
    assert pixel_size == pytest.approx(1.5, rel=1e-6)  # the spacing of sections does not matter


@pytest.mark.parametrize("voxel", [(0, 0, 0), (1, 2, 1), (np.nan, 1, 1)])
def test_images_need_no_pixel_size(tmp_path, voxel):
    raw_mrc(tmp_path / "a.mrc", numbers((3, 4, 5)), voxel)
    assert read_images(tmp_path / "a.mrc")[1] is None


def test_one_image_is_read_as_a_stack(tmp_path):
    raw_mrc(tmp_path / "a.mrc", numbers((4, 5)))
    assert read_images(tmp_path / "a.mrc")[0].shape == (1, 4, 5)


def test_images_that_can_not_be_read_are_named_in_one_line(tmp_path):
    warnings.simplefilter("ignore")  # what mrcfile only warns of must be an error all the same
    for name, words in broken_files(tmp_path).items():
        if name in ("image.mrc", "skewed.mrc"):  # only as volumes
            continue
        with pytest.raises(ValueError) as caught:
            read_images(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: "), name
        assert ("no such file" if name == "absent.mrc" else words) in message, name
        assert "\n" not in message, name
