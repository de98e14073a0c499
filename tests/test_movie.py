"""movie.py, and half-sets: parts of an exposure make up the whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tem_taichi.instrument.exposure import Exposure
from tem_taichi.noise.detector import Detector, detect
from tem_taichi.scene.settings import (
    DetectorSettings,
    IceSettings,
    MovieSettings,
    OpticsSettings,
    Scene,
    SpecimenSettings,
    TiltSettings,
    particle_of,
)
from tem_taichi.series.build import build_specimen
from tem_taichi.series.movie import frames_of
from tem_taichi.series.simulate import simulate


@pytest.fixture
def scene(tmp_path):
    file = tmp_path / "gold.pdb"
    file.write_text("HETATM    1 AU   AU  A   1       0.000   0.000   0.000  1.00 80.00"
                    "          AU\nEND\n")
    particle = particle_of(structure=str(file), placement="listed",
                           positions=[[20.0, 0.0, 0.0], [-30.0, 10.0, 40.0]])
    return Scene(shape=[48, 48], pixel_size=3.0, dose=8.0, optics=OpticsSettings(defocus=3000.0),
                 specimen=SpecimenSettings(ice=IceSettings(thickness=200.0, granularity=0.0),
                                           damage=0.0, particles={"gold": particle}),
                 tilts=TiltSettings(scheme="listed", angles=[0.0, 20.0]))


def test_frames_without_motion_sum_to_the_image(scene):
    whole = simulate(scene)
    movie = simulate(replace(scene, movie=MovieSettings(frames=4)))
    assert whole.frames is None and movie.frames.shape == (2, 4, 48, 48)
    assert torch.allclose(movie.noise_free, whole.noise_free, rtol=1e-5)
    assert torch.allclose(movie.frames.sum(1), movie.images, rtol=1e-6)
    assert not torch.equal(movie.frames[0, 0], movie.frames[0, 1])  # noise of their own


def test_exposures_add_up_and_drift_is_about_the_middle(scene):
    scene = replace(scene, movie=MovieSettings(frames=4, drift=[8.0, -4.0]))
    frames = [e for _, e in frames_of(scene, build_specimen(scene),
                                      Exposure(dose=8.0, prior_dose=5.0, shift_x=1.0))]
    assert [e.dose for e in frames] == [2.0] * 4
    assert [e.prior_dose for e in frames] == [5.0, 7.0, 9.0, 11.0]
    assert [e.shift_x for e in frames] == [-2.0, 0.0, 2.0, 4.0]
    assert np.mean([e.shift_y for e in frames]) == 0.0


def test_particles_move_from_the_truth_most_of_all_at_first(scene):
    scene = replace(scene, movie=MovieSettings(frames=16, motion=5.0), dose=32.0)
    specimen = build_specimen(scene)
    moved = np.stack([s.poses[0].positions for s, _ in frames_of(
        scene, specimen, Exposure(dose=32.0))])
    way = np.linalg.norm(moved - specimen.poses[0].positions, axis=-1)  # (frame, copy)
    assert (np.diff(way, axis=0) > 0).all()
    # Frames of 2 e-/A^2, the first one's middle at 1: 1 - exp(-1/4) of the way; the last at 31
    assert way[0] / way[-1] == pytest.approx((1 - np.exp(-0.25)) / (1 - np.exp(-31 / 4)), rel=1e-6)
    again = np.stack([s.poses[0].positions for s, _ in frames_of(
        scene, specimen, Exposure(dose=32.0))])
    assert np.array_equal(moved, again)


def test_damage_blurs_what_is_seen_late(scene):
    damaged = replace(scene, specimen=replace(scene.specimen, damage=1.0),
                      tilts=TiltSettings(scheme="listed", angles=[0.0], prior_dose=60.0))
    fresh = replace(damaged, specimen=replace(scene.specimen, damage=0.0))
    contrasts = [float(simulate(s).noise_free.std()) for s in (damaged, fresh)]
    assert contrasts[0] < 0.7 * contrasts[1]
    assert simulate(damaged).noise_free.mean() == pytest.approx(
        float(simulate(fresh).noise_free.mean()), rel=1e-3)


@pytest.mark.parametrize("detector", [
    Detector(), Detector(gain=0.8, dqe=0.8),
    Detector(kind="integrating", gain=3.0, dqe=0.5, mtf=[0.7, 0.2, 0.1, 10.0, 40.0]),
    Detector(mtf=[0.7, 0.2, 0.1, 10.0, 40.0],
             dqe=(torch.linspace(0, 0.5, 5), torch.tensor([0.9, 0.8, 0.6, 0.4, 0.3]))),
], ids=["ideal", "counting", "integrating", "table"])
def test_halves_are_independent_and_make_the_whole(detector):
    flat = torch.full((200, 200), 1.0)
    options = dict(pixel_size=2.0, dose=5.0, detector=detector)
    first, second = detect(flat, seed=4, halves=True, **options)
    expected = detect(flat, noise=False, **options)
    whole = first + second
    assert float(first.mean()) == pytest.approx(float(expected.mean()) / 2, rel=0.01)
    # Correlation of 40,000 independent pairs: 0 within 1/200; a blur widens it less than twofold.
    noise = [part - part.mean() for part in (first, second)]
    correlation = float((noise[0] * noise[1]).mean() / (noise[0].std() * noise[1].std()))
    assert abs(correlation) < 4 * 2 / 200
    variance = float(torch.stack([detect(flat, seed=n, **options) for n in range(4)]).var())
    assert float(whole.var()) == pytest.approx(variance, rel=0.06)  # sqrt(2 / 40,000), blurred


def test_halves_of_a_series_sum_to_its_images(scene):
    series = simulate(replace(scene, detector=DetectorSettings(halves=True)))
    plain = simulate(scene)
    assert torch.allclose(series.halves.sum(0), series.images)
    assert torch.equal(series.images, plain.images)  # a coin for each electron changes no count
