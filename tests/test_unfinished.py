"""Interrupted series go on to the same bytes; what is not whole or not theirs is never used."""

import json
import os
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

import tem_taichi
from tem_taichi import sharing
from tem_taichi.device import current
from tem_taichi.files.records import Records
from tem_taichi.files.unfinished import key_of, unfinished, unfinished_folder
from tem_taichi.instrument.tem import TEM
from tem_taichi.noise.camera import Camera
from tem_taichi.scene.load import load_scene
from tem_taichi.series import simulate as pipeline
from tem_taichi.series.build import build_specimen
from tem_taichi.series.movie import intensities
from tem_taichi.simulate import main

PDB = ("ATOM  {0:5d}  CA  ALA A{0:4d}    {1:8.3f}{1:8.3f}   0.000  1.00 {2:5.2f}           C\n")
SCENE = """\
defaults: [simulate, override specimen: empty, _self_]
shape: [32, 40]
pixel_size: 2.0
specimen:
  ice: {thickness: 60}
  particles:
    p: {structure: p.pdb, placement: listed, positions: [[0, 0, 0], [20, 10, 0]]}
tilts: {minimum: -40, maximum: 40, step: 20}
detector: {halves: true}
movie: {frames: 2, drift: [3, 0]}
formats: [relion5, warp, shrec, tiff]
stack: {box: 16}
compute: {arch: cpu}
output: out
"""
WORDS = ["scene.yaml"]
ROOT = Path(tem_taichi.__file__).parents[1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a scene of five tilts of two frames, and a small particle."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tem_taichi.export.output.write_preview", lambda path, *_: path.touch())
    Path("p.pdb").write_text("".join(PDB.format(n, 4.0 * n, 20) for n in range(1, 4)))
    Path("scene.yaml").write_text(SCENE)
    return tmp_path


@pytest.fixture
def computed(monkeypatch):
    """Numbers of the exposures that are `seen`, and of those at which Ctrl-C comes: `stop`.

    An image is a flat one, unless it is to be the `real` one.
    """
    about = {"seen": [], "stop": set(), "real": False}
    intensity = TEM.intensity

    def counted(self, specimen, exposure):
        if exposure.stream in about["stop"]:
            raise KeyboardInterrupt
        about["seen"].append(exposure.stream)
        if about["real"]:
            return intensity(self, specimen, exposure)
        return torch.full(self.detector_shape, 1 + exposure.tilt_angle / 100, dtype=current().dtype)

    monkeypatch.setattr(TEM, "intensity", counted)
    return about


def content(folder):
    """All that a run wrote, but for the times."""
    found = {str(path.relative_to(folder)): path.read_bytes()
             for path in Path(folder).rglob("*") if path.is_file()}
    metadata = json.loads(found.pop("metadata.json"))
    del metadata["seconds"]
    return found, metadata


FAST = ["interaction.mode=projection", "interaction.margin=0", "specimen.ice.granularity=0",
        "formats=[]", "stack.box=null"]


@lru_cache
def scene_in(folder, *words):
    return load_scene(Path(folder, "scene.yaml"), [*FAST, *words])


def simulated(*words):
    """The scene with its images in the unfinished folder of `out`."""
    with unfinished("out") as folder:
        series = pipeline.simulate(scene_in(os.getcwd(), *words), folder=folder)
        return [stack.clone() for stack in (series.images, series.noise_free, series.halves,
                                            series.frames)], series.threads


def interrupted(stream, computed, *words):
    """The same, stopped in the exposure of a number."""
    computed["stop"].add(stream)
    with pytest.raises(KeyboardInterrupt):
        simulated(*words)
    computed["stop"].clear()
    computed["seen"].clear()


# Tilts of 0, 20, -20, 40, -40 deg are acquired in this order, two frames each, and computed by
# ascending angle: exposures 8, 9 (-40 deg), 4, 5, 0, 1, 2, 3, 6, 7.

def test_killed_series_goes_on_to_the_same_bytes(here):
    """By SIGKILL in the third image, in a process of its own; nothing hidden is left at the end."""
    words = [*WORDS, *FAST[:3]]
    assert main([*words, "output=whole"]) == 0
    code = ("import os, signal, sys\n"
            "from tem_taichi.instrument.tem import TEM\n"
            "from tem_taichi.simulate import main\n"
            "intensity = TEM.intensity\n"
            "def deadly(self, specimen, exposure):\n"
            "    if exposure.stream == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return intensity(self, specimen, exposure)\n"
            "TEM.intensity = deadly\n"
            f"main({words})\n")
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(unfinished_folder("out").glob("*.json"))) == 2 and not Path("out").exists()
    assert main(words) == 0
    assert sorted(os.listdir()) == ["out", "p.pdb", "scene.yaml", "whole"]
    ours, theirs = content("out"), content("whole")
    assert ours[1].pop("files").keys() == theirs[1].pop("files").keys() and ours[1] == theirs[1]
    assert ours[0].keys() == theirs[0].keys() and len(ours[0]) > 30
    for name in ours[0].keys() - {"scene.yaml"}:  # which names the folder
        assert ours[0][name] == theirs[0][name], name


def test_only_what_is_missing_is_computed(here, computed, capsys):
    computed["stop"].add(0)
    assert main([*WORDS, *FAST]) == 130
    assert "2 of 5 images are finished and kept, the same command" in capsys.readouterr().err
    computed["stop"].clear()
    assert main([*WORDS, *FAST, "--check"]) == 0
    assert "2 of 5 images are there already" in capsys.readouterr().out
    computed["seen"].clear()
    assert main([*WORDS, *FAST, "formats=[imod]", "name=other"]) == 0  # which change no image
    assert computed["seen"] == [0, 1, 2, 3, 6, 7] and not unfinished_folder("out").exists()
    capsys.readouterr()
    assert main([*WORDS, *FAST, "--check"]) == 0
    assert "there already" not in capsys.readouterr().out


def test_other_scenes_files_and_versions_are_computed_anew(here, computed, monkeypatch):
    interrupted(7, computed)
    before = Path("p.pdb").read_text()
    for words in (["seed=1"], ["dose=2.5"], ["compute.dtype=float64"]):
        computed["seen"].clear()
        simulated(*words)
        assert len(computed["seen"]) == 10, words
    Path("p.pdb").write_text(before.replace("20.00", "30.00"))
    computed["seen"].clear()
    simulated()
    assert len(computed["seen"]) == 10
    Path("p.pdb").write_text(before)
    with monkeypatch.context() as patch:
        patch.setattr(tem_taichi, "__version__", "other")
        computed["seen"].clear()
        simulated()
        assert len(computed["seen"]) == 10
    computed["seen"].clear()
    simulated()
    assert computed["seen"] == [6, 7]  # and those of the first scene are still there


@pytest.mark.parametrize("damage", ["cut", "byte", "journal", "about", "no JSON", "empty"])
def test_damaged_parts_are_computed_anew(here, computed, damage):
    """Never wrong: of four images that were finished, what is damaged is made again."""
    interrupted(7, computed)
    whole = pipeline.simulate(scene_in(here))
    folder = unfinished_folder("out")
    records, = folder.glob("*.records")
    parts = sorted(folder.glob("*.json"))
    size = 6 * 32 * 40 * 4  # frames, noise-free, noisy and two halves in single precision
    data = records.read_bytes()
    assert len(parts) == 4 and len(data) >= 4 * size
    if damage == "cut":
        records.write_bytes(data[:3 * size + 100])
    elif damage == "byte":
        records.write_bytes(data[:size] + bytes([data[size] ^ 1]) + data[size + 1:])
    elif damage == "journal":
        parts[0].write_text(parts[0].read_text()[:-9])
    elif damage == "about":
        part = json.loads(parts[0].read_text())
        part["about"]["threads"] += 1
        parts[0].write_text(json.dumps(part))
    elif damage == "no JSON":
        parts[0].write_bytes(b"[" * 100_000)
    else:
        records.write_bytes(b"")
    computed["seen"].clear()
    images, clean, halves, frames = simulated()[0]
    assert len(computed["seen"]) == (10 if damage == "empty" else 4)
    assert torch.equal(images, whole.images) and torch.equal(clean, whole.noise_free)
    assert torch.equal(halves, whole.halves) and torch.equal(frames, whole.frames)


def test_images_of_another_number_of_threads_are_not_those_of_a_fixed_one(here, computed,
                                                                           monkeypatch):
    """Of a number that the run may have come to by itself they are; all are named."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(sharing, "free_cores", lambda *_: 1)
        monkeypatch.setattr(sharing, "_SHORTEST", 0.0)
        interrupted(0, computed)
        monkeypatch.setattr(sharing, "free_cores", lambda *_: 2)
        assert simulated()[1] == (1, 2) and len(computed["seen"]) == 6
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        computed["seen"].clear()
        assert simulated()[1] == (2,) and len(computed["seen"]) == 4
        torch.set_num_threads(1)
        assert simulated()[1] == (1,) and len(computed["seen"]) == 14
    finally:
        torch.set_num_threads(before)


def test_a_second_run_of_the_same_output_gets_one_line(here, capsys):
    before = sorted(os.listdir())
    with unfinished("out") as folder:
        assert main(WORDS) == 2
        err = capsys.readouterr().err
        assert err == (f"error: output: {folder}: another run is at work there; wait for its end, "
                       "or choose another output folder\n")
        assert folder.is_dir()
        assert main([*WORDS, *FAST, "output=beside"]) == 0
    assert sorted(os.listdir()) == sorted([*before, "beside"])


def test_what_fails_while_it_is_written_is_not_computed_again(here, computed, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tem_taichi.export.output.write_preview", full)
        assert main([*WORDS, *FAST]) == 2
    err = capsys.readouterr().err
    assert "No space left on device; 5 of 5 images are finished and kept" in err
    assert err.count("\n") == 1
    computed["seen"].clear()
    assert main([*WORDS, *FAST]) == 0 and computed["seen"] == []
    assert sorted(os.listdir()) == ["out", "p.pdb", "scene.yaml"]


def test_a_sweep_goes_on_in_the_middle_of_a_run(here, computed):
    words = ["-m", *WORDS, *FAST, "seed=1,2"]
    assert main([*words, "output=whole"]) == 0
    computed["seen"].clear()
    later = iter([False] * 16 + [True])  # in the fourth image of the second run
    intensity = TEM.intensity

    def stopped(self, specimen, exposure):
        if next(later, False):
            raise KeyboardInterrupt
        return intensity(self, specimen, exposure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TEM, "intensity", stopped)
        assert main(words) == 130
    computed["seen"].clear()
    assert main(words) == 0
    assert computed["seen"] == [2, 3, 6, 7]
    assert sorted(os.listdir("out")) == sorted(os.listdir("whole"))
    for folder in os.listdir("out"):
        for name, written in content(f"whole/{folder}")[0].items():
            assert name == "scene.yaml" or content(f"out/{folder}")[0][name] == written, name


def test_in_python_a_folder_or_the_memory_hold_the_same(here):
    scene = load_scene("scene.yaml", [*FAST, "movie.motion=1"])
    with unfinished("somewhere") as folder:
        kept = pipeline.simulate(scene, folder=folder)
        held = pipeline.simulate(scene)
        for name in ("images", "noise_free", "halves", "frames"):
            assert torch.equal(getattr(kept, name), getattr(held, name)), name
        kept.images[0] = 0  # as a user's own tensor, without changing the file
        again = pipeline.simulate(scene, folder=folder)
        assert torch.equal(again.images, held.images)


def test_in_python_a_folder_is_a_name_and_made(here, computed):
    scene, reports = load_scene("scene.yaml", FAST), []
    for _ in range(2):
        series = pipeline.simulate(scene, lambda *done: reports.append(done), folder="new/one")
        assert len(series.images) == 5
    assert reports[0] == (0, 5) and reports[-1] == (5, 5) and len(computed["seen"]) == 10
    with pytest.raises(ValueError, match=r"folder='p\.pdb': must be a folder, or one that can"):
        pipeline.simulate(scene, folder="p.pdb")


def test_records_know_which_of_them_are_there(tmp_path):
    data = np.random.default_rng(0).random((3, 2, 4, 5)).astype(np.float32)
    records = Records(tmp_path, key_of("a"), data.shape, data.dtype)
    for number in (2, 0):
        records.save(number, data[number], {"n": number})
    assert [records.find(n) for n in range(3)] == [{"n": 0}, None, {"n": 2}]
    assert Records(tmp_path, key_of("b"), data.shape, data.dtype).find(0) is None
    records.save(1, data[1], {"n": 1})
    assert np.array_equal(records.arrays(), data)
    memory = Records(None, key_of("a"), data.shape, data.dtype)
    for number in range(3):
        memory.save(number, data[number], {})
    assert np.array_equal(memory.arrays(), data) and memory.find(0) is None


class _Peak:
    """The most anonymous memory of this process while it is entered, over that before [bytes]."""

    def __enter__(self):
        self.stop, self.before, self.most = threading.Event(), _anonymous(), 0
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while not self.stop.wait(0.002):
            self.most = max(self.most, _anonymous() - self.before)

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def _anonymous():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is Linux's")
def test_memory_does_not_grow_with_tilts_or_frames(here, computed, monkeypatch):
    """A stack of 40 images has 26 MB, and 40 frames of two 52 MB. What is allowed, 15 MB, is what
    allocators round to and collectors leave; nothing is computed but the files."""
    monkeypatch.setattr(Camera, "sample", lambda self, *_: torch.full(self.shape, 3.0))
    words = [*WORDS, *FAST, "shape=[256,640]", "detector.halves=false", "overwrite=true",
             "stack.box=64", "formats=[tiff]", "tilts.minimum=0", "tilts.step=1",
             "movie.drift=[0,0]", "specimen.damage=0"]
    few = ["movie.frames=2", "tilts.maximum=4"]
    assert main([*words, *few]) == 0  # which imports
    peaks = []
    for other in (few, ["movie.frames=2", "tilts.maximum=39"],
                  ["movie.frames=40", "tilts.maximum=1"]):
        with _Peak() as peak:
            assert main([*words, *other]) == 0
        peaks.append(peak.most)
    assert max(peaks[1:]) < peaks[0] + 15e6, peaks


def test_frames_that_are_equal_are_computed_once(here, computed):
    """And give the same bytes as those that are computed each for itself."""
    computed["real"] = True
    words = [*FAST, "movie.drift=[0,0]", "specimen.damage=0", "movie.frames=3"]
    scene = load_scene("scene.yaml", words)
    shared = pipeline.simulate(scene)
    assert len(computed["seen"]) == 5 and intensities(scene, build_specimen(scene).ice) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tem_taichi.series.movie.intensities", lambda *_: 3)
        each = pipeline.simulate(scene)
    assert len(computed["seen"]) == 5 + 15
    assert torch.equal(shared.frames, each.frames)
    assert torch.equal(shared.noise_free, each.noise_free)
    assert not torch.equal(shared.frames[:, 0], shared.frames[:, 1])
    for change in ("movie.motion=1", "movie.drift=[1,0]", "specimen.damage=1",
                   "specimen.ice.granularity=1"):
        computed["seen"].clear()
        other = load_scene("scene.yaml", [*words, change, "tilts.minimum=0", "tilts.maximum=0"])
        pipeline.simulate(other)
        assert len(computed["seen"]) == 3, change
        assert intensities(other, build_specimen(other).ice) == 3


def test_the_time_left_is_that_of_what_is_missing(here, computed, capsys):
    """The first report is of what is there, so that its few seconds do not count as work."""
    interrupted(0, computed)
    capsys.readouterr()
    reports = []
    with unfinished("out") as folder:
        pipeline.simulate(scene_in(here), lambda *done: reports.append(done),
                          folder=folder)
    assert reports == [(2, 5), (3, 5), (4, 5), (5, 5)]
    for part in sorted(unfinished_folder("out").glob("*.json"))[:2]:
        part.unlink()
    assert main([*WORDS, *FAST]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 of 5 images are there already") and " 2/2 after" in out
