"""Sweeps that Hydra's launchers run, chosen on the command line and nowhere else."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tem_taichi.cli import launch as cli_launch
from tem_taichi.scene import launcher as launchers
from tem_taichi.scene.launcher import LAUNCHERS, Launcher, launcher_of
from tem_taichi.scene.load import load_scene, load_sweep
from tem_taichi.simulate import main

SCENE = """\
defaults: [simulate, override specimen: empty, _self_]
shape: [32, 40]
specimen: {ice: {thickness: 60}, particles: {p: {globule: 5.0, count: 2}}}
tilts: {scheme: listed, angles: [0]}
optics: {defocus: 1000}
compute: {arch: cpu}
"""
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scene.yaml").write_text(SCENE)
    return tmp_path


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(launchers, "_is_installed", lambda _: True)


def test_words_that_choose_a_launcher_are_set_apart(installed):
    assert launcher_of(["dose=1,2"]) == (Launcher(), ["dose=1,2"])
    assert launcher_of(["hydra/launcher=basic"]) == (Launcher(), [])
    assert launcher_of(["dose=1,2", *JOBLIB, "seed=1"]) == (
        Launcher("joblib", ("hydra.launcher.n_jobs=2",)), ["dose=1,2", "seed=1"])
    for name in LAUNCHERS:
        assert launcher_of([f"hydra/launcher={name}"])[0].name == name


@pytest.mark.parametrize(("words", "said"), [
    (["-m", "dose=1,2", "hydra/launcher=nope"], "hydra/launcher=nope: must be one of basic, joblib,"
     " ray, submitit_local, submitit_slurm"),
    (["hydra/launcher=joblib"], "hydra/launcher=joblib: is for a sweep; add -m"),
    (["-m", "dose=1,2", "hydra.launcher.n_jobs=2"], "must come with hydra/launcher=NAME"),
    (["-m", "dose=1,2", *JOBLIB, "hydra.launcher._target_=os.system"], "must set a plain value"),
    (["-m", "dose=1,2", *JOBLIB, "hydra.launcher.verbose=${oc.env:HOME}"], "a plain value"),
    (["-m", "dose=1,2", *JOBLIB, "hydra.sweep.dir=x"], "hydra.sweep.dir=x: Hydra's own settings"),
    (["-m", "dose=1,2", "hydra/sweeper=basic"], "hydra/sweeper=basic: Hydra's own settings"),
])
def test_what_is_not_allowed_is_refused_in_one_line(here, installed, capsys, words, said):
    assert main(["scene.yaml", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
    assert os.listdir() == ["scene.yaml"]


def test_a_launcher_that_is_missing_says_how_to_get_it(here, capsys, monkeypatch):
    monkeypatch.setattr(launchers, "_is_installed", lambda _: False)
    for name, extra in (("joblib", "joblib"), ("ray", "ray"), ("submitit_slurm", "submitit")):
        assert main(["scene.yaml", "-m", "dose=1,2", f"hydra/launcher={name}"]) == 2
        assert capsys.readouterr().err == (f"error: hydra/launcher={name}: is not installed; "
                                           f"pip install 'tem_taichi[{extra}]'\n")


@pytest.mark.parametrize(("text", "said"), [
    ("defaults: [simulate, {override hydra/launcher: joblib}, _self_]\n", "hydra/launcher"),
    ("defaults: [simulate, {hydra/launcher: joblib}, _self_]\n", "Hydra's own settings have no"),
    ("defaults: [simulate, _self_]\nhydra: {launcher: {n_jobs: 2}}\n", "hydra="),
    ("# @package hydra.launcher\ndefaults: [simulate, _self_]\nn_jobs: 2\n", "n_jobs=2"),
])
def test_a_scene_file_chooses_none(here, installed, capsys, monkeypatch, text, said):
    monkeypatch.setattr(cli_launch, "launch", lambda *_: pytest.fail("started"))
    Path("mine.yaml").write_text(text)
    assert main(["mine.yaml", "-m", "dose=1,2"]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_basic_is_the_loop_of_before(here, monkeypatch):
    said = []
    monkeypatch.setattr("tem_taichi.cli.run.sweep", lambda *given: said.append(given))
    monkeypatch.setattr(cli_launch, "launch", lambda *_: pytest.fail("launched"))
    for words in ([], ["hydra/launcher=basic"]):
        assert main(["scene.yaml", "-m", "dose=1,2", *words]) == 0
    assert said[0] == said[1] == (load_sweep("scene.yaml", ["dose=1,2"]), ["scene.yaml"])


def test_others_go_on_where_one_fails(here, installed, capsys, monkeypatch):
    """Each job says in a line what is wrong with it; the command says it once all are done."""
    def launch(_, job, count, folder):
        assert folder == here / "tem_taichi_output" / ".launcher"
        Path(job.scenes[1].output).mkdir(parents=True)
        (Path(job.scenes[1].output) / "note").touch()
        return [job(number) for number in range(count)]

    monkeypatch.setattr(cli_launch, "launch", launch)
    assert main(["scene.yaml", "-m", "dose=1,2,3", *JOBLIB]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: tem_taichi_output/001_dose_2: output: ")
    assert "exists already" in err and "1 of 3 runs failed" in err and err.count("\n") == 1
    for name in ("000_dose_1", "002_dose_3"):
        assert f"wrote tem_taichi_output/{name}/" in out
        assert (here / "tem_taichi_output" / name / "metadata.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hydra_plugins") is None or find_spec(
    "hydra_plugins.hydra_joblib_launcher") is None, reason="pip install 'tem_taichi[joblib]'")
def test_joblib_writes_what_the_serial_sweep_writes(here, capfd):
    words = ["scene.yaml", "-m", "dose=1,2"]
    assert main([*words, "output=one"]) == 0
    assert main([*words, "output=two", *JOBLIB]) == 0
    assert "wrote two/001_dose_2/" in capfd.readouterr().out
    assert sorted(os.listdir("one")) == sorted(os.listdir("two")) == ["000_dose_1", "001_dose_2"]
    for folder in Path("one").iterdir():
        names = {file.name for file in folder.iterdir()}
        other = Path("two") / folder.name
        assert names == {file.name for file in other.iterdir()}
        for name in names - {"metadata.json", "scene.yaml"}:  # which hold times and folders
            assert (folder / name).read_bytes() == (other / name).read_bytes(), name
        scenes = [(place / "scene.yaml").read_text().replace(f'"{place.parent}/', '"')
                  for place in (folder, other)]
        assert scenes[0] == scenes[1]
    assert main([*words, "output=two", *JOBLIB]) == 0
    assert capfd.readouterr().out.count("is finished and kept") == 2
    assert main([*words, "output=three", "hydra/launcher=joblib", "hydra.launcher.jobs=2"]) == 2
    assert "hydra.launcher.jobs: Key 'jobs' not in" in capfd.readouterr().err
    assert not Path("three").exists()
    assert load_scene("scene.yaml").dose == 3.0  # as ever after Hydra's own state
