"""Boxes around particles: where they are cut, how they are normalised and what is said of them."""

from dataclasses import asdict, replace

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch

from tem_taichi.export.stack import cut, normalised, particle_views, whole_boxes, write_stack
from tem_taichi.scene.settings import (
    IceSettings,
    InteractionSettings,
    OpticsSettings,
    Scene,
    SpecimenSettings,
    StackSettings,
    TiltSettings,
    particle_of,
)
from tem_taichi.series.record import recorded
from tem_taichi.series.tilts import tilt_table
from tem_taichi.specimen.particles import ParticlesInIce

PARTICLES = pd.DataFrame({
    "kind": ["a", "b", "a"], "x": [10.0, -30.0, 0.0], "y": [4.0, 21.0, 0.0],
    "z": [50.0, -80.0, 0.0], "rot": [10.0, 200.0, 0.0], "tilt": [40.0, 120.0, 0.0],
    "psi": [-70.0, 5.0, 0.0]})


def scene_of(**changes):
    kinds = {name: particle_of(structure="1abc", count=0) for name in "ab"}
    settings = dict(
        name="s", shape=[64, 96], pixel_size=2.0, stack=StackSettings(box=16),
        specimen=SpecimenSettings(ice=IceSettings(thickness=300.0), particles=kinds),
        optics=OpticsSettings(defocus=5000.0, astigmatism=300.0, astigmatism_angle=12.0,
                              phase_shift=90.0),
        tilts=TiltSettings(scheme="listed", angles=[0.0, 60.0], shifts=[[0.0, 0.0], [3.0, -5.0]]))
    return Scene(**{**settings, **changes})


def series_of(scene, images=None, particles=PARTICLES):
    tilts = tilt_table(scene)
    if images is None:
        images = np.random.default_rng(0).normal(5, 1, (len(tilts), *scene.shape))
    images = torch.as_tensor(np.asarray(images, np.float32))
    return recorded(scene, ParticlesInIce((), ()), tilts, images=images, noise_free=images,
                    particles=particles)


def write(folder, scene, series):
    write_stack(folder, series, **asdict(scene.stack))


def read(folder):
    star = starfile.read(folder / "s_stack.star", always_dict=True)
    with mrcfile.open(folder / "s_stack.mrcs") as mrc:
        return star["optics"], star["particles"], mrc.data.copy(), mrc.voxel_size.x


def test_untilted_view_is_the_particle_itself():
    scene = scene_of()
    views = particle_views(series_of(scene))
    flat = views[views["image"] == 0]
    assert flat["kind"].tolist() == ["a", "b", "a"]
    assert flat["column"].tolist() == pytest.approx([48 + 5, 48 - 15, 48])
    assert flat["row"].tolist() == pytest.approx([32 + 2, 32 + 10.5, 32])
    assert flat["height"].tolist() == [50, -80, 0]
    assert flat["defocus_u"].tolist() == pytest.approx([5200, 5070, 5150])  # +150 +height
    assert flat["defocus_v"].tolist() == pytest.approx([4900, 4770, 4850])
    assert flat["rot"].tolist() == pytest.approx([10, -160, 0], abs=1e-6)
    assert flat["tilt"].tolist() == pytest.approx([40, 120, 0], abs=1e-6)


def test_tilted_view():
    """A turn by 60 deg about y: x' = x/2 + z sin 60, z' = z/2 - x sin 60."""
    scene = scene_of()
    views = particle_views(series_of(scene))
    x, y, z = PARTICLES[["x", "y", "z"]].to_numpy().T
    s = np.sqrt(0.75)
    tilted = views[views["image"] == 1]
    # positions of some 100 A in single precision
    assert np.allclose(tilted["column"], 48 + (x / 2 + z * s + 3) / 2, rtol=0, atol=1e-5)
    assert np.allclose(tilted["row"], 32 + (y - 5) / 2, rtol=0, atol=1e-5)
    assert np.allclose(tilted["defocus_u"], 5150 + z / 2 - x * s, rtol=0, atol=1e-4)
    # The particle that was not turned: the image's own turn about y is RELION's tilt of -60, that
    # is rot and psi of 180.
    last = tilted.iloc[-1]
    assert last["tilt"] == pytest.approx(60, abs=1e-4)
    assert abs(last["rot"]) == pytest.approx(180) and abs(last["psi"]) == pytest.approx(180)


@pytest.mark.parametrize("mode", ["projection", "weak_phase"])
def test_modes_without_depth_have_one_defocus(mode):
    scene = scene_of(interaction=InteractionSettings(mode=mode))
    assert set(particle_views(series_of(scene))["defocus_u"]) == {5150.0}


def test_anisotropic_magnification_moves_particles():
    scene = scene_of(optics=OpticsSettings(magnification_anisotropy=0.1, magnification_angle=90.0))
    views = particle_views(series_of(scene))
    assert views["column"][0] == pytest.approx(48 + 0.95 * 5)
    assert views["row"][0] == pytest.approx(32 + 1.05 * 2)


def test_boxes_hold_the_particle_at_their_centre(tmp_path):
    scene = scene_of(stack=StackSettings(box=16, invert=False, normalise=False))
    series = series_of(scene)
    views = particle_views(series)
    images = np.zeros((2, 64, 96))
    inside = views[views["image"] == 0]
    images[0, np.rint(inside["row"]).astype(int), np.rint(inside["column"]).astype(int)] = 1
    write(tmp_path, scene, series_of(scene, images))
    _, particles, boxes, pixel_size = read(tmp_path)
    flat = particles["rlnMicrographName"] == "000001@s.mrc"
    assert boxes.shape[1:] == (16, 16) and pixel_size == 2
    assert (boxes[flat][:, 8, 8] == 1).all()
    # The rest, of at most half a pixel, leads from the box's centre to the particle.
    place = particles[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy()
    rest = particles[["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy()
    assert (np.abs(rest) <= 1).all() and np.allclose(place, np.rint(place))
    kept = whole_boxes(views, (64, 96), 16)
    assert np.allclose(place - rest / 2, kept[["column", "row"]], rtol=0, atol=1e-5)


def test_star_agrees_with_the_scene(tmp_path):
    scene = scene_of(shape=[64, 128])
    series = series_of(scene)
    write(tmp_path, scene, series)
    optics, particles, boxes, _ = read(tmp_path)
    assert len(optics) == 1 and len(particles) == len(boxes) == 6
    row = optics.iloc[0]
    assert (row.rlnVoltage, row.rlnSphericalAberration) == (300, 2.7)
    assert row.rlnAmplitudeContrast == series.amplitude_contrast
    assert (row.rlnImagePixelSize, row.rlnImageSize, row.rlnImageDimensionality) == (2, 16, 2)
    assert particles["rlnImageName"].tolist() == [f"{n:06d}@s_stack.mrcs" for n in range(1, 7)]
    assert particles["rlnMicrographName"].tolist() == ["000001@s.mrc"] * 3 + ["000002@s.mrc"] * 3
    assert set(particles["rlnDefocusAngle"]) == {12.0} and set(particles["rlnPhaseShift"]) == {90.0}
    assert particles["temCopy"].tolist() == [1, 2, 3] * 2
    assert set(particles["rlnOpticsGroup"]) == {1}


def test_one_kind_and_whole_boxes_only(tmp_path):
    scene = scene_of(stack=StackSettings(box=16, kind="a"))
    far = PARTICLES.assign(x=[10.0, 0.0, 83.0])  # 41.5 of 48 pixels from the centre
    write(tmp_path, scene, series_of(scene, particles=far))
    _, particles, boxes, _ = read(tmp_path)
    assert set(particles["temParticle"]) == {"a"}
    # Tilted, the far one is 20 pixels from the centre and within the field.
    assert particles["temCopy"].tolist() == [1, 1, 3] and len(boxes) == 3


@pytest.mark.parametrize(("column", "kept"), [(7.5, True), (7.4, False), (88.4, True),
                                              (88.6, False)])
def test_edge_of_the_field(column, kept):
    views = pd.DataFrame({"image": [0], "column": [column], "row": [32.0]})
    found = whole_boxes(views, (64, 96), 16)
    assert len(found) == kept
    assert cut(np.zeros((1, 64, 96)), found, 16).shape == (int(kept), 16, 16)


@pytest.mark.parametrize("particles", [PARTICLES[:0], PARTICLES.assign(x=1e4)])
def test_without_boxes_there_is_an_empty_table(tmp_path, particles):
    scene = scene_of()
    write(tmp_path, scene, series_of(scene, particles=particles))
    assert [file.name for file in tmp_path.iterdir()] == ["s_stack.star"]
    assert "_rlnImageName #1" in (tmp_path / "s_stack.star").read_text()


def test_no_stack_is_asked_for(tmp_path):
    scene = scene_of(stack=StackSettings())
    write(tmp_path, scene, series_of(scene))
    assert list(tmp_path.iterdir()) == []


def test_normalised_background():
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:32, :32] - 16
    outside = np.hypot(x, y) > 12
    noise = rng.normal(0, 3, (5, 32, 32))
    spot = 40 * np.exp(-(x**2 + y**2) / 20)
    boxes = normalised(noise + 100 + 0.5 * x - 0.2 * y - spot)
    # Single precision of numbers near 1 (least squares of some 600 pixels).
    assert np.allclose(boxes[:, outside].mean(1), 0, atol=1e-5)
    assert np.allclose(boxes[:, outside].std(1), 1, atol=1e-5)
    slope = (boxes * np.where(outside, x, 0)).sum((1, 2)) / np.where(outside, x**2, 0).sum()
    assert np.abs(slope).max() < 1e-6
    assert boxes[:, 16, 16].max() < -8  # 40 / 3 less noise: matter stays dark


def test_boxes_without_contrast_stay_so():
    assert np.abs(normalised(np.full((2, 16, 16), 1000.0, np.float32))).max() < 1e-6


def test_inverted(tmp_path):
    stacks = []
    for n, invert in enumerate((False, True)):
        (tmp_path / str(n)).mkdir()
        scene = scene_of(stack=StackSettings(box=16, invert=invert))
        write(tmp_path / str(n), scene, series_of(scene))
        stacks.append(read(tmp_path / str(n))[2])
    assert np.array_equal(stacks[0], -stacks[1])


def test_series_is_left_as_it_was(tmp_path):
    scene = scene_of()
    series = series_of(scene)
    before = replace(series, images=series.images.clone(), particles=series.particles.copy())
    write(tmp_path, scene, series)
    assert torch.equal(series.images, before.images)
    assert series.particles.equals(before.particles)


@pytest.mark.parametrize(("stack", "said"), [
    (dict(box=15), "stack.box=15: must be an even whole number"),
    (dict(box=8), "stack.box=8: must be an even whole number from 16"),
])
def test_refused(stack, said):
    with pytest.raises(ValueError, match=said):
        StackSettings(**stack)


def test_refused_with_the_scene():
    with pytest.raises(ValueError, match=r"stack\.box=66: must be at most .* 64 \[pixel\]"):
        scene_of(stack=StackSettings(box=66))
    with pytest.raises(ValueError, match=r'stack\.kind="c": must be one of a, b'):
        scene_of(stack=StackSettings(box=16, kind="c"))


def test_a_single_image_is_named_by_its_file(tmp_path):
    """RELION takes 000001@s.mrc for a stack and finds no micrograph of that name."""
    one = scene_of(tilts=TiltSettings(scheme="listed", angles=[0.0]))
    write(tmp_path, one, series_of(one))
    assert set(read(tmp_path)[1]["rlnMicrographName"]) == {"s.mrc"}
    two = scene_of()
    write(tmp_path, two, series_of(two))
    assert set(read(tmp_path)[1]["rlnMicrographName"]) == {"000001@s.mrc", "000002@s.mrc"}


def test_boxes_in_batches_are_the_same(tmp_path, monkeypatch):
    scene = scene_of()
    write(tmp_path, scene, series_of(scene))
    whole = read(tmp_path)[2]
    monkeypatch.setattr("tem_taichi.export.stack._BATCH", 1)
    write(tmp_path, scene, series_of(scene))
    # The sums of a fit in double precision, rounded to single.
    np.testing.assert_allclose(read(tmp_path)[2], whole, rtol=2**-22, atol=1e-7)
    assert len(whole) > 2
