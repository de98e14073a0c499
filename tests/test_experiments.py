"""The experiments: all can be imported, and the README's figure can be made."""

import importlib
import json
import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import (
    benchmark,
    benchmark_limits,
    costs,
    ctf_simulated,
    runs,
    table1,
    twin_judge,
)
from experiments.ctf_bench import Truth, linear_micrograph

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.mark.parametrize("name", sorted(file.stem for file in EXPERIMENTS.glob("*.py")))
def test_imports(name):
    """And has a main, if it says that it is a command."""
    module = importlib.import_module(f"experiments.{name}")
    if f"python -m experiments.{name}" in (module.__doc__ or ""):
        assert callable(module.main)


def test_overview(tmp_path, monkeypatch):
    module = importlib.import_module("experiments.overview")
    monkeypatch.setattr("sys.argv", ["overview", str(tmp_path / "overview.png")])
    module.main()
    made, shipped = (Image.open(folder / "overview.png")
                     for folder in (tmp_path, EXPERIMENTS / "figures"))
    assert made.size == shipped.size
    before, now = (json.loads(picture.text["numbers"]) for picture in (shipped, made))
    assert list(before) == list(now) and len(now) == 6
    for title, means in now.items():
        apart = np.abs(np.subtract(means, before[title])).max()
        if title.endswith("recorded"):
            # On another machine counts may be drawn anew: of two times n pixels, at 5 deviations.
            pixels = (160 / len(means)) ** 2
            assert apart < 5 * np.sqrt(2 * np.mean(means) / pixels), title
        else:  # rounding of single precision over some hundred transforms, and to six digits
            assert apart < 1e-4 * np.ptp(means) + 2e-5 * np.abs(means).max(), title


def test_table_of_ctf_fits():
    """By hand: means 10 A off both ways, U 10 + 100 / 2 off, angles 2 degrees apart across 180."""
    rows = [{"defocus": 9000.0 + sign, "astigmatism": 500.0, "angle": angle, "found": {"one": {
        "defocus": 9000.0, "astigmatism": found, "angle": 1.0, "seconds": 0.5}}}
        for sign, found, angle in ((10.0, 600.0, 1.0), (-10.0, 500.0, 179.0))]
    cells = [cell.strip() for cell in ctf_simulated.table(rows).splitlines()[-1].split("|")]
    vector = np.median([100, 2 * 500 * np.sin(np.radians(2))])
    assert cells[1:] == ["one", "2", "10.0", "10.0", "+0.0", "35.0", "60", f"{vector:.1f}", "1.00",
                         "0", "0", "0", "0.50", ""]


def test_kept_micrographs_are_fitted_once(tmp_path, monkeypatch, capsys):
    """One made by the linear model in place of the simulator's; the fit's errors are a few A."""
    lens = ctf_simulated.scene_of(0).optics
    truth = Truth(lens.defocus, lens.astigmatism, lens.astigmatism_angle)
    image = linear_micrograph(truth, 1024, np.random.default_rng(0))
    np.savez(tmp_path / "000.npz", image=image.astype(np.uint16), q=0.07)
    monkeypatch.setattr("sys.argv", ["ctf_simulated", str(tmp_path / "results.jsonl"), "--count",
                                     "1", "--images", str(tmp_path)])
    monkeypatch.setattr(ctf_simulated, "programs", lambda: {"ours": ctf_simulated.fit_ours})
    ctf_simulated.main()
    first = capsys.readouterr().out
    ctf_simulated.main()
    assert capsys.readouterr().out == first
    rows = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(rows) == 1
    assert abs(ctf_simulated.read(tmp_path / "results.jsonl")[0]["found"]["ours"]["defocus"]
               - truth.defocus) < 30


@pytest.mark.parametrize("angle", [20.0, 155.0])
def test_other_programs_conventions(angle):
    """Astigmatism as U - V and the angle as ours; half or twice of it would be off by 400 A."""
    pytest.importorskip("torch_ctf_estimation")
    image = linear_micrograph(Truth(15000, 800, angle), 1024, np.random.default_rng(1), dose=300)
    found = ctf_simulated.fit_teamtomo(image, 0.07)
    assert abs(found["defocus"] - 15000) < 300
    assert abs(found["astigmatism"] - 800) < 100
    assert abs(found["angle"] - angle) < 5


@pytest.mark.parametrize("busy", [False, True])
def test_no_ratio_from_a_busy_machine(monkeypatch, capsys, busy):
    """Of two programs that do nothing."""
    nothing = benchmark.Program((lambda _: None,) * 3)
    monkeypatch.setattr(benchmark, "others", lambda begun=None: 0.5 if busy and begun else 0.02)
    times = benchmark.compare({"tem_taichi": nothing, "abTEM": nothing}, 3)
    assert ("ratio" in times["whole"]["abTEM"]) != busy
    benchmark.show({"machine": {}, "fresh processes": {}, "cases": {
        "a": {"times": times, "error": {}}}})
    assert ("no ratio: the machine was busy" in capsys.readouterr().out) == busy


def test_what_other_programs_take_is_seen(monkeypatch):
    """By hand: in 2 s on four cores the machine worked for 5 s, of these this process for 1."""
    Times = namedtuple("Times", "user system idle iowait guest")
    clocks = [(Times(10, 2, 50, 1, 3), 4.0, 100.0), (Times(14, 3, 52, 2, 5), 5.0, 102.0)]
    for name, values in (("psutil.cpu_times", [c[0] for c in clocks]),
                         ("time.process_time", [c[1] for c in clocks]),
                         ("time.perf_counter", [c[2] for c in clocks])):
        given = iter(values)
        monkeypatch.setattr(f"experiments.benchmark.{name}", lambda given=given: next(given))
    monkeypatch.setattr("experiments.benchmark.os.cpu_count", lambda: 4)
    assert benchmark.others(benchmark.others()) == pytest.approx((5 - 1) / 2 / 4)


def test_stages_beside_the_limits_of_a_device(tmp_path, monkeypatch, capsys):
    """Each is run once, a second long; a copy of 2^25 floats, both ways, moves 2^28 bytes then."""
    monkeypatch.setattr(benchmark_limits, "seconds", lambda work, repeats: work() is None or 1.0)
    monkeypatch.setattr(benchmark_limits, "SIZES", {"cpu": (16,)})
    monkeypatch.setattr(benchmark_limits, "ATOMS", 50)
    monkeypatch.setattr(benchmark_limits, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["benchmark", "--device", "cpu", "--repeats", "1", "--threads",
                                     os.environ["OMP_NUM_THREADS"]])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    benchmark.main()
    (file,) = (tmp_path / "results").glob("*.json")
    assert str(file) in capsys.readouterr().out
    report = json.loads(file.read_text())
    assert report["limits"]["bandwidth"] == 2**28 and report["arch"] == "cpu"
    rows = {(row["stage"], row["by"]): row for row in report["rows"]}
    assert len(rows) == len(report["rows"]) == 16
    assert rows["transmit", "kernels"]["fraction"] == pytest.approx(20 * 256 / 2**28)
    assert rows["multislice, 6 slices", "torch"]["limit"] == pytest.approx(
        6 * (2 + 36 * 256 / 2**28))


def test_a_timed_run_keeps_what_it_made_and_finds_it_again(tmp_path):
    scene = ["shape=[32,32]", "pixel_size=8", "tilts={scheme: listed, angles: [0, 40]}",
             "specimen.ice.granularity=0", "specimen.particles={apoferritin: {count: 1}}"]
    first = runs.measured(scene, tmp_path, keep=[40.0])
    assert first["images"] == 2 and first["copies"] == {"apoferritin": 1} and not first["resumed"]
    assert first["seconds"] > sum(first["stages"].values()) > 0
    image = np.load(tmp_path / "tilt_40.npy")
    assert image.shape == (32, 32) and 0 < image.std() < 0.5 * image.mean()
    again = runs.measured(scene, tmp_path)
    assert again["resumed"] and again["stages"] == pytest.approx(first["stages"])


def test_rows_of_the_table_say_times_and_errors(tmp_path):
    line = {"row": "zika_10", "mode": "multislice", "tilts": 1, "seconds": 75.0, "structures": 2.0,
            "megabytes": 900.0, "scatterers": 1_077_540, "errors": {}}
    for mode, off in (("multislice", 0.0), ("projection", 0.5)):
        folder = tmp_path / f"zika_10_{mode}_61"
        folder.mkdir()
        for angle in table1.KEPT:
            # A chequerboard of contrast 1, and one less by a half.
            np.save(folder / f"tilt_{angle:g}.npy", (1 - off) * (np.indices((8, 8)).sum(0) % 2))
    exact = tmp_path / "zika_10_multislice_61"
    found = table1.errors(exact, tmp_path / "zika_10_projection_61")
    assert table1.errors(exact, exact) == {}
    assert found == {"0": pytest.approx(0.5), "60": pytest.approx(0.5)}
    lines = [line, {**line, "mode": "projection", "tilts": 61, "seconds": 7200.0, "errors": found}]
    rows = [[cell.strip() for cell in row.split("|")] for row in table1.table(lines).splitlines()]
    assert rows[2][1:6] == ["Zika x 10", "1,077,540", "multislice", "1 min 15", ""]
    assert rows[2][10:12] == ["2 min 16", "3 min 10"]
    assert rows[3][3:6] == ["projection", "", "2 h 00"] and rows[3][8:10] == ["50.0%", "50.0%"]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_costs_grow_by_the_power_of_what_grows(power):
    at = [1.0, 10.0, 100.0, 1000.0]
    constant, factor, found = costs.fitted(at, [3 + 0.2 * x**power for x in at])
    assert found == pytest.approx(power, abs=0.026)  # powers are tried in steps of 0.05
    assert constant == pytest.approx(3, rel=0.05) and factor == pytest.approx(0.2, rel=0.1)


def test_the_judge_of_twins_tells_what_differs_and_nothing_else():
    rng = np.random.default_rng(4)
    real, other, wide = (rng.normal(100, spread, (6, 96, 640)) for spread in (10, 10, 10.7))
    same, different = (twin_judge.apart(one, real, 10.0) for one in (other, wide))
    # 160 tiles of each, in four blocks: chance alone is within 0.5 +- 2 x 0.033.
    assert abs(same.auc - 0.5) < 0.08 and different.auc > 0.8
    # 640 x 96 pixels: 0.6 % of a variance; the lowest band has some 20 ordinates in 6 images.
    np.testing.assert_allclose(different.variance, 1.145, atol=0.04)
    np.testing.assert_allclose(same.power[1:], 1, atol=0.15)
