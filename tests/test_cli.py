"""The command line: what it prints, writes and refuses, and that refusals write nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile

import tem_taichi
from tem_taichi.cli import run as cli_run
from tem_taichi.cli.progress import progress
from tem_taichi.scene.load import load_scene
from tem_taichi.series import simulate as pipeline
from tem_taichi.simulate import main

ATOMS = [(0, 0, 0), (8, 0, 0), (0, 8, 0), (0, 0, 8), (8, 8, 8)]
PDB = "".join(f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C\n"
              for i, (x, y, z) in enumerate(ATOMS, 1))
SCENE = """\
defaults: [simulate, override specimen: empty, _self_]
shape: [32, 40]
pixel_size: 2.0
specimen:
  ice: {thickness: 60}
  particles:
    p: {structure: p.pdb}
tilts: {minimum: -30, maximum: 30, step: 30}
optics: {defocus: 1000}
compute: {arch: cpu}
output: out
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a scene of three tilts and one small particle."""
    monkeypatch.chdir(tmp_path)
    Path("p.pdb").write_text(PDB)
    Path("scene.yaml").write_text(SCENE)
    return tmp_path


def files(folder):
    """Names below a folder, with the contents of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
            for p in Path(folder).rglob("*")}


def without_seconds(content):
    metadata = json.loads(content.pop("metadata.json"))
    del metadata["seconds"]
    return content | {"metadata.json": metadata}


def test_help_version_and_list(capsys):
    assert main(["--help"]) == 0
    assert "usage: python -m tem_taichi.simulate" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tem_taichi {tem_taichi.__version__}\n"
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    for name in ("krios", "k2_300kv", "apoferritin"):
        assert re.search(rf"^  {name} +\S.*[^.:,(]$", out, re.MULTILINE)


def test_list_has_the_efficiency_of_each_camera(capsys):
    assert main(["--list"]) == 0
    out = capsys.readouterr().out.splitlines()
    lines = {line.split()[0]: line for line in out if line.startswith("  ")}
    assert lines["falcon4ec_300kv"].endswith("DQE 0.90, 0.70, 0.50")
    assert lines["integrating_tmv"].endswith("DQE 0.40, 0.40, 0.40")
    assert "assumed" in lines["falcon3ec_200kv"]


def test_the_scene_in_the_help_is_sound(here, capsys):
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("  defaults:"))
    Path("help.yaml").write_text("\n".join(lines[start:lines.index("", start)]))
    Path("mine.pdb").write_text(PDB)
    assert main(["help.yaml", "--check"]) == 0
    assert "5 mine" in capsys.readouterr().out


def test_check_says_what_would_be_and_writes_nothing(here, capsys):
    before = files(here)
    assert main(["scene.yaml", "--check", "specimen.particles.q.structure=p.pdb"]) == 0
    out, err = capsys.readouterr()
    assert "The scene is sound. 1 p, 1 q (20 scatterers) in 60 A of ice" in out
    assert "3 images of 32 x 40 pixels of 2 A, tilts -30 to 30 deg, 9 e-/A^2 in all" in out
    assert "multislice in slices of 15 A; about" in out  # a quarter of the granular ice
    assert err == "" and files(here) == before
    words = ["scene.yaml", "--check", "interaction.slice_thickness=60",
             "specimen.ice.granularity=0"]
    assert main(words) == 0
    assert ("note: slices of 60 A; 15.5 A keep the error of images below 1 %, and so does "
            "interaction.slice_thickness=null: 155 A, depth smooth\n") in capsys.readouterr().out
    assert main([*words, "interaction.mode=projection"]) == 0
    assert "note: slices" not in capsys.readouterr().out


def test_a_camera_of_another_voltage_is_said_wherever_it_is_used(here, capsys):
    words = ["scene.yaml", "microscope=talos_arctica", "tilts.minimum=0", "tilts.maximum=0"]
    assert main([*words, "--check"]) == 0
    out = capsys.readouterr().out
    assert "is sound" not in out
    assert "warning: detector.voltage=300" in out
    assert main(words) == 0
    said = capsys.readouterr().err
    assert said.count("detector.voltage=300") == 1
    (kept,) = json.loads(Path("out/metadata.json").read_text())["warnings"]
    assert "detector.voltage=300" in kept
    with pytest.warns(UserWarning, match="microscope.voltage=200"):
        pipeline.simulate(load_scene("scene.yaml", words[1:]))
    assert main([*words, "detector=k3_200kv", "output=other", "--check"]) == 0
    assert "is sound" in capsys.readouterr().out


def test_show_is_a_scene(here, capsys):
    assert main(["scene.yaml", "--show", "dose=2"]) == 0
    Path("shown.yaml").write_text(capsys.readouterr().out)
    assert load_scene("shown.yaml") == load_scene("scene.yaml", ["dose=2"])


def test_run_writes_its_folder_and_a_few_lines(here, capsys):
    before = set(files(here))
    assert main(["scene.yaml"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and 2 <= len(out.splitlines()) <= 6
    assert "3/3" in out and "3 images of 1 p in" in out
    names = {"metadata.json", "preview.png", "scene.yaml", "tilt_series.mrc",
             "tilt_series.mrc.mdoc", "tilt_series.rawtlt", "tilt_series_noise_free.mrc",
             "tilt_series_particles.star", "tilt_series_tilts.csv"}
    assert set(files(here)) - before == {"out"} | {f"out/{name}" for name in names}
    assert all(name in out for name in names)
    with mrcfile.open("out/tilt_series.mrc") as stack:
        assert stack.data.shape == (3, 32, 40) and stack.voxel_size.x == 2.0
    # The written scene is the scene, from any folder.
    assert load_scene("out/scene.yaml") == load_scene("scene.yaml")


def test_same_scene_and_seed_give_the_same_bytes(here):
    assert main(["scene.yaml"]) == 0
    first = without_seconds(files("out"))
    assert main(["scene.yaml"]) == 2  # never over an older result
    assert without_seconds(files("out")) == first
    Path("out").rename("first")
    assert main(["scene.yaml"]) == 0
    assert without_seconds(files("out")) == first
    Path("out").rename("again")
    assert main(["again/scene.yaml"]) == 0
    assert without_seconds(files("out")) == first
    assert main(["scene.yaml", "seed=1", "overwrite=true"]) == 0
    other = without_seconds(files("out"))
    for name in ("tilt_series.mrc", "tilt_series_particles.star", "tilt_series_noise_free.mrc"):
        assert other[name] != first[name]
    assert other["tilt_series.rawtlt"] == first["tilt_series.rawtlt"]


@pytest.mark.parametrize("overrides", [
    ["dose=1e-6"], ["dose=1e6", "detector.integer=true"], ["detector.gain=1e-6"],
    ["microscope.voltage=10", "microscope.convergence=100"], ["pixel_size=100"],
    ["tilts.scheme=listed", "tilts.angles=[89.9]"], ["specimen.ice.mean_free_path=1"],
    ["interaction.mode=weak_phase", "specimen.particles.p.b_factor=0"],
])
def test_extremes_give_numbers(here, overrides):
    assert main(["scene.yaml", *overrides]) == 0
    for name in ("tilt_series.mrc", "tilt_series_noise_free.mrc"):
        with mrcfile.open(f"out/{name}") as stack:
            assert np.isfinite(stack.data).all()
    text = "".join(p.read_text() for p in Path("out").iterdir() if p.suffix in (".json", ".csv"))
    assert not re.search(r"\b(nan|inf|infinity)\b", text, re.IGNORECASE)


def test_sweep_has_a_folder_for_each_combination(here, capsys):
    assert main(["-m", "scene.yaml", "dose=1,2", "microscope=krios,polara"]) == 0
    folders = sorted(p.name for p in Path("out").iterdir())
    assert folders == ["000_dose_1_microscope_krios", "001_dose_1_microscope_polara",
                       "002_dose_2_microscope_krios", "003_dose_2_microscope_polara"]
    assert sorted(p.name for p in here.iterdir()) == ["out", "p.pdb", "scene.yaml"]
    means = [json.loads(Path("out", f, "metadata.json").read_text())["mean_counts"]
             for f in folders]
    assert means[2] / means[0] == pytest.approx(2, rel=1e-5)
    # One of them again, alone, from the scene in its folder.
    first = files(Path("out", folders[3]))
    assert main([f"out/{folders[3]}/scene.yaml", "output=alone"]) == 0
    assert files("alone")["tilt_series_003.mrc"] == first["tilt_series_003.mrc"]


def test_tables_of_a_sweep_can_be_merged(here):
    assert main(["-m", "scene.yaml", "dose=1,2", "stack.box=16", "formats=[relion5]"]) == 0
    tables = [starfile.read(path) for path in sorted(Path("out").glob("*/*_particles.star"))]
    names = pd.concat([table["particles"]["rlnTomoParticleName"] for table in tables])
    assert len(tables) == 2 and names.is_unique
    stacks = [starfile.read(path)["particles"]
              for path in sorted(Path("out").glob("*/*_stack.star"))]
    for column in ("rlnImageName", "rlnMicrographName"):
        assert not set(stacks[0][column]) & set(stacks[1][column])
    tomograms = [starfile.read(path, always_dict=True)["global"]["rlnTomoName"].iloc[0]
                 for path in sorted(Path("out").glob("*/relion5/tomograms.star"))]
    assert tomograms == ["tilt_series_000", "tilt_series_001"]
    # Names that the user sweeps stay as they are.
    assert main(["-m", "scene.yaml", "name=a,b", "output=named"]) == 0
    assert sorted(path.name for path in Path("named").glob("*/?.mrc")) == ["a.mrc", "b.mrc"]


def test_check_tells_of_an_earlier_output_and_still_checks(here, capsys):
    assert main(["scene.yaml"]) == 0
    capsys.readouterr()
    before = files(here)
    assert main(["scene.yaml", "--check"]) == 0
    out, err = capsys.readouterr()
    assert "The scene is sound" in out and "note: output: " in out and "exists already" in out
    assert err == "" and files(here) == before
    assert main(["scene.yaml", "--check", "pixel_size=-1"]) == 2  # still checks
    assert main(["scene.yaml", "--check", "output=p.pdb/x"]) == 2  # could never be written


def test_particles_outside_the_field_are_said_and_marked(here, capsys):
    where = "specimen.particles.p.positions=[[0,0,0],[30,0,0],[60,0,0],[0,39,0]]"
    words = ["scene.yaml", "specimen.particles.p.placement=listed", where,
             "formats=[relion5,shrec,copick]"]
    assert main([*words, "tilts={scheme: listed, angles: [0, 60]}"]) == 0
    # 40 x 32 pixels of 2 A: x from -40 to 40 A, y from -32 to 32 A; at 60 deg x is halved.
    out = " ".join(capsys.readouterr().out.split())
    assert "2 of 4 particles are centred outside the field: marked in tilt_series_particles" in out
    table = starfile.read("out/tilt_series_particles.star")["particles"]
    assert table["temInField"].tolist() == [1, 1, 0, 0]
    assert table["temVisibleTilts"].tolist() == ["[1,1]", "[1,1]", "[0,1]", "[0,0]"]
    assert json.loads(Path("out/metadata.json").read_text())["particles_in_field"] == 2
    listed = starfile.read("out/relion5/particles.star")["particles"]
    assert listed["rlnCenteredCoordinateXAngst"].tolist() == [0, 30]
    locations = Path("out/shrec/model_0/particle_locations.txt").read_text().splitlines()
    assert len(locations) == 2
    occupancy = mrcfile.read("out/shrec/model_0/occupancy_mask.mrc")
    for number, line in enumerate(locations, 1):
        x, y, z = (int(word) for word in line.split()[1:4])
        assert occupancy[z, y, x] == number
    picks, = Path("out/copick").glob("ExperimentRuns/*/Picks/*_p.json")
    assert len(json.loads(picks.read_text())["points"]) == 2


def test_interrupted_sweep_goes_on(here, capsys, monkeypatch):
    """Stopped in the second of three: the first is kept, and made again only where it differs."""
    words = ["-m", "scene.yaml", "dose=1,2,3"]
    run, seen = cli_run.run, []

    def stopped(scene, *read):
        seen.append(scene.dose)
        if len(seen) == 2:
            raise KeyboardInterrupt("1 of 3 images are finished and kept")
        run(scene, *read)

    monkeypatch.setattr(cli_run, "run", stopped)
    assert main(words) == 130
    assert capsys.readouterr().err == (
        "interrupted: 1 of 3 runs are finished and kept; of the next, 1 of 3 images are finished "
        "and kept\n")
    first = next(Path("out").iterdir())
    made = files(first)
    assert main(words) == 0
    assert "is finished and kept" in capsys.readouterr().out
    assert seen == [1, 2, 2, 3] and files(first) == made
    # A run of which a file is gone, or was cut or changed, is not finished.
    stack = next(first.glob("*[0-9].mrc"))
    for content in (None, made[stack.name][:-4], b"\0" * len(made[stack.name])):
        stack.unlink()
        if content is not None:
            stack.write_bytes(content)
        assert main(words) == 2
        assert "exists already" in capsys.readouterr().err
        stack.write_bytes(made[stack.name])
    (first / "notes.txt").write_text("mine")  # no part of it
    assert main(words) == 0
    assert "is finished and kept" in capsys.readouterr().out
    (first / "notes.txt").unlink()
    # Another scene, other files or another version in the same place are not the same run.
    assert main([*words, "seed=5"]) == 2
    Path("p.pdb").write_text(PDB.replace("20.00", "30.00"))
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    Path("p.pdb").write_text(PDB)
    monkeypatch.setattr(tem_taichi, "__version__", "other")
    assert main(words) == 2
    assert seen == [1, 2, 2, 3]


def test_time_and_memory_are_foreseen(here, capsys):
    """As said by --check: of a sweep also in all; the figures' accuracy is in test_pipeline."""
    assert main(["-m", "scene.yaml", "dose=1,2", "--check"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"about 0\.6 GB of memory, [0-9.]+ (s|min)\n", out)) == 2
    assert re.search(r"\n2 runs, about [0-9.]+ (s|min) in all\n$", out)


def test_log_has_lines_while_a_run_goes_on(capsys):
    """Without a terminal: at every beat, also while nothing gets done; and what is left."""
    with progress("simulating x", 4, every=0.05) as report:
        time.sleep(0.15)
        report(1, 4)
        time.sleep(0.15)
        report(4, 4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("simulating x 0/4 after ") and "left" not in lines[0]
    assert any(re.fullmatch(r"simulating x 1/4 after .* s, about .* s left", line)
               for line in lines)
    assert re.fullmatch("simulating x 4/4 after .* s", lines[-1])


BROKEN = {
    "bad.pdb": "hello\n", "bad.cif": "data_x\nloop_\n_a\n", "bad.mrc": "", "bad.star": "data_\n",
    "nan.csv": "x,y,z\n1,2,nan\n", "nan.txt": "0 1\n0.1 nan\n0.5 0.3\n", "notes.txt": "a b\n",
    "kept/notes.txt": "mine\n",
}
P = "specimen.particles.p"


@pytest.mark.parametrize(("words", "said"), [
    (["none.yaml"], "none.yaml: no such scene file"),
    (["p.pdb"], "p.pdb: must be one scene file ending in .yaml, then KEY=VALUE"),
    (["scene.yaml", "scene.yaml"], "scene.yaml: must be one scene file"),
    (["scene.yaml", "--chek"], "--chek: no such option; see --help"),
    (["--chek", "--help"], "--chek: no such option"),
    (["pixel_size=-1"], "pixel_size=-1.0: must be"),
    (["microscope.voltage=0"], "microscope.voltage=0.0: must be"),
    (["optics.defocuss=1"], "optics.defocuss=1: no such key; did you mean defocus?"),
    (["interaction.slice_thickness=61"], "at most specimen.ice.thickness=60 [A]"),
    (["tilts.scheme=listed", "tilts.angles=[3,0,3]"], "tilts.angles=3: given more than once"),
    (["tilts.doses=[1,2]"], "tilts.doses: has 2 entries; must have one for each of the 3 tilts"),
    ([f"{P}.structure=none.pdb"], f"{P}.structure: none.pdb: no such file"),
    ([f"{P}.structure=bad.pdb"], f"{P}.structure: "),
    ([f"{P}.structure=bad.cif"], f"{P}.structure: "),
    ([f"{P}.structure=."], f"{P}.structure: .: is a folder"),
    ([f"{P}.structure=null", f"{P}.map=bad.mrc"], f"{P}.map: "),
    ([f"{P}.structure=null", f"{P}.map=none.mrc"], f"{P}.map: none.mrc"),
    ([f"{P}.placement=listed", f"{P}.file=bad.star"], f"{P}.file: "),
    ([f"{P}.placement=listed", f"{P}.file=nan.csv"], "row 1, column z: 'nan' must be a finite"),
    ([f"{P}.placement=listed", f"{P}.file=none.csv"], f"{P}.file: none.csv: no such file"),
    ([f"{P}.placement=listed", f"{P}.positions=[[0,0,50]]"], "must lie within the ice"),
    ([f"{P}.count=1000000"], f"{P}.count=1000000: "),
    (["pixel_size=0.2"], "must be at least the diameter of specimen.particles.p, 14 A"),
    (["specimen.ice.thickness=13", "interaction.slice_thickness=1"], "specimen.ice.thickness=13"),
    (["interaction.margin=1e6"], "shape=[32, 40]: with interaction.margin=1000000 A"),
    (["shape=[16384,16384]", "formats=[shrec]", "specimen.ice.thickness=6000"],
     "GB of memory, the machine has"),
    (["detector.mtf_table=null", "detector.mtf_file=none.star"], "detector.mtf_file: none.star"),
    (["detector.mtf_table=null", "detector.mtf_file=nan.txt"], "nan.txt: frequencies and values"),
    (["detector.mtf_table=null", "detector.mtf_file=notes.txt"], "detector.mtf_file: "),
    (["detector.mtf=[1,1,1,1,1]"], "detector.mtf and detector.mtf_table: give one of them"),
    (["output=."], "output: "), (["output=p.pdb"], "output: "), (["output=p.pdb/x"], "output: "),
    (["output=kept"], "exists already; choose another folder or use overwrite=true"),
    (["output=kept", "overwrite=true"], "is no output of tem_taichi"),
    (["output=" + "x" * 300], "output: "), (["output=" + "x" * 250], "is too long for the file"),
    (["output=circle"], "output: "), (["output=circle/x"], "output: "),
    (["output='~nobody_of_this_name/x'"], "output: ~nobody_of_this_name/x: "),
    (["-m", "dose=1,-2"], "dose=-2.0: must be above 0"),
    (["-m", "dose=1,2", "dosse=1"], "dosse=1: no such key"),
    (["-m", f"{P}.structure=p.pdb,none.pdb"], f"{P}.structure: none.pdb: no such file"),
    (["-m", "microscope=krios,none"], "microscope=none: must be one of"),
    (["-m", "dose=interval(1,2)"], "dose=interval(1,2): must list its values"),
    (["-m", "dose=glob(*)"], "dose=glob(*): matches nothing; must list its values"),
    (["-m", "microscope=krios,polara", "detector=glob(none*)"], "detector=glob(none*): matches"),
    (["dose=1,2"], "to sweep over values add -m"),
])
def test_wrong_input_is_one_line_and_writes_nothing(here, capsys, words, said):
    for name, text in BROKEN.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    Path("circle").symlink_to("circle")
    before = files(here)
    if "scene.yaml" not in words and not any(word.endswith((".yaml", "p.pdb")) and "=" not in word
                                             for word in words):
        words = ["scene.yaml", *words]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert said in err
    assert files(here) == before


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate 9 GiB",
                                     "DefaultCPUAllocator: can't allocate memory"])
def test_too_little_memory_is_said(here, capsys, monkeypatch, message):
    def fail(*_, **__):
        raise RuntimeError(message)

    before = files(here)
    monkeypatch.setattr("tem_taichi.instrument.tem.TEM.exit_wave", fail)
    assert main(["scene.yaml"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: shape=[32, 40]: needs more memory") and err.count("\n") == 1
    assert files(here) == before


def test_existing_output_is_refused_before_anything_is_computed(here, monkeypatch):
    assert main(["scene.yaml"]) == 0
    monkeypatch.setattr(cli_run, "simulate", lambda *_: pytest.fail("computed"))
    assert main(["scene.yaml"]) == 2


@pytest.mark.parametrize("where", ["tem_taichi.instrument.tem.TEM.exit_wave",
                                   "tem_taichi.export.output.write_series_particles"])
@pytest.mark.parametrize("older", [False, True])
def test_interruption_leaves_everything_as_it_was(here, capsys, monkeypatch, where, older):
    words = ["scene.yaml", "output=a/b"]
    if older:
        assert main(words) == 0
        words.append("overwrite=true")
    capsys.readouterr()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    before = files(here)
    assert main(words) == 130
    said = capsys.readouterr().err
    computed = where != "tem_taichi.instrument.tem.TEM.exit_wave"
    assert said == ("interrupted: 3 of 3 images are finished and kept, the same command goes on "
                    "from there\n" if computed else
                    "interrupted: what was being computed is not written, 0 of 3 images\n")
    after = files(here)
    kept = {name for name in after if ".b.unfinished" in name}
    assert bool(kept) == computed
    expected = before | ({"a": None} if computed else {})
    assert {name: after[name] for name in after.keys() - kept} == expected


def test_overwrite_keeps_inputs_and_notes(here, capsys):
    """A scene, a map or notes in the folder: none is deleted, and nothing is computed."""
    assert main(["scene.yaml", "formats=[shrec]"]) == 0
    before = files(here)
    capsys.readouterr()
    potential = "out/shrec/model_0/grandmodel.mrc"
    for words, said in (
            (["out/scene.yaml"], "output: {}/out: holds out/scene.yaml, which this run reads"),
            (["scene.yaml", f"{P}.structure=null", f"{P}.map={potential}"],
             "output: {}/out: holds {}/" + potential + ", which this run reads")):
        assert main([*words, "overwrite=true"]) == 2
        assert said.format(here, here) in capsys.readouterr().err
    assert files(here) == before
    Path("out/notes.txt").write_text("mine")
    assert main(["scene.yaml", "overwrite=true"]) == 2
    assert "out: holds notes.txt, which its own run did not write; overwrite=true would delete" in (
        capsys.readouterr().err)
    assert files(here) == before | {"out/notes.txt": b"mine"}
    Path("out/notes.txt").unlink()
    assert main(["scene.yaml", "overwrite=true"]) == 0
    assert not Path("out/shrec").exists()


@pytest.mark.filterwarnings("default:3 of 3 images")
def test_images_that_are_rounded_to_nothing_do_not_lose_the_run(here, capsys):
    words = ["scene.yaml", "detector.integer=true", "detector.gain=0.01", "formats=[shrec]"]
    assert main([*words, "--check"]) == 0
    assert "detector.gain=0.01: 0.12 counts a pixel, rounded to" in capsys.readouterr().out
    assert main(words) == 0
    err = capsys.readouterr().err
    assert "warning: 3 of 3 images, the first of them image 1, have no positive mean" in err
    assert err.count("detector.gain=0.01") == 1
    with mrcfile.open("out/shrec/model_0/reconstruction.mrc") as volume:
        assert not volume.data.any()


def test_home_in_a_name_is_the_home(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    Path("mine.yaml").write_text(SCENE.replace("output: out", "output: ~/run"))
    assert main(["mine.yaml"]) == 0
    assert main(["scene.yaml", "output=~/two"]) == 0
    for name in ("run", "two"):
        assert (here / "home" / name / "tilt_series.mrc").is_file()
    assert not Path("~").exists()


ROOT = Path(tem_taichi.__file__).parent.parent


def process(words, folder, path=ROOT, **environment):
    """The program as a process, with the package that is below `path`."""
    return subprocess.Popen(
        [sys.executable, "-m", "tem_taichi.simulate", *words], cwd=folder, text=True,
        env={**os.environ, "PYTHONPATH": str(path), **environment}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_what_schedulers_send(here, number):
    # As on a terminal, where the bar shows each image.
    with process(["scene.yaml", "shape=[512,512]", "tilts.step=1"], here, FORCE_COLOR="1") as run:
        seen = ""
        while "2/" not in seen and run.poll() is None:
            seen += run.stdout.read(1)
        run.send_signal(number)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert re.fullmatch("interrupted: [2-9] of 61 images are finished and kept, the same command "
                        "goes on from there\n", err)
    assert {name.split("/")[0] for name in files(here)} == {"p.pdb", "scene.yaml",
                                                            ".out.unfinished"}


@pytest.mark.slow
def test_wrong_input_as_a_process(here):
    before = files(here)
    with process(["scene.yaml", "pixel_size=-1"], here) as run:
        out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (2, "")
    assert err == "error: pixel_size=-1.0: must be from 0.01 to 1000 [A]\n"
    assert files(here) == before


@pytest.mark.slow
def test_installed_package_in_any_folder(here, tmp_path_factory):
    """As a wheel installs it: the embedded scene, and the same bytes as in this process."""
    pytest.importorskip("setuptools", minversion="77")
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("tem_taichi", "kernels", "conf"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "README.md").touch()
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--verbose", "--no-deps",
                           "--no-build-isolation", "--target", str(site), str(source)], check=True,
                          capture_output=True, text=True)
    assert "absent from the `packages` configuration" not in done.stdout + done.stderr
    for folder, there in (("tem_taichi", site), ("kernels", site / "tem_taichi"),
                          ("conf", site / "tem_taichi")):
        named = {file.relative_to(ROOT) for file in (ROOT / folder).rglob("*")
                 if file.is_file() and "__pycache__" not in file.parts}
        assert len(named) > 1 and all((there / file).is_file() for file in named)
    with process(["shape=[96,96]"], here, site) as run:
        assert run.communicate(timeout=300)[1] == ""
    assert (here / "tem_taichi_output" / "tilt_series.mrc").is_file()
    with process(["scene.yaml", "overwrite=true"], here, site) as run:
        assert run.communicate(timeout=60)[1] == ""
    installed = without_seconds(files("out"))
    assert main(["scene.yaml", "overwrite=true"]) == 0
    from_here = without_seconds(files("out"))
    for name in ("tilt_series.mrc", "tilt_series_particles.star", "metadata.json"):
        assert from_here[name] == installed[name]
