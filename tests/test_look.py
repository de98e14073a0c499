"""Pictures of volumes: what is seen of a known volume, and where."""

import io
import json
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from PIL import Image

from tem_taichi.estimate import turntable
from tem_taichi.estimate.denoise_figure import denoise_figure
from tem_taichi.estimate.rendering import (
    Transfer,
    View,
    extinction_for,
    field_of,
    levels_of,
    rendered,
)
from tem_taichi.estimate.turntable import Style, fitting, gif, picture, turns
from tem_taichi.estimate.volume_figure import greatest, planes_figure, slices
from tem_taichi.files.mrc import read_volume, write_mrc
from tem_taichi.fit import main

VOXEL = 8.0
SHAPE = (24, 40, 48)
PLACES = {"x": (16, 0, 0), "y": (0, 13, 0), "z": (0, 0, 8)}
"""Of balls, x, y, z from the middle voxel; no turn brings one to another's place."""


def ball(place, radius=3.0, shape=SHAPE):
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    far = np.sqrt(sum((along - n // 2 - to)**2 for along, n, to in zip(
        (x, y, z), reversed(shape), place, strict=True)))
    return np.clip(radius + 0.5 - far, 0, 1).astype(np.float32)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Three balls of which those at y and z are denser than that at x, in noise."""
    monkeypatch.chdir(tmp_path)
    volume = 0.5 * ball(PLACES["x"]) + ball(PLACES["y"]) + ball(PLACES["z"])
    volume += np.random.default_rng(0).normal(0, 0.02, SHAPE).astype(np.float32)
    write_mrc(Path("balls.mrc"), volume, VOXEL, volume=True)
    return tmp_path


def run(*words):
    assert main(["recipe=look", "overwrite=true", *words]) == 0
    output = next((word[7:] for word in words if word.startswith("output=")), "tem_taichi_fit")
    return json.loads((Path(output) / "results.json").read_text()), Path(output)


# --- what is seen ---

@pytest.mark.parametrize(("view", "depth"), [
    (View(), 24), (View(180), 24), (View(90), 48), (View(-90), 48), (View(0, 90), 40),
    (View(25), 24 / np.cos(np.deg2rad(25))), (View(0, -20), 24 / np.cos(np.deg2rad(20)))])
def test_a_slab_takes_what_its_depth_says(double, view, depth):
    """1 - exp(-extinction depth); matter half way between the levels has half of the extinction."""
    for value, extinction in ((1.0, 0.004), (0.5, 0.002)):
        seen = rendered(torch.full(SHAPE, value, dtype=torch.float64), VOXEL, Transfer(
            (0.0, 1.0), 0.004), view)
        middle = tuple(n // 2 for n in seen.opacity.shape)
        # Exact along the axes; between them voxels at the faces are met in part.
        assert float(seen.opacity[middle]) == pytest.approx(
            1 - np.exp(-extinction * depth * VOXEL), rel=1e-6 if depth % 1 == 0 else 2e-2)


def test_what_is_in_front_hides_what_is_behind(double):
    """Of two thin sheets of optical depth 1 and 2, in either order."""
    volume = torch.zeros(9, 8, 8, dtype=torch.float64)
    volume[6], volume[2] = 0.25, 0.5
    for view in (View(), View(180)):
        seen = rendered(volume, VOXEL, Transfer((0.0, 1.0), 4 / VOXEL), view)
        first, second = (1.0, 2.0) if view.turn == 0 else (2.0, 1.0)
        weights = -np.expm1(-first), np.exp(-first) * -np.expm1(-second)
        # Both are lit as one, and their colours are as their values.
        ratio = float(seen.dense[4, 4] / seen.thin[4, 4])
        assert float(seen.opacity[4, 4]) == pytest.approx(sum(weights), rel=1e-9)
        assert ratio == pytest.approx((weights[0] * first + weights[1] * second) / 4 / sum(weights),
                                      rel=1e-6)


@pytest.mark.parametrize("view", [View(), View(90), View(0, 90), View(35, 0), View(-110, 40)])
def test_every_axis_points_where_it_should(view):
    """A ball is where the right-handed turns about y and x put it, by plain cosines and sines."""
    t, e = np.deg2rad([view.turn, view.elevation])
    for place in PLACES.values():
        x, y, z = place
        right, toward = np.cos(t) * x + np.sin(t) * z, np.cos(t) * z - np.sin(t) * x
        up = np.cos(e) * y - np.sin(e) * toward
        np.testing.assert_allclose((view.matrix() @ torch.tensor(place, dtype=torch.float64))[:2],
                                   [right, up], atol=1e-12)
        seen = rendered(torch.from_numpy(ball(place)), VOXEL, Transfer((0.0, 1.0), 1e-4), view)
        assert seen.opacity.shape == field_of(SHAPE, view.elevation)
        rows, columns = torch.meshgrid(*(torch.arange(n) - n // 2 for n in seen.opacity.shape),
                                       indexing="ij")
        found = [float((seen.opacity * axis).sum() / seen.opacity.sum())
                 for axis in (columns, rows)]
        np.testing.assert_allclose(found, [right, up], atol=0.02)  # of a ball of 7 voxels


def test_light_comes_from_the_upper_left():
    seen = rendered(torch.from_numpy(ball((0, 0, 0), 8.0)), VOXEL, Transfer((0.0, 1.0), 10.0))
    bright = seen.thin / seen.opacity.clamp(min=1e-6)
    y, x = (n // 2 for n in bright.shape)
    corners = {(up, right): float(bright[y + 5 * up, x + 5 * right])
               for up in (-1, 1) for right in (-1, 1)}
    assert max(corners, key=corners.get) == (1, -1) and min(corners, key=corners.get) == (-1, 1)
    assert corners[1, -1] > 2 * corners[-1, 1]
    assert 0.29 < float(bright[seen.opacity > 0.9].min()) < float(bright.max()) < 1.01


def test_a_picture_has_gradients(double):
    """Finite differences in double precision, turned both ways; no value is at a level."""
    generator = torch.Generator().manual_seed(1)
    volume = torch.rand(4, 5, 6, dtype=torch.float64, generator=generator) * 0.8 + 0.1

    def parts(values):
        seen = rendered(values, VOXEL, Transfer((0.0, 1.0), 0.02), View(20, 30))
        return seen.opacity, seen.thin, seen.dense

    assert torch.autograd.gradcheck(parts, volume.requires_grad_())


@pytest.mark.parametrize("opacity", [0.3, 0.95])
def test_matter_is_as_opaque_as_wanted(double, opacity):
    volume = torch.from_numpy(ball((5, -3, 0), 7.0) + 0.3 * ball((-14, 8, 0), 5.0)).double()
    extinction = extinction_for(volume, VOXEL, (0.1, 1.0), opacity)
    matter = ((volume - 0.1) / 0.9).clamp(0, 1).sum(0)
    seen = rendered(volume, VOXEL, Transfer((0.1, 1.0), extinction)).opacity
    aside = (seen.shape[1] // 2 - SHAPE[2] // 2)
    seen = seen[:, aside:aside + SHAPE[2]]
    assert float((seen * matter).sum() / matter.sum()) == pytest.approx(opacity, rel=1e-6)


def test_levels_are_above_the_noise_and_know_even_matter():
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    low, high = levels_of(10 * torch.from_numpy(ball((0, 0, 0), 5.0)) + noise)
    assert 1.9 < low < 2.3 and 8 < high < 14  # 2 deviations; a thousandth of the voxels
    for filled in (0.1, 0.9):  # of one value
        volume = torch.zeros(10, 10, 10)
        volume.view(-1)[:int(1000 * filled)] = 3.0
        assert levels_of(volume) == (0.0, 3.0)


# --- slices and projections ---

def test_slices_and_greatest_values_are_those_of_the_volume():
    volume = np.random.default_rng(0).normal(size=(7, 8, 10))
    one = slices(volume, 2.0, (4.0, -2.0, 2.0), 0)
    np.testing.assert_array_equal(one["x, y"], volume[4])
    np.testing.assert_array_equal(one["z, y"], volume[:, :, 7].T)
    np.testing.assert_array_equal(one["x, z"], volume[:, 3])
    thick = slices(volume, 2.0, (0.0, 0.0, 6.0), 6.0)
    np.testing.assert_allclose(thick["x, y"], volume[5:].mean(0))  # cut off by the upper end
    np.testing.assert_allclose(thick["x, z"], volume[:, 3:6].mean(1))
    np.testing.assert_allclose(slices(volume, 2.0)["x, z"], volume[:, 2:7].mean(1))
    most = greatest(volume)
    np.testing.assert_array_equal(most["x, y"], volume.max(0))
    np.testing.assert_array_equal(most["z, y"], volume.max(2).T)
    np.testing.assert_array_equal(most["x, z"], volume.max(1))


@pytest.mark.parametrize("shape", [(1, 64, 64), (300, 20, 20), (20, 400, 20), (24, 40, 48)])
def test_figures_fit_a_screen_and_stand_upright(shape):
    volume = np.zeros(shape, np.float32)
    volume[-1, -1:, -1] = 1
    figure = planes_figure(slices(volume, 10.0), 10.0)
    width, height = figure.get_size_inches() * figure.dpi
    assert width <= 1400 and height <= 1100
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_xlabel() for axes in panels] == ["x [nm]", "z [nm]", "x [nm]"]
    assert [axes.get_ylabel() for axes in panels] == ["y [nm]", "y [nm]", "z [nm]"]
    assert all(axes.images[0].origin == "lower" for axes in panels)
    left, right = panels[0].images[0].get_extent()[:2]
    assert left == pytest.approx(-shape[2] // 2 - 0.5) and right - left == shape[2]


def test_a_denoised_picture_has_its_scale():
    """A third of 64 nm and of 21 nm at most, in round numbers."""
    image = np.random.default_rng(0).normal(size=(48, 64))
    figure = denoise_figure(image, image, None, "denoised", 10.0, ("other", image))
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert said == ["20 nm", "5 nm"]
    bar, = figure.axes[0].lines
    assert np.ptp(bar.get_xdata()) == 20 and figure.axes[0].images[0].get_extent()[1] == 64


# --- pictures ---

def test_the_gif_turns_all_around():
    volume = torch.from_numpy(sum(ball(place) for place in PLACES.values()))
    style = Style(size=96)
    views = turns(View(10.0, 15.0), 8)
    assert [view.turn for view in views] == [10 + 45 * n for n in range(8)]
    drawn = [picture(volume, VOXEL, Transfer((0.1, 1.0), 0.05), view, style) for view in views]
    with Image.open(io.BytesIO(gif(drawn))) as file:
        assert (file.n_frames, file.info["loop"], max(file.size)) == (8, 0, 96)
        frames = []
        for number in range(8):
            file.seek(number)
            assert file.info["duration"] > 0
            frames.append(np.asarray(file.convert("RGB"), float))
    # The last is as near to the first as the second is, and nearer than the opposite one.
    apart = [np.abs(frame - frames[0]).mean() for frame in frames]
    assert apart[7] == pytest.approx(apart[1], rel=0.5) and apart[7] < apart[4]
    for frame, image in zip(frames, drawn, strict=True):
        assert np.abs(frame - np.asarray(image, float)).mean() < 6  # of 255: colours are shared
        for colour in turntable._AXES.values():
            nearest = [np.abs(one - colour).max(-1).min() for one in (np.asarray(image, float),
                                                                      frame)]
            assert nearest[1] < nearest[0] + 20


def test_large_volumes_are_averaged_to_the_picture(monkeypatch):
    volume = torch.rand(64, 100, 120, generator=torch.Generator().manual_seed(0))
    small, voxel = fitting(volume, 5.0, 68)
    assert small.shape == (32, 50, 60) and voxel == 10
    torch.testing.assert_close(small[3, 4, 5], volume[6:8, 8:10, 10:12].mean())
    assert fitting(volume, 5.0, 137)[0] is volume
    assert fitting(volume[:1], 5.0, 20)[1] == 5.0  # it has but one plane
    monkeypatch.setattr(turntable, "_MOST", 1e6)
    assert fitting(volume, 5.0, 137)[1] == 10.0  # 100 x 136 x 136 are more


# --- the recipe ---

def test_the_command_draws_all_and_upright(here, capsys):
    write_mrc(Path("other.mrc"), np.random.default_rng(1).normal(size=SHAPE).astype(np.float32),
              VOXEL, volume=True)
    found, folder = run("input=balls.mrc", "beside=other.mrc", "size=64", "frames=3",
                        "resolution=0")
    assert {path.name for path in folder.iterdir()} == {
        "results.json", "metadata.json", "slices.png", "greatest.png", "rendering.png",
        "beside.png", "turntable.gif"}
    assert found["voxel_size_A"] == VOXEL and found["shape"] == list(SHAPE)
    assert abs(found["beside"]["correlation"]) < 0.05  # of 46,000 values
    assert 0.02 < found["levels"][0] < 0.1 < found["levels"][1] < 1.2
    for name in ("slices.png", "greatest.png", "beside.png"):
        with Image.open(folder / name) as image:
            assert max(image.size) <= 1400 and np.asarray(image.convert("L")).std() > 5
    with Image.open(folder / "rendering.png") as image:
        assert max(image.size) == 128
        light = np.asarray(image.convert("L"), float)
    pixel = 128 / max(field_of(SHAPE))
    bright = {}
    for name, (x, y, _) in PLACES.items():
        row, column = (round(n / 2 + pixel * along) for n, along in zip(light.shape, (-y, x),
                                                                         strict=True))
        bright[name] = light[row - 3:row + 4, column - 3:column + 4].mean()
        mirrored = light[light.shape[0] - row - 3:light.shape[0] - row + 4, column - 3:column + 4]
        assert name != "y" or bright[name] > 5 * mirrored.mean()
    assert min(bright.values()) > 60
    assert light[:, :40].mean() < 0.2 * bright["x"]  # no ball at -x


def test_dark_matter_is_seen_as_matter(here):
    volume, _ = read_volume(Path("balls.mrc"))
    write_mrc(Path("dark.mrc"), -volume, VOXEL, volume=True)
    words = ["size=64", "frames=0", "background=150"]
    _, light = run("input=balls.mrc", "output=light", *words)
    _, dark = run("input=dark.mrc", "output=dark", "matter=negative", *words)
    assert not (light / "turntable.gif").exists()
    for name in ("slices.png", "greatest.png", "rendering.png"):
        assert (light / name).read_bytes() == (dark / name).read_bytes()


def test_a_background_hides_nothing(here):
    """A ramp that is stronger than the balls is taken away."""
    volume, _ = read_volume(Path("balls.mrc"))
    write_mrc(Path("ramp.mrc"), np.linspace(0, 8, SHAPE[2], dtype=np.float32) + volume, VOXEL,
              volume=True)
    found, _ = run("input=balls.mrc", "beside=ramp.mrc", "size=64", "frames=0", "background=120")
    assert abs(found["levels"][1] - found["beside"]["levels"][1]) < 0.4


@pytest.mark.parametrize(("words", "said"), [
    (["input=none.mrc"], 'input="none.mrc": must be a file'),
    (["input=[balls.mrc,even.mrc]"], "must be one volume; beside takes another"),
    (["input=even.mrc"], "input: even.mrc: every value is 2, must be"),
    (["input=bare.mrc"], "must be positive; give pixel_size"),
    (["input=balls.mrc", "pixel_size=9"], "pixel_size=9: balls.mrc says 8: must agree"),
    (["input=balls.mrc", "beside=small.mrc"], "beside: small.mrc has 4 x 4 x 4 voxels of 8 A: must "
                                              "have 48 x 40 x 24 of 8 A"),
    (["input=balls.mrc", "beside=none.mrc"], 'beside="none.mrc": must be a file'),
    (["input=balls.mrc", "matter=dark"], 'matter="dark": must be one of positive, negative'),
    (["input=balls.mrc", "at=[0,0,500]"], "at=[0.0, 0.0, 500.0]: must be in the volume"),
    (["input=balls.mrc", "levels=[2,1]"], "levels=[2.0, 1.0]: must be two numbers"),
    (["input=balls.mrc", "levels=[5,6]"], "levels=[5.0, 6.0]: the first must be below"),
    (["input=balls.mrc", "opacity=1"], "opacity=1"), (["input=balls.mrc", "slab=-1"], "slab=-1"),
    (["input=balls.mrc", "colours=[peru,nocolour]"], 'colours="nocolour": must be a colour'),
    (["input=balls.mrc", "frames=1"], "frames=1"), (["input=balls.mrc", "size=3"], "size=3"),
    (["input=balls.mrc", "elevation=100"], "elevation=100")])
def test_what_cannot_be_shown_is_one_line(here, capsys, words, said):
    write_mrc(Path("even.mrc"), np.full((4, 4, 4), 2, np.float32), VOXEL, volume=True)
    write_mrc(Path("small.mrc"), ball((0, 0, 0), 1, (4, 4, 4)), VOXEL, volume=True)
    with mrcfile.new("bare.mrc") as file:
        file.set_data(ball((0, 0, 0), 1, (4, 4, 4)))
    assert main(["recipe=look", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not Path("tem_taichi_fit").exists()
