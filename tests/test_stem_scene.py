"""`instrument: stem` in a scene: atoms by their cross-sections, ice, maps, and the files."""

import math

import mrcfile
import numpy as np
import pytest
import torch

from tem_taichi.files.mrc import write_mrc
from tem_taichi.scene.load import load_scene
from tem_taichi.series.build import build_specimen
from tem_taichi.series.plan import plan
from tem_taichi.series.simulate import simulate
from tem_taichi.simulate import main
from tem_taichi.specimen.cross_sections import total_cross_section
from tem_taichi.specimen.ice import ICE_DENSITY

SMALL = ["instrument=stem", "specimen=empty", "detector=ideal", "shape=[48,48]", "pixel_size=4",
         "specimen.ice.thickness=200", "optics.defocus=0", "compute.arch=cpu"]
BEAD = "specimen.particles.gold={fiducial: 12, placement: listed, positions: [[0, 0, 0]]}"


def scene_of(*words):
    return load_scene(None, [*SMALL, *words])


def seen(scene):
    """Of the first image, with the margin."""
    planned, specimen = plan(scene), build_specimen(scene)
    return planned.instrument.intensity(specimen, planned.exposures[0])


@pytest.mark.parametrize(("signal", "angles"), [("bright", (0.0, 12.0)), ("dark", (30.0, 90.0))])
def test_ice_is_beer_lamberts_by_its_cross_section(signal, angles):
    """At 0 and 60 degrees, by the closed forms; to single precision."""
    def section(z):
        inner, outer = (1e-3 * angle for angle in angles)
        if signal == "bright":
            return total_cross_section(z, 300.0) - total_cross_section(z, 300.0, outer)
        return total_cross_section(z, 300.0, outer) - total_cross_section(z, 300.0, inner)

    density = ICE_DENSITY * (2 * section(1) + section(8))
    for tilt in (0.0, 60.0):
        scene = scene_of(f"stem={{signal: {signal}, inner_angle: {angles[0]}, "
                         f"outer_angle: {angles[1]}}}",
                         f"tilts={{scheme: listed, angles: [{tilt}]}}")
        passed = math.exp(-float(density) * 200 / math.cos(math.radians(tilt)))
        wanted = passed if signal == "bright" else 1 - passed
        assert seen(scene).numpy() == pytest.approx(wanted, rel=1e-4)


def test_atoms_take_their_cross_sections_from_the_beam():
    """Of all gold of a bead, in vacuum: the integral of the logarithm is the sum over atoms."""
    scene = scene_of(BEAD, "specimen.ice.potential=0", "tilts={scheme: listed, angles: [0]}")
    specimen = build_specimen(scene)
    atoms = float(specimen.kinds[0].group.weight.sum())
    beyond = total_cross_section(79, 300.0) - total_cross_section(79, 300.0, 0.01)
    passed = seen(scene)
    assert atoms > 20 and passed.min() < 0.96
    assert float(-passed.log().sum() * 16) == pytest.approx(atoms * float(beyond), rel=1e-3)


def test_gold_displaces_ice():
    """What it shows beside the ice about it is less than in vacuum, by the ice's own."""
    wet, dry = (seen(scene_of(BEAD, f"specimen.ice.potential={volts}",
                              "tilts={scheme: listed, angles: [0]}")) for volts in (4.48, 0))
    ratio = -(wet / wet.median()).log().sum() / -dry.log().sum()
    assert 0.85 < float(ratio) < 0.999


def test_a_map_is_a_density(tmp_path):
    """Times map_scale, in 1/A: its integral along the beam."""
    z, y, x = np.meshgrid(*[np.arange(24) - 12] * 3, indexing="ij")
    values = np.exp(-(x**2 + y**2 + z**2) / 2 / 3.0**2).astype(np.float32)
    write_mrc(tmp_path / "ball.mrc", values, 4.0, volume=True)
    scene = scene_of(f"specimen.particles.ball={{map: {tmp_path}/ball.mrc, map_scale: 0.01, "
                     "placement: listed, positions: [[0, 0, 0]]}", "specimen.ice.potential=0",
                     "tilts={scheme: listed, angles: [0]}")
    image = -seen(scene).log()
    middle = image[image.shape[0] // 2, image.shape[1] // 2]
    assert float(middle) == pytest.approx(0.01 * 4 * float(values[:, 12, 12].sum()), rel=1e-3)


def test_files_are_those_of_a_series(tmp_path):
    words = [*SMALL, BEAD, "stem.signal=dark", "stem.outer_angle=120", "stem.convergence=10",
             "dose=50", "tilts={scheme: listed, angles: [-40, 0, 40]}"]
    assert main([*words, f"output={tmp_path}/out"]) == 0
    counts = mrcfile.read(tmp_path / "out/tilt_series.mrc")
    assert counts.shape == (3, 48, 48)
    assert (tmp_path / "out/tilt_series_tilts.csv").is_file()
    clean = mrcfile.read(tmp_path / "out/tilt_series_noise_free.mrc")
    assert clean[1, 24, 24] > 1.5 * np.median(clean[1])  # gold is bright
    series = simulate(load_scene(None, words))
    assert torch.equal(series.images, torch.from_numpy(counts).to(series.images))


@pytest.mark.parametrize(("words", "said"), [
    (["instrument=xray"], "instrument"), (["stem.signal=grey"], "stem.signal"),
    (["stem.signal=dark", "stem.outer_angle=5"], "stem.outer_angle"),
    (["specimen.particles.a={globule: 100, count: 1}"], "specimen.particles.a")])
def test_impossible_scenes_are_refused(words, said):
    with pytest.raises(ValueError, match=said):
        scene_of(*words)
