"""Judges of data sets: counting as SHREC does, bootstrap, template matching, a small U-Net."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter

from experiments import matching
from experiments.consistency import _peak
from experiments.labels import telling
from experiments.picker_scores import (
    Counted,
    Picks,
    Truth,
    count,
    distances,
    intervals,
    measures,
    radial_power,
    suppressed,
)


def by_hand():
    """Three particles listed, of two kinds, and a fourth one, centred outside, in a corner."""
    instances = np.zeros((20, 20, 20), np.int32)
    instances[4:7, 4:7, 4:7], instances[4:7, 12:15, 4:7] = 1, 2
    instances[13:16, 4:7, 4:7], instances[17:20, 17:20, 17:20] = 3, 4
    places = np.array([[5.0, 5, 5], [5, 13, 5], [14, 5, 5]])
    return Truth(places, np.array([1, 2, 2]), instances, np.array([0, 3.0, 3.0]))


def test_hits_are_counted_as_by_hand():
    picks = Picks(np.array([[5.0, 5, 6],      # the first one, named right
                            [5, 5, 4],        # again: surer than that above
                            [5, 13, 7.5],     # beside the second's mask, within its radius; wrong
                            [10, 10, 15],     # nothing
                            [18, 18, 18]]),   # a particle that is not listed
                  np.array([1, 1, 1, 2, 2]), np.array([0.5, 0.9, 0.8, 0.7, 0.6]))
    counted = count(picks, by_hand())
    assert counted.found_as.tolist() == [1, 1, 0]
    assert sorted(counted.false.tolist()) == [1, 2]
    assert np.allclose(sorted(counted.distances), [1.0, 2.5])
    found = measures([counted], 2)
    assert found["recall"] == pytest.approx(2 / 3) and found["precision"] == pytest.approx(2 / 4)
    assert found["f1"] == pytest.approx(2 * 2 / (3 + 4))
    # Of kind 1 one of one is found, by three picks; of kind 2 none of two, by one pick.
    assert found["f1_1"] == pytest.approx(2 / (1 + 3)) and found["f1_2"] == 0
    assert found["macro"] == pytest.approx(0.25)


def test_nothing_picked_is_nothing_found():
    none = Picks(np.zeros((0, 3)), np.zeros(0, np.int64), np.zeros(0))
    found = measures([count(none, by_hand())], 2)
    assert found["recall"] == found["precision"] == found["f1"] == found["macro"] == 0


def test_intervals_are_as_wide_as_chance():
    rng = np.random.default_rng(0)
    kinds = np.ones(400, np.int64)
    one = Counted(kinds, (np.arange(400) < 300).astype(np.int64), np.zeros(0, np.int64),
                  np.zeros(0))
    low, high = intervals([one], 1, rng, draws=400)["recall"]
    deviation = np.sqrt(0.75 * 0.25 / 400)  # of a binomial share
    assert low == pytest.approx(0.75 - 1.96 * deviation, abs=0.4 * deviation)
    assert high == pytest.approx(0.75 + 1.96 * deviation, abs=0.4 * deviation)


def test_the_surer_of_two_picks_stays():
    places = np.array([[0.0, 0, 0], [0, 0, 2], [0, 0, 9]])
    kept = suppressed(places, np.array([1, 1, 2]), np.array([0.5, 0.7, 0.6]),
                      np.array([0.0, 3.0, 3.0]))
    assert kept.tolist() == [1, 2]


def test_spectra_and_values_tell_sets_apart():
    rng = np.random.default_rng(0)
    white = [rng.standard_normal((24, 24, 24)).astype(np.float32) for _ in range(4)]
    blurred = [gaussian_filter(one, 1.0) for one in white]
    power = radial_power(white[0], 12)
    assert np.allclose(power[2:] / 24**3, 1, atol=0.3)  # of shells of 40 values and more
    alike, other = distances(white[:2], white[2:]), distances(white[:2], blurred[2:])
    assert alike["spectrum"] < 0.2 < 0.5 < other["spectrum"]
    skewed = distances(white[:2], [np.exp(one) for one in white[2:]])
    assert alike["values"] < 0.05 < 0.2 < skewed["values"]


def test_rotations_lie_evenly():
    found = matching.rotations(40.0)
    assert np.allclose(found @ found.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    turns = found.transpose(0, 2, 1)[:, None] @ found
    angles = np.rad2deg(np.arccos(np.clip(
        (np.trace(turns, axis1=2, axis2=3) - 1) / 2, -1, 1)))
    nearest = (angles + 360 * np.eye(len(found))).min(axis=1)
    assert nearest.min() > 20 and nearest.max() < 60


def shapes():
    """Two bodies of the same mass that no turn makes alike."""
    rod, bent = np.zeros((2, 14, 14, 14), np.float32)
    rod[6:9, 6:9, 2:12] = 1
    bent[6:9, 6:9, 5:10] = 1
    bent[6:9, 8:13, 5:8] = 1
    return [torch.as_tensor(gaussian_filter(one, 0.8)) for one in (rod, bent)]


def test_planted_particles_are_found_and_named_to_a_voxel():
    rng, size = np.random.default_rng(1), 48
    every = matching.rotations(30.0)
    spread = torch.zeros((size, size, size))
    spread[size // 2, size // 2, size // 2] = -1.0  # dark, seen whole
    places = np.array([[12, 13, 30], [34, 30, 15]])
    volume = rng.normal(0, 0.3, (size,) * 3).astype(np.float32)
    for body, place, turn in zip(shapes(), places, every[[77, 140]], strict=True):
        where = tuple(slice(at - 7, at + 7) for at in place)
        volume[where] -= matching.turned(body, turn[None])[0].numpy()
    scene = matching.scene(volume, spread, size)
    scores = []
    for body in shapes():
        like = matching.different(matching.turned(body, every), 0.98)
        assert len(like) < len(every)
        scores.append(matching.matched(scene, body, every[like], 6.0)[0].numpy())
    for kind, place in enumerate(places):
        near = tuple(slice(at - 6, at + 7) for at in place)
        best = [one[near].max() for one in scores]
        assert int(np.argmax(best)) == kind
        peak = np.unravel_index(scores[kind][near].argmax(), (13,) * 3)
        assert np.abs(np.array(peak) - 6).max() <= 1


def test_a_point_is_alike_on_both_sides_and_its_wedge_is_missing():
    tilts = pd.DataFrame({"tilt_angle": np.arange(-60.0, 61, 6), "axis_angle": 0.0,
                          "shift_x": 5.0, "shift_y": 0.0, "defocus_u": 2e4, "defocus_v": 2e4})
    spread = matching.point_spread(tilts, (32, 32, 32), 10.0, 300.0, 2.7, 0.07)
    inner = spread[1:, 1:, 1:]  # about voxel 16
    assert torch.allclose(inner, inner.flip(0, 1, 2),
                          atol=1e-2 * float(inner.abs().max()))  # of Nyquist's frequency
    power = torch.fft.fftn(spread).abs().numpy()
    # Along x at 30 degrees of the wedge's edge inside; along z, 90 degrees, nothing was seen.
    assert power[8, 0, 0] < 0.2 * power[0, 0, 8]


def test_a_peak_is_found_to_parts_of_a_voxel():
    z, y, x = np.meshgrid(*[np.arange(-4.0, 5)] * 3, indexing="ij")
    scores = np.exp(-((z - 1.2) ** 2 + (y + 0.3) ** 2 + (x - 0.4) ** 2) / 50)
    # A parabola through three values of so wide a Gaussian is right to a thousandth.
    assert np.allclose(_peak(torch.as_tensor(scores)), (0.4, -0.3, 1.2), atol=2e-3)


def test_planes_are_chosen_that_show_every_kind():
    classes = np.zeros((9, 8, 8), int)
    classes[1, :4], classes[6, :2], classes[6, 5:] = 1, 2, 3
    assert telling(classes, 3) == [1, 6]


def test_a_reference_on_coarser_voxels_keeps_its_middle():
    body = np.zeros((20, 20, 20), np.float32)
    body[8:13, 8:13, 8:13] = 1  # about voxel 10
    small = matching.coarser(gaussian_filter(body, 1.0), 2.0, 12).numpy()
    middle = (np.indices(small.shape) * small).sum(axis=(1, 2, 3)) / small.sum()
    assert np.allclose(middle, 6, atol=1e-4) and small.sum() == pytest.approx(125 / 8, rel=0.02)


def test_the_network_learns_and_its_peaks_are_where_particles_are():
    pytest.importorskip("monai")
    from experiments import unet

    truth = by_hand()
    wide = Truth(truth.places, truth.kinds, truth.instances, truth.radius)
    labels = unet.cores(wide)
    assert set(np.unique(labels)) == {0, 1, 2} and labels[5, 5, 5] == 1 and labels[14, 5, 5] == 2
    rng = np.random.default_rng(0)
    volume = (rng.normal(0, 0.3, labels.shape) - labels).astype(np.float32)
    _, losses, _ = unet.train([volume], [wide], 6, patch=16)
    assert losses[-1] < losses[0]
    chance = np.stack([labels == n for n in range(3)]).astype(np.float32)
    picks = unet.peaks(chance, 0.3)
    assert count(picks, wide).found_as.tolist() == [1, 2, 2] and len(picks.kinds) == 3
