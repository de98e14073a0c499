"""From YAML and overrides to a scene."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tem_taichi.scene.load import CONFIG_FOLDER, load_scene, load_sweep
from tem_taichi.scene.settings import (
    IceSettings,
    Scene,
    SpecimenSettings,
    TiltSettings,
    particle_of,
)
from tem_taichi.scene.show import to_yaml

BEGIN = "defaults: [simulate, override specimen: empty, _self_]\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file below the working folder, which is empty."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str = "") -> Path:
        file = Path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write


def test_embedded_scene():
    scene = load_scene()
    assert scene.microscope.name == "krios"
    assert scene.specimen.particles["apoferritin"].placing.count == 3


@pytest.mark.parametrize("file", sorted(CONFIG_FOLDER.glob("*/*.yaml")), ids=lambda f: f.stem)
def test_every_shipped_file_can_be_chosen(file):
    group = file.parent.name
    scene = load_scene(overrides=[f"{group}={file.stem}"])
    if group != "specimen":
        assert getattr(scene, group).name == file.stem


@pytest.mark.parametrize("defaults", [
    "[simulate, {override microscope: polara}, {override detector: k2_300kv}, _self_]",
    "[simulate, override microscope: polara, override detector: k2_300kv, _self_]",
    "[simulate, override /microscope: polara, override /detector: k2_300kv, _self_]",
    "\n  - simulate\n  - override microscope: polara\n  - override detector: k2_300kv\n  - _self_",
])
def test_choices_in_a_scene(write, defaults):
    scene = load_scene(write("s.yaml", f"defaults: {defaults}\ndose: 7\n"))
    assert (scene.microscope.name, scene.detector.name) == ("polara", "k2_300kv")
    assert (scene.microscope.spherical_aberration, scene.dose, scene.pixel_size) == (2.0, 7.0, 2.0)


def test_order_of_what_wins(write):
    """Shipped file < scene < command line; a choice on the command line changes the file only."""
    file = write("s.yaml", BEGIN + "microscope: {voltage: 250}\ndetector: {mtf_table: null}\n")
    assert load_scene(file).microscope.voltage == 250
    assert load_scene(file).detector.mtf_table is None
    scene = load_scene(file, ["microscope=polara", "microscope.convergence=0.2"])
    assert (scene.microscope.voltage, scene.microscope.spherical_aberration) == (250, 2.0)
    assert scene.microscope.convergence == 0.2


def test_particles_come_and_go_on_the_command_line():
    scene = load_scene(overrides=[
        "specimen.particles.a.structure=4v1w", "specimen.particles.a.count=2",
        "+specimen.particles.b={structure: 4v1w, placement: listed, positions: [[1, 2, 3]]}",
        "specimen.particles.apoferritin.gap=20", "~specimen.particles.b.placement",
        "specimen.particles.b.placement=listed"])
    assert scene.specimen.particles == {
        "apoferritin": particle_of(structure="4v1w", count=3, gap=20.0),
        "a": particle_of(structure="4v1w", count=2),
        "b": particle_of(structure="4v1w", placement="listed", positions=[[1.0, 2.0, 3.0]])}
    for nothing in ("~specimen.particles.apoferritin", "specimen.particles={}"):
        assert load_scene(overrides=[nothing]).specimen.particles == {}
    scene = load_scene(overrides=["specimen.particles={}", "specimen.particles.a.structure=4v1w"])
    assert list(scene.specimen.particles) == ["a"]
    with pytest.raises(ValueError, match=r"~specimen.particles.x: no such key"):
        load_scene(overrides=["~specimen.particles.x"])


@pytest.mark.parametrize("name", ["simulate.yaml", "s.yml", "-m.yaml", "a=1/b c,[d]'é/x.y.yaml"])
def test_any_name_of_file(write, name):
    assert load_scene(write(name, BEGIN + "dose: 9\n")).dose == 9


def test_own_groups_and_base_beside_the_scene(write):
    write("sub/microscope/mine.yaml", "voltage: 120\n")
    write("sub/base.yaml", "defaults: [simulate, override microscope: mine, _self_]\ndose: 4\n")
    scene = load_scene(write("sub/s.yaml", "defaults: [base, _self_]\nseed: 3\n"))
    assert (scene.microscope.voltage, scene.dose, scene.seed) == (120, 4, 3)


@pytest.mark.parametrize("name", ["microscope/krios.yaml", "scene_schema.yaml",
                                  "tem_taichi_scene.yaml"])
def test_nothing_hides_behind_a_shipped_name(write, name):
    write(name, "voltage: 100\n")
    with pytest.raises(ValueError, match=f"{name}: has the name of a shipped one; rename it"):
        load_scene(write("s.yaml", BEGIN))


def test_folders_named_as_keys_do_no_harm(write):
    for name in ("output", "name", "optics", "microscope"):
        write(f"{name}/scene.yaml", BEGIN)
    scene = load_scene(write("s.yaml", BEGIN), ["output=o", "name=n", "optics.defocus=1",
                                                "microscope=polara"])
    assert (scene.output, scene.name, scene.optics.defocus) == ("o", "n", 1)


def test_files_are_beside_the_scene_or_in_the_working_folder(write, tmp_path):
    for name in ("sub/a.pdb", "a.pdb", "b.mrc", "sub/c.star", "d.txt"):
        write(name)
    scene = load_scene(write("sub/s.yaml", BEGIN + """
specimen:
  particles:
    p: {structure: a.pdb}
    q: {map: b.mrc, placement: listed, file: ./c.star}
    r: {structure: 4v1w}
    s: {structure: none.pdb}
detector: {mtf_table: null, mtf_file: d.txt}
output: results
"""))
    p, q, r, s = scene.specimen.particles.values()
    assert p.source.structure == str(tmp_path / "sub" / "a.pdb")
    assert q.files == [str(tmp_path / "b.mrc"), str(tmp_path / "sub" / "c.star")]
    assert scene.detector.mtf_file == str(tmp_path / "d.txt")
    assert (r.source.structure, s.source.structure, scene.output) == ("4v1w", "none.pdb", "results")


def test_resolved_scene_loads_to_the_same_scene(write):
    scene = replace(
        load_scene(overrides=["detector=k3_300kv"]), name="a-1.b", seed=2**63 - 1, pixel_size=0.1,
        output="with space/é", dose=1 / 3,
        specimen=SpecimenSettings(particles={
            "1": particle_of(structure=os.path.abspath("tab\tquote\"colon: #.pdb"),
                             assembly="1"),
            "no": particle_of(map="null", placement="listed",
                              positions=[[1e-7, -1e5, 0.0], [3.0, 2.0, 1.0]])},
            ice=IceSettings(thickness=1e-5 + 50, mean_free_path=None)),
        tilts=TiltSettings(scheme="listed", angles=[-1.5, 0.0], shifts=[[0.0, 1e-9], [1.0, 2.0]]))
    text = to_yaml(scene)
    assert load_scene(write("scene.yaml", text)) == scene
    assert to_yaml(load_scene("scene.yaml")) == text
    # Complete: nothing is left to defaults that a later version may change.
    assert "  spherical_aberration: 2.7 " in text and "# Cs [mm]" in text
    assert load_scene("scene.yaml", ["~dose"]).dose == Scene().dose != scene.dose


def test_sweep_makes_every_combination():
    scenes = load_sweep(None, ["dose=1,2", "output=o", "optics.defocus=range(1000,3000,1000)"])
    assert [(s.dose, s.optics.defocus) for s in scenes] == [(1, 1000), (1, 2000), (2, 1000),
                                                           (2, 2000)]
    assert scenes[1].output == "o/001_dose_1_optics.defocus_2000"
    assert [s.name for s in scenes] == [f"tilt_series_{n:03d}" for n in range(4)]
    assert len({s.output for s in scenes}) == 4
    (alone,) = load_sweep(None, ["dose=1"])
    assert alone.output == "tem_taichi_output/000"
    kinds = load_sweep(None, ["detector=glob(k*_300kv)", "tilts.scheme=listed",
                              "tilts.angles=[0],[3]"])
    assert [(s.detector.name, s.tilts.angles) for s in kinds] == [
        ("k2_300kv", (0,)), ("k2_300kv", (3,)), ("k3_300kv", (0,)), ("k3_300kv", (3,))]


@pytest.mark.parametrize(("override", "said"), [
    ("dose=1,2", "dose=1,2: write a list as [1,2]; to sweep over values add -m"),
    ("microscope=nope", "microscope=nope: must be one of cryoarm_200, krios"),
    ("microscope=../detector/ideal", "microscope=../detector/ideal: must be one of cryoarm_200"),
    ("microscope=" + 3000 * "x", "xxx...: must be one of cryoarm_200"),
    ("~" + 3000 * "x", "xxx...: no such key"),
    ("dose=" + 3000 * "x", 'xxx...: must be a number'),
    ("microscope=[krios,polara]", "microscope=[krios,polara]: must be one name"),
    ("microscope=${oc.env:HOME}", "must be one name"),
    ("microscope=/etc/passwd", "microscope=/etc/passwd: must be one of"),
    ("microscope=null", "microscope=null: must be a mapping of"),
    ("dosse=3", "dosse=3: no such key; did you mean dose?"),
    ("+dosse=3", "dosse=3: no such key"),
    ("dose=[1,", "dose=[1,: must be KEY=VALUE"),
    ("dose=", 'dose="": must be a number'),
    ("dose=${seed}x", 'dose="0x": must be a number'),
    ("name=${nokey}", 'name="${nokey}": there is no key nokey'),
    ("name=${eval:1}", 'name="${eval:1}": must be a value, or another key'),
    ("hydra.run.dir=x", "hydra.run.dir=x: Hydra's own settings have no effect here"),
    ("hydra/launcher=x", "hydra/launcher=x: Hydra's own settings have no effect here"),
    ("hydra.searchpath=[x]", "Hydra's own settings have no effect here"),
])
def test_wrong_overrides(override, said):
    with pytest.raises(ValueError) as error:
        load_scene(None, [override])
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "said"), [
    ("", "s.yaml: must begin with `defaults: [simulate, _self_]`"),
    ("- 1\n", "must begin with"),
    ("text\n", "must begin with"),
    ("3\n", "must begin with"),
    ("dose: 3\n", "must begin with"),
    ("defaults: simulate\n", "must begin with"),
    ("defaults: []\n", "must end with _self_"),
    ("defaults: [_self_]\n", "must begin with"),
    ("defaults: [_self_, simulate]\ndose: 3\n", "must end with _self_"),
    ("defaults: [nothing, _self_]\n", "Could not load 'nothing'"),
    ("defaults: [simulate, microscope: polara, _self_]\n", "use 'override microscope: polara'"),
    ("defaults: [simulate, override microscope: p, _self_]\n", "microscope=p: must be one of"),
    ("defaults: [simulate, override microscop: krios, _self_]\n", "override 'microscop'"),
    ("defaults: [simulate, s, _self_]\n", "s.yaml: defaults: files include each other"),
    (BEGIN + "dose: [1,\n", "s.yaml: line 3, column 1"),
    (BEGIN + "optics:\n\tdefocus: 3\n", "s.yaml: line 3, column 1"),
    (BEGIN + "dose: 1\ndose: 2\n", "found duplicate key dose"),
    (BEGIN + "optics:\n", "optics=null: must be a mapping of defocus"),
    (BEGIN + "dose: \x00\n", "special characters are not allowed"),
])
def test_wrong_scenes(write, text, said):
    with pytest.raises(ValueError) as error:
        load_scene(write("s.yaml", text))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_missing_or_unreadable_scene(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ValueError, match=r"latin\.yaml: can't be read as YAML"):
        load_scene(tmp_path / "latin.yaml")
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ValueError, match="no such scene file"):
            load_scene(path)


CODE = "{_target_: os.system, command: touch pwned}"


@pytest.mark.parametrize("files", [
    {"s.yaml": BEGIN + f"dose: {CODE}\n"},
    {"s.yaml": BEGIN + "_target_: os.system\n"},
    {"s.yaml": BEGIN + "name: !!python/object/apply:os.system ['touch pwned']\n"},
    {"s.yaml": BEGIN + "name: !!python/name:os.system\n"},
    {"s.yaml": BEGIN + f"hydra: {{callbacks: {{a: {CODE}}}}}\n"},
    {"s.yaml": BEGIN + f"hydra: {{launcher: {CODE}}}\n"},
    {"s.yaml": BEGIN + f"hydra: {{sweeper: {CODE}}}\n"},
    {"s.yaml": BEGIN + "hydra: {searchpath: ['file:///']}\n"},
    {"s.yaml": BEGIN.replace("simulate", "simulate, a"),
     "a.yaml": f"hydra: {{callbacks: {{a: {CODE}}}}}\n"},
    {"s.yaml": BEGIN.replace("simulate", "simulate, a"),
     "a.yaml": "# @package hydra.callbacks.a\n_target_: os.system\ncommand: touch pwned\n"},
    {"s.yaml": BEGIN.replace("simulate", "simulate, a@hydra.launcher: x"),
     "a/x.yaml": "_target_: os.system\ncommand: touch pwned\n"},
    {"s.yaml": BEGIN.replace("simulate", "simulate, override hydra/launcher: mine"),
     "hydra/launcher/mine.yaml": "_target_: os.system\ncommand: touch pwned\n"},
    {"s.yaml": BEGIN.replace("simulate", "simulate, a"),
     "a.yaml": "dose: !!python/object/apply:os.system ['touch pwned']\n"},
    {"s.yaml": BEGIN + "name: ${eval:1+1}\n"},
])
def test_a_scene_is_data(write, files):
    for name, text in files.items():
        write(name, text)
    for load in (lambda: load_scene("s.yaml"), lambda: load_sweep("s.yaml", ["seed=1,2"])):
        with pytest.raises(ValueError) as error:
            load()
        assert "\n" not in str(error.value)
    assert not Path("pwned").exists()
    assert sorted(str(f) for f in Path().rglob("*.yaml")) == sorted(files)


def test_package_header_of_the_scene_itself_is_a_comment(write):
    scene = load_scene(write("s.yaml", "# @package hydra\n" + BEGIN + "dose: 8\n"))
    assert asdict(scene) == asdict(replace(load_scene(None, ["specimen=empty"]), dose=8.0,
                                           specimen=scene.specimen))


@pytest.mark.parametrize(("files", "said"), [
    ({"s.yaml": BEGIN + "name: ${oc.env:SECRET}\n"}, 'name="${oc.env:SECRET}": must be a value'),
    ({"s.yaml": BEGIN + "name: a${oc.env:SECRET}b\n"}, "must be a value, or another key"),
    ({"s.yaml": BEGIN + "name: ${${x}.y}\n"}, "must be a value, or another key"),
    ({"s.yaml": BEGIN + "name: ${now:%Y}\n"}, "must be a value, or another key"),
    ({"s.yaml": BEGIN + "specimen: {particles: {p: '${oc.create:{a: 1}}'}}\n"},
     "specimen.particles.p="),
    ({"s.yaml": BEGIN + "name: '${oc.env:SECRET'\n"}, "must be a value, or another key"),
    ({"s.yaml": BEGIN.replace("empty", "'${oc.env:SECRET}'")}, "must be a plain name, without ${}"),
    ({"s.yaml": BEGIN.replace("empty", "mine"), "specimen/mine.yaml": "damage: ${oc.env:SECRET}"},
     'specimen.damage="${oc.env:SECRET}": must be'),
    ({"s.yaml": BEGIN + "name: ${name}\n"}, 'name="${name}": refers to itself'),
    ({"s.yaml": BEGIN + "name: ${output}\noutput: ${name}\n"}, "refers to itself"),
    ({"s.yaml": BEGIN + "specimen: ${.}\n"}, "refers to itself"),
    ({"s.yaml": BEGIN.replace("specimen: empty", "microscope: ../../outside/x"),
      "../outside/x.yaml": "voltage: 123\n"}, "microscope=../../outside/x: must be one of"),
    ({"s.yaml": BEGIN.replace("simulate", "simulate, ../outside/y"),
      "../outside/y.yaml": "dose: 1.23\n"}, "Could not load '../outside/y'"),
])
def test_a_scene_reads_its_own_keys_and_folder_only(write, monkeypatch, files, said):
    monkeypatch.setenv("SECRET", "hunter2")
    for name, text in files.items():
        write(name, text)
    with pytest.raises(ValueError) as error:
        load_scene("s.yaml")
    assert said in str(error.value) and "\n" not in str(error.value)
    assert "hunter2" not in str(error.value)


def test_references_to_other_keys(write):
    scene = load_scene(write("s.yaml", BEGIN + """
name: run${seed}_${tilts.angles[1]}
dose: ${pixel_size}
shape: [64, '${.0}']
tilts: {scheme: listed, angles: [0, 3]}
specimen:
  particles:
    a: {structure: 4v1w, count: '${...size.0}'}
    b: ${.a}
  size: [30, 40]
"""), ["optics.defocus=${optics.coma}", "optics.coma=5"])
    assert (scene.name, scene.dose, scene.shape, scene.optics.defocus) == (
        "run0_3", 2, (64, 64), 5)
    particles = scene.specimen.particles
    assert particles["a"] == particles["b"] and particles["a"].placing.count == 30


LAUGHS = "x: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join(9 * [f'*{a}'])}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(("text", "said"), [
    (LAUGHS, "has more than 1,000,000 values, aliases counted each time"),
    ("dose: &x [*x]\n", "line 2, column 11: the alias *x stands within itself"),
    (f"dose: {2000 * '['}{2000 * ']'}\n", "is nested more than 50 levels deep"),
    (f"dose: {2000 * '{a: '}1{2000 * '}'}\n", "is nested more than 50 levels deep"),
    ("name: " + 99_999 * "x" + "\noutput: '" + 9 * "${name}" + "'\nmicroscope: {name: '"
     + 9 * "${output}" + "'}\n", "refers to itself, or to too much"),
    ("dose: !!set {1, 2}\n", "dose: Value 'set' is not"), ("? !!binary aGk=\n: 3\n", "no such key"),
    ("2020-01-01: 3\n", "no such key"), ("dose: !!timestamp 2020-01-01\n", "dose: Value 'date'"),
])
def test_small_files_that_ask_for_much(write, text, said):
    with pytest.raises(ValueError) as error:
        load_scene(write("s.yaml", BEGIN + text))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_lists_nested_deeply_on_the_command_line():
    with pytest.raises(ValueError, match=r"dose=\[\[.*is nested too deeply"):
        load_scene(None, [f"dose={2000 * '['}{2000 * ']'}"])


def test_an_alias_may_repeat_a_particle(write):
    scene = load_scene(write("s.yaml", BEGIN + """
specimen:
  particles:
    a: &a {structure: 4v1w, count: 2}
    b: *a
    c: {<<: *a, count: 3}
"""))
    assert [p.placing.count for p in scene.specimen.particles.values()] == [2, 2, 3]


@pytest.mark.parametrize("item", [
    "microscope: [krios, polara]", "override microscope: [krios, polara]", "{a: 1, b: 2}", "{}",
    "3", "null", "[a]", "microscope: 3", "override microscope: {a: 1}", "''", "override", "'@'",
    "override hydra/launcher: joblib", "a@b@c: d", "microscope: ???",
])
def test_odd_defaults_are_one_line(write, item):
    with pytest.raises(ValueError) as error:
        load_scene(write("s.yaml", f"defaults: [simulate, {item}, _self_]\n"))
    assert "\n" not in str(error.value) and str(error.value)


def test_scenes_load_in_threads_and_under_hydra(write, tmp_path):
    """Nothing global: neither other threads nor a program that itself runs under Hydra matter."""
    files = [write(f"{n}.yaml", BEGIN + f"dose: {n}\n") for n in range(1, 9)]
    write("conf/mine.yaml", "a: 1\n")
    with initialize_config_dir(str(tmp_path / "conf"), version_base="1.2"):
        with ThreadPoolExecutor(8) as pool:
            scenes = list(pool.map(load_scene, files))
        assert [scene.dose for scene in scenes] == list(range(1, 9))
        assert len(load_sweep(None, ["dose=1,2"])) == 2
        assert compose("mine").a == 1


@pytest.mark.slow
def test_packages_in_the_working_folder_are_not_imported(write, tmp_path):
    write("hydra_plugins/__init__.py", "raise SystemExit('imported')\n")
    write("s.yaml", BEGIN)
    done = subprocess.run([sys.executable, "-m", "tem_taichi.simulate", "s.yaml", "--show"],
                          capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0 and "imported" not in done.stdout + done.stderr
