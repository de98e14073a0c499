import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread
from scipy.ndimage import gaussian_filter

from tem_taichi.export.preview import block_mean, filter_width, spread, write_preview
from tem_taichi.scale_bar import scale_bar_length


def series(n: int, ny: int, nx: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noisy counts and their mean: a dark disc in the upper left quarter of a bright field."""
    y, x = np.mgrid[:ny, :nx]
    disc = np.hypot(y - 0.75 * ny, x - 0.25 * nx) < 0.15 * min(ny, nx)
    mean = np.repeat(np.where(disc, 20.0, 30.0)[None], n, axis=0).astype(np.float32)
    counts = np.random.default_rng(0).poisson(mean).astype(np.float32)
    return counts, mean, np.linspace(-60, 60, n)


def panels(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grey values of the noisy and the noise-free panel of a picture of one tilt."""
    grey = picture[..., :3].mean(-1)
    # A frame is a line that is black over most of the picture's width or height.
    rows = np.flatnonzero((grey < 0.3).mean(1) > 0.7)
    columns = np.flatnonzero((grey < 0.3).mean(0) > 0.7)
    edges = np.split(rows, np.flatnonzero(np.diff(rows) > 3) + 1)
    top, above, below, bottom = (edge.mean().round().astype(int) for edge in edges)
    left, right = columns.min() + 3, columns.max() - 2
    return grey[top + 3:above - 2, left:right], grey[below + 3:bottom - 2, left:right]


def test_picture_stands_upright_and_protein_is_dark(tmp_path):
    write_preview(tmp_path / "preview.png", *series(1, 128, 128), pixel_size=5.0)
    noisy, clean = panels(imread(tmp_path / "preview.png"))
    height, width = clean.shape
    # Row 0 of the array is below, so the disc of large y is in the picture's upper half.
    assert clean[int(0.25 * height), int(0.25 * width)] < 0.1
    assert clean[int(0.75 * height), int(0.25 * width)] > 0.9
    assert clean[int(0.25 * height), int(0.75 * width)] > 0.9
    # The upper row has the shot noise, the lower none.
    empty = np.s_[int(0.6 * height):int(0.8 * height), int(0.6 * width):int(0.9 * width)]
    assert noisy[empty].std() > 0.1 > 10 * clean[empty].std()


@pytest.mark.parametrize(("n", "ny", "nx"), [(1, 8, 8), (2, 40, 30), (41, 20, 400),
                                             (7, 700, 30), (6, 1, 50)])
def test_any_shape_gives_a_picture(tmp_path, n, ny, nx):
    write_preview(tmp_path / "preview.png", *series(n, ny, nx), pixel_size=2.5)
    assert imread(tmp_path / "preview.png").ndim == 3


def test_large_noisy_series_stays_a_small_file(tmp_path):
    write_preview(tmp_path / "preview.png", *series(5, 520, 520), pixel_size=2.0)
    assert (tmp_path / "preview.png").stat().st_size < 1_000_000


def test_same_images_same_bytes_and_no_state_left(tmp_path):
    before = dict(mpl.rcParams)
    for name in ("a.png", "b.png"):
        write_preview(tmp_path / name, *series(3, 64, 64), pixel_size=5.0)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert dict(mpl.rcParams) == before


def test_flat_images_are_grey(tmp_path):
    flat = np.full((1, 16, 16), 3, dtype=np.int16)
    write_preview(tmp_path / "preview.png", flat, flat, [0], 1.0)
    for panel in panels(imread(tmp_path / "preview.png")):
        # Half of 255, rounded either way; away from the scale bar.
        assert panel[:100] == pytest.approx(0.5, abs=0.01)


def test_wrong_shapes_are_refused(tmp_path):
    images, mean, angles = series(3, 8, 8)
    for arguments, words in [((images[0], mean[0], angles), "images: shape"),
                             ((images[:0], mean[:0], angles[:0]), "images: shape"),
                             ((images, mean[:2], angles), "noise_free: shape"),
                             ((images, mean, angles[:2]), "tilt_angles: shape")]:
        with pytest.raises(ValueError, match=words):
            write_preview(tmp_path / "preview.png", *arguments, 1.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("n", "expected"), [(1, [0]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4]),
                                             (41, [0, 10, 20, 30, 40])])
def test_tilts_are_spread_over_the_range(n, expected):
    assert spread(n, 5) == expected


def test_block_mean_keeps_mean_and_reduces_noise():
    noise = np.random.default_rng(0).normal(5, 1, (512, 256))
    small = block_mean(noise, 128)
    assert small.shape == (128, 64)
    assert small.mean() == pytest.approx(noise.mean(), rel=1e-12)
    # 16 independent pixels a block: a quarter of the noise; 8192 blocks give 0.8 %, 5 of them.
    assert small.std() == pytest.approx(0.25, rel=0.04)
    np.testing.assert_array_equal(small[0, 0], noise[:4, :4].mean())
    np.testing.assert_array_equal(block_mean(noise, 512), noise)
    assert block_mean(np.ones((1000, 3)), 128).shape == (125, 1)


@pytest.mark.parametrize(("width", "length"), [(256, 50), (300, 100), (14.9, 2), (15, 5), (2, 0.5)])
def test_scale_bar_is_a_round_number(width, length):
    assert scale_bar_length(width) == pytest.approx(length, rel=1e-12)


def test_the_specimen_is_seen_through_the_noise(tmp_path):
    """At 0.3 electrons a pixel the disc cannot be seen; the picture shows it."""
    images, mean, angles = series(1, 400, 400)
    mean = mean / 100
    images = np.random.default_rng(0).poisson(mean).astype(np.float32)
    write_preview(tmp_path / "preview.png", images, mean, angles, 2.0)
    noisy, clean = panels(imread(tmp_path / "preview.png"))
    height, width = clean.shape
    part = np.s_[int(0.18 * height):int(0.32 * height), int(0.18 * width):int(0.32 * width)]
    other = np.s_[int(0.6 * height):int(0.9 * height), int(0.6 * width):int(0.9 * width)]
    # Without a filter the deviation is some four times the difference.
    assert noisy[other].mean() - noisy[part].mean() > noisy[other].std()


def test_the_filter_leaves_as_much_noise_as_specimen():
    rng = np.random.default_rng(0)
    clean = np.tile(5 + np.sin(np.arange(600) / 30), (600, 1))[None]
    noisy = clean + rng.normal(0, 6, clean.shape)
    width = filter_width(noisy, clean)
    left = gaussian_filter(noisy[0] - clean[0], width)
    # 600^2 / (4 pi width^2) independent values: some 2 %.
    assert left.std() == pytest.approx(np.std(clean), rel=0.06)
    assert filter_width(clean + rng.normal(0, 0.1, clean.shape), clean) == 0
    assert filter_width(noisy, np.full_like(clean, 5.0)) == 0
