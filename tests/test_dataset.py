"""Data sets: what varies, samples that are whole or made anew, and projects of them all."""

import base64
import io
import json
import math
import shutil
import subprocess
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import dies_once
import numpy as np
import pandas as pd
import pytest
import starfile
import yaml
from filelock import FileLock
from PIL import Image

from tem_taichi.cli import dataset as program
from tem_taichi.cli.sample import Made, Maker, list_of, make
from tem_taichi.cli.workers import as_jobs, in_processes, on_ray
from tem_taichi.dataset import main
from tem_taichi.files.checksums import read_checksums, remove_listed, wrong
from tem_taichi.files.mrc import read_image_stack, read_volume
from tem_taichi.scene.dataset import (
    Dataset,
    check_ends,
    drawn,
    load_dataset,
    name_of,
    scene_of,
    split,
)
from tem_taichi.scene.ranges import Range

TEMPLATE = """
defaults: [simulate, override specimen: empty, _self_]
shape: [32, 40]
pixel_size: 10.0
tilts: {scheme: listed, angles: [-30, 0, 30]}
specimen:
  ice: {thickness: 200}
  particles:
    1big: {globule: 500, count: 2}
    small: {globule: 80, count: 3}
    gold: {fiducial: 50, count: 1}
"""
VARY = {"optics.defocus": Range(uniform=(20000.0, 40000.0)),
        "specimen.particles.1big.count": Range(integer=(0, 3)),
        "specimen.ice.thickness": Range(normal=(200.0, 10.0)),
        "detector": Range(choice=("k2_300kv", "k3_300kv"))}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    file = tmp_path_factory.mktemp("template") / "small.yaml"
    file.write_text(TEMPLATE)
    return file


def settings(template, folder, **keys):
    return Dataset(**{"scene": str(template), "samples": 3, "output": str(folder / "set"),
                      "vary": VARY, "workers": 1, **keys})


@pytest.fixture(scope="module")
def made(template, tmp_path_factory):
    """Three samples in one process, with tomograms."""
    dataset = settings(template, tmp_path_factory.mktemp("made"),
                       tomogram=("method=sirt", "iterations=2", "held_out=0"))
    for number in dataset.numbers:
        assert Maker(dataset)(number).error is None
    program.put_together(dataset)
    return dataset


def test_a_value_depends_on_its_key_and_sample_alone(template, tmp_path):
    dataset = settings(template, tmp_path)
    fewer = replace(dataset, vary={"optics.defocus": VARY["optics.defocus"]}, samples=2)
    assert drawn(fewer, 1)["optics.defocus"] == drawn(dataset, 1)["optics.defocus"]
    assert scene_of(fewer, 1).seed == scene_of(dataset, 1).seed
    many = [drawn(replace(dataset, samples=400), n) for n in range(400)]
    defoci = np.array([one["optics.defocus"] for one in many])
    # A uniform mean has a deviation of width / sqrt(12 n); 4 of them.
    assert abs(defoci.mean() - 30000) < 4 * 20000 / math.sqrt(12 * 400)
    assert defoci.min() >= 20000 and defoci.max() <= 40000 and len(set(defoci)) > 390
    counts = [one["specimen.particles.1big.count"] for one in many]
    assert set(counts) == {0, 1, 2, 3}
    thick = np.array([one["specimen.ice.thickness"] for one in many])
    assert np.abs(thick - 200).max() <= 30 and abs(thick.std() - 9.87) < 4 * 10 / math.sqrt(800)
    assert {one["detector"] for one in many} == {"k2_300kv", "k3_300kv"}
    seeds = {scene_of(dataset, n).seed for n in range(3)}
    assert len(seeds | {scene_of(replace(dataset, seed=1), n).seed for n in range(3)}) == 6


def test_log_uniform_has_as_many_in_each_factor():
    numbers = np.random.default_rng(0)
    values = np.log([Range(log_uniform=(1.0, 100.0)).draw(numbers) for _ in range(1000)])
    counts = np.histogram(values, np.linspace(0, math.log(100), 5))[0]
    assert np.all(np.abs(counts - 250) < 4 * math.sqrt(250))


def test_what_is_set_aside_stays_as_the_set_grows():
    few, many = (split(Dataset(samples=n, validation=0.2)) for n in (10, 100))
    assert few == many[:10] and few.count("validation") == 2 and many.count("validation") == 20
    assert set(split(Dataset(samples=5, validation=0.0))) == {"train"}


def test_a_sample_has_what_varies_in_its_scene(template, tmp_path):
    scene = scene_of(settings(template, tmp_path), 2)
    values = drawn(settings(template, tmp_path), 2)
    assert scene.optics.defocus == values["optics.defocus"]
    assert scene.specimen.particles["1big"].placing.count == values[
        "specimen.particles.1big.count"]
    assert scene.name == "set_0002" and scene.formats[:2] == ("shrec", "copick")


def test_a_file_and_the_command_line_say_the_same(template, tmp_path):
    file = template.with_name("set.yaml")
    file.write_text("scene: small.yaml\nsamples: 4\nvary:\n  optics.defocus: {uniform: [1, 2]}\n"
                    "  optics: {spherical_aberration: {choice: [2.0, 2.7]}}\n")
    dataset = load_dataset(file, ["vary.dose={log_uniform:[1,4]}", "samples=5"])
    assert dataset.scene == str(template) and dataset.samples == 5
    assert dataset.vary == {"optics.defocus": Range(uniform=(1.0, 2.0)),
                            "optics.spherical_aberration": Range(choice=(2.0, 2.7)),
                            "dose": Range(log_uniform=(1.0, 4.0))}


@pytest.mark.parametrize(("words", "says"), [
    (["samples=0"], "samples=0: must be"),
    (["vary.dose={uniform:[3,2]}"], "vary.dose.uniform=[3, 2]: must be from and to"),
    (["vary.dose={gauss:[3,2]}"], "vary.dose"),
    (["vary.dose={log_uniform:[0,2]}"], "vary.dose.log_uniform=[0, 2]: must be above 0"),
    (["vary.dose={integer:[0.5,2]}"], "vary.dose.integer=[0.5, 2]: must be two whole numbers"),
    (["vary.dose={choice:[]}"], "vary.dose.choice=[]: must be a list"),
    (["vary.seed={integer:[0,2]}"], 'vary="seed": must be a key that'),
    (["vary.dose={uniform:[-1,2]}"], "vary.dose: -1.0: dose=-1"),
    (["vary.optics.focus={uniform:[1,2]}"], "vary.optics.focus: 1.0: optics.focus"),
    (['overrides={name: mine}'], 'overrides="name=mine": must be'),
    (["tomogram.method=art"], 'tomogram: method="art": must be'),
    (["launcher=condor"], 'launcher="condor": must be one of'),
    (["address=auto"], 'address="auto": must be left out'),
    (["only=[3]", "samples=3"], "only[0]=3: must be"),
    (["scene=none.yaml"], "scene=none.yaml: no such file"),
    (["formats=[xmipp]"], 'formats[0]="xmipp": must be one of'),
    (["colour=red"], 'colour="red": no such key'),
    (["samples=1,2"], "samples=1,2: must be KEY=VALUE with one value"),
])
def test_what_cannot_be_is_one_line(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--check"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1, error
    assert list(tmp_path.iterdir()) == []


def test_show_reads_back(template, tmp_path, capsys):
    assert main([f"scene={template}", "vary.dose={uniform:[1,2]}", "--show"]) == 0
    file = tmp_path / "shown.yaml"
    file.write_text(capsys.readouterr().out)
    assert load_dataset(file).vary == {"dose": Range(uniform=(1.0, 2.0))}


def test_a_sample_made_alone_is_the_same(made, tmp_path):
    alone = replace(made, output=str(tmp_path / "other"), name="set")
    assert make(alone, 2) is False
    there, here = (read_checksums(list_of(one, 2)) for one in (made, alone))
    # Times, folders and, in copick's config, the place where it is differ.
    own = {name for name in there if name.endswith(("metadata.json", "config.json", "scene.yaml",
                                                    "results.json"))}
    assert {name for name in there if there[name] != here.get(name)} <= own
    assert len(there) > 30 and there.keys() == here.keys()


def test_what_is_gone_or_changed_is_made_anew(made, tmp_path):
    copy = replace(made, output=str(tmp_path / "set"))
    shutil.copytree(made.folder, copy.folder)
    assert [make(copy, n) for n in range(3)] == [True] * 3
    stack = copy.folder / "samples" / "set_0000" / "set_0000.mrc"
    before = stack.read_bytes()
    stack.write_bytes(before[:5000])
    (copy.folder / "tomograms" / "set_0001" / "tomogram.mrc").unlink()
    late = copy.folder / "samples" / "set_0002" / "shrec" / "model_0" / "grandmodel.mrc"
    torn = bytearray(late.read_bytes())
    torn[-3] ^= 1
    late.write_bytes(bytes(torn))
    mine = copy.folder / "samples" / "notes.txt"
    mine.write_text("of the user")
    assert [make(copy, n) for n in range(3)] == [False] * 3
    assert stack.read_bytes() == before and mine.read_text() == "of the user"
    assert [wrong(list_of(copy, n), copy.folder) for n in range(3)] == [[], [], []]
    assert [make(copy, n) for n in range(3)] == [True] * 3


def test_projects_hold_every_sample(made):
    folder = made.folder
    names = [name_of(made, n) for n in range(3)]
    tomograms = starfile.read(folder / "relion5" / "tomograms.star")
    assert tomograms["rlnTomoName"].tolist() == names
    particles = starfile.read(folder / "relion5" / "particles.star")
    for name in names:
        own = starfile.read(folder / "samples" / name / "relion5" / "particles.star")
        part = particles["particles"][particles["particles"]["rlnTomoName"] == name]
        assert np.allclose(part["rlnCenteredCoordinateXAngst"],
                           own["particles"]["rlnCenteredCoordinateXAngst"], atol=1e-6)
        assert part["temParticle"].tolist() == own["particles"]["temParticle"].tolist()
    for star in tomograms["rlnTomoTiltSeriesStarFile"]:
        tilts = starfile.read(folder / "relion5" / star)
        assert all((folder / "relion5" / file).is_file() for file in tilts["rlnMicrographName"])
    contrasts = tomograms["rlnAmplitudeContrast"].unique()
    assert particles["optics"]["rlnOpticsGroup"].tolist() == list(range(1, len(contrasts) + 1))
    assert sorted(path.name for path in (folder / "shrec").iterdir()) == [
        "model_0", "model_1", "model_2", "references"]
    # Kinds have the same numbers in every sample, also where there is none of one.
    tables = {(folder / "shrec" / f"model_{n}" / "class_conversion_table.txt").read_text()
              for n in range(3)}
    assert tables == {"1big 1\nsmall 2\ngold 3\n"}
    runs = folder / "copick" / "ExperimentRuns"
    assert sorted(path.name for path in runs.iterdir()) == names
    config = json.loads((folder / "copick" / "config.json").read_text())
    assert config["static_root"].endswith("set/copick")
    assert config["overlay_root"].endswith("set/copick_overlay")


def test_tables_say_what_varied(made):
    table = pd.read_csv(made.folder / "samples.csv")
    assert table["optics.defocus"].tolist() == [drawn(made, n)["optics.defocus"]
                                                for n in range(3)]
    assert table["split"].tolist() == split(made)
    page = (made.folder / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 and "http" not in page
    assert all(f'href="samples/{name}/"' in page for name in table["name"])


class Page(HTMLParser):
    """Addresses, names of anchors, pictures and open tags of a page."""

    def __init__(self):
        super().__init__()
        self.links, self.pictures, self.ids, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.links += [named[key] for key in ("href", "src") if key in named and tag != "img"]
        self.pictures += [named] if tag == "img" else []
        self.ids += [named["id"]] if "id" in named else []
        self.open += [tag] if tag not in ("meta", "img", "p") else []

    def handle_endtag(self, tag):
        assert tag == "p" or self.open.pop() == tag


def test_the_page_has_all_that_it_shows_and_links_to(made):
    """As a browser has found it too: no address but folders that are there, no broken picture."""
    page = Page()
    page.feed((made.folder / "index.html").read_text(encoding="utf-8"))
    names = [name_of(made, n) for n in range(3)]
    assert page.open == [] and page.ids == names
    assert page.links == [f"samples/{name}/" for name in names]
    assert all((made.folder / link).is_dir() for link in page.links)
    assert [picture["alt"] for picture in page.pictures] == names
    for picture, name in zip(page.pictures, names, strict=True):
        kind, _, data = picture["src"].partition(",")
        content = base64.b64decode(data, validate=True)
        assert kind == "data:image/jpeg;base64"
        assert content == (made.folder / "gallery" / f"{name}.jpg").read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert image.format == "JPEG" and min(image.size) > 50


BROWSER = next((found for name in ("chromium-headless-shell", "chromium", "google-chrome")
                if (found := shutil.which(name))), None)
LOADED = """<script>onload = () => {
const wide = [...document.images].filter(one => one.complete && one.naturalWidth > 50)
document.title = "loaded " + wide.length + " of " + document.images.length }</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_a_browser_shows_the_page(made, tmp_path):
    page = tmp_path / "index.html"
    # All images at once, so that the page has loaded when they have, however slow the machine is.
    text = (made.folder / "index.html").read_text(encoding="utf-8")
    page.write_text(text.replace("loading=lazy", "") + LOADED, encoding="utf-8")
    shown = subprocess.run([
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
        page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<title>loaded 3 of 3</title>" in shown.stdout
    assert "CONSOLE" not in shown.stderr  # where the browser writes what a page complains of


def test_tomograms_are_in_the_copick_project(made):
    copick = pytest.importorskip("copick")
    root = copick.from_file(str(made.folder / "copick" / "config.json"))
    run = root.get_run("set_0001")
    kinds = {one.tomo_type for one in run.get_voxel_spacing(10.0).tomograms}
    assert kinds == {"wbp", "potential", "reconstruct-sirt"}
    volume = read_volume(made.folder / "tomograms" / "set_0001" / "tomogram.mrc")[0]
    found, = run.get_voxel_spacing(10.0).get_tomograms("reconstruct-sirt")
    assert np.array_equal(found.numpy(), volume)


def test_masks_and_lists_agree_to_a_voxel(made):
    for n in range(3):
        model = made.folder / "shrec" / f"model_{n}"
        classes = read_volume(model / "class_mask.mrc")[0].astype(int)
        instances = read_volume(model / "occupancy_mask.mrc")[0].astype(int)
        kinds = {"1big": 1, "small": 2, "gold": 3}
        lines = (model / "particle_locations.txt").read_text().splitlines()
        for number, line in enumerate(lines, 1):
            kind, x, y, z = line.split()[:4]
            inside = np.argwhere(instances == number)
            assert len(inside) and set(classes[instances == number]) == {kinds[kind]}
            middle = inside.mean(axis=0)
            edge = np.any((inside == 0) | (inside == np.array(classes.shape) - 1))
            # A list has whole voxels, and a mask's middle is right to half of one.
            assert edge or np.all(np.abs(middle - (int(z), int(y), int(x))) <= 1.0), line


def test_coordinates_are_where_particles_are_dark(made):
    """Gold is the darkest of all there is, in every image that has it."""
    folder = made.folder / "samples" / "set_0001"
    clean = read_image_stack(folder / "set_0001_noise_free.mrc")[0]
    table = pd.read_csv(folder / "coordinates" / "set_0001_coordinates.csv")
    gold = table[table["kind"] == "gold"]
    assert len(gold) >= 2
    for row in gold.itertuples():
        y, x = np.unravel_index(clean[row.image - 1].argmin(), clean.shape[1:])
        assert np.hypot(x - row.x, y - row.y) < 2.0  # of a ball of 5 pixels


def test_another_set_is_not_mixed_with_it(made, capsys, template):
    (made.folder / "dataset.yaml").write_text(program._shown(made))
    words = [f"scene={template}", f"output={made.folder}", "samples=3", "vary.dose={uniform:[1,2]}"]
    assert main(words) == 2
    assert "holds a data set whose vary is" in capsys.readouterr().err
    kept = yaml.safe_load((made.folder / "dataset.yaml").read_text())
    assert load_dataset(made.folder / "dataset.yaml") == made and kept["samples"] == 3


def test_more_samples_join_those_there(template, tmp_path, capsys):
    words = [f"scene={template}", f"output={tmp_path / 'set'}", "formats=[]", "workers=1",
             "launcher=joblib", "tomogram=null"]
    assert main([*words, "samples=1"]) == 0
    assert "1 samples made, 0 kept, of 1" in capsys.readouterr().out
    assert main([*words, "samples=2"]) == 0
    assert "1 samples made, 1 kept, of 2" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "set" / "samples.csv")["name"].tolist() == [
        "set_0000", "set_0001"]


@pytest.fixture
def copied(made, tmp_path):
    """The same set elsewhere, without its sample 1."""
    copy = replace(made, output=str(tmp_path / "set"))
    shutil.copytree(made.folder, copy.folder)
    remove_listed(list_of(copy, 1), copy.folder)
    return copy


def test_a_sample_that_fails_leaves_the_others(copied, monkeypatch):
    monkeypatch.setattr(program, "_launched", lambda dataset, numbers: iter(
        [Made(0, True), Made(1, error="no room"), Made(2, True)]))
    with pytest.raises(ValueError, match=r"set_0001: no room \(1 of 3 samples failed, the others"):
        program._make(copied)
    assert pd.read_csv(copied.folder / "samples.csv")["name"].tolist() == ["set_0000", "set_0002"]


def test_workers_that_die_are_begun_again_but_not_for_ever(copied, monkeypatch):
    begun = []

    def launched(dataset, numbers):
        begun.append(list(numbers))
        return iter([Made(0, True), Made(2, True)] if len(begun) == 2 else [])

    monkeypatch.setattr(program, "_launched", launched)
    with pytest.raises(ValueError, match="set_0001: its process died again and again"):
        program._make(copied)
    assert begun == [[0, 1, 2], [0, 1, 2], [1], [1], [1]]


def test_one_run_at_a_time(copied):
    with FileLock(copied.folder / ".lock"), pytest.raises(ValueError, match="another run"):
        program._make(copied)


def rounds(launch, tmp_path):
    """Rounds of a launcher until all of six numbers are there."""
    left, found = list(range(6)), []
    while left:
        found.append(list(launch(partial(dies_once.dies_once, str(tmp_path)), left)))
        left = [n for n in left if all(n not in done for done in found)]
        assert len(found) < 4
    return found


@pytest.mark.filterwarnings("ignore:A worker stopped:UserWarning")
def test_a_killed_process_ends_a_round_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(dies_once.__file__).parent))
    found = rounds(lambda job, left: in_processes(job, left, 2), tmp_path)
    assert len(found) == 2 and sorted(found[0] + found[1]) == list(range(6))


def test_a_killed_job_is_begun_again(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(Path(dies_once.__file__).parent))
    found = rounds(lambda job, left: as_jobs(job, left, 2, "local", {}, tmp_path / "logs"),
                   tmp_path)
    assert [sorted(done) for done in found] == [[0, 1, 3, 4, 5], [2]]


@pytest.mark.filterwarnings("ignore")  # Ray's own, of sockets and files that it leaves open
def test_a_killed_worker_of_ray_loses_nothing(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(dies_once.__file__).parent))
    found = rounds(lambda job, left: on_ray(job, left, 2, None), tmp_path)
    assert [sorted(done) for done in found] == [list(range(6))]


def test_ends_of_what_varies_are_tried(template, tmp_path):
    with pytest.raises(ValueError, match=r"vary\.pixel_size: 2000\.0: pixel_size=2000"):
        check_ends(settings(template, tmp_path, vary={"pixel_size": Range(uniform=(5, 2000.0))}))
