"""The estimation command: files it reads and writes, what it refuses, and that it can go on."""

import json
import re
import shlex
import shutil
import time
from dataclasses import fields
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import yaml

from experiments.ctf_bench import Truth, linear_micrograph
from experiments.detector_bench import slanted_edge
from tem_taichi.device import as_tensor
from tem_taichi.estimate.spectra import average_periodogram
from tem_taichi.files.mrc import write_mrc
from tem_taichi.files.tilts import write_rawtlt
from tem_taichi.files.unfinished import unfinished, unfinished_folder
from tem_taichi.fit import main
from tem_taichi.noise.curves import evaluate
from tem_taichi.noise.detector import Detector, detect, noise_power_spectrum
from tem_taichi.recipes import ctf as recipe_ctf
from tem_taichi.recipes.input import series_table
from tem_taichi.recipes.load import find_recipe, recipe_names
from tem_taichi.recipes.load import read_recipe as read_module_and_recipe
from tem_taichi.scene.load import load_scene
from tem_taichi.scene.typed import to_plain
from tem_taichi.series.camera import detector_from_config
from tem_taichi.series.plan import plan
from tem_taichi.simulate import main as simulate

CAMERA = Detector("integrating", gain=10.0, mtf=(0.7, 0.2, 0.1, 10.0, 40.0), dqe=0.4)
ELECTRONS = 22.0
TILTS = np.arange(-60.0, 61, 6)
RECIPES = {name: find_recipe(name).RECIPE[0] for name in recipe_names()}
SCENE = """\
defaults: [simulate, override specimen: empty, override detector: fitted, _self_]
shape: [32, 40]
pixel_size: 2.0
specimen: {ice: {thickness: 60}}
tilts: {minimum: 0, maximum: 0, step: 30}
compute: {arch: cpu}
output: simulated
"""


def counts(field, seed=0):
    return detect(as_tensor(field), pixel_size=1.0, dose=ELECTRONS, detector=CAMERA,
                  seed=seed).numpy()


def micrographs(*defoci, size=384):
    generator = np.random.default_rng(3)
    return np.stack([linear_micrograph(Truth(defocus, 400, 70), size, generator)
                     for defocus in defoci])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with small files of every kind."""
    monkeypatch.chdir(tmp_path)
    write_mrc(Path("flat.mrc"), counts(np.ones((6, 64, 64))), 1.2)
    write_mrc(Path("edge.mrc"), counts(slanted_edge(96, 7.0, 0.3), 1), 1.2)
    generator = np.random.default_rng(4)
    means = 900 * np.exp(-0.5 / np.cos(np.deg2rad(TILTS - 5)))
    images = generator.poisson(means[:, None, None], (len(TILTS), 64, 64)).astype(np.float32)
    write_mrc(Path("series.mrc"), images, 4.0)
    write_rawtlt(Path("series.rawtlt"), TILTS)
    write_mrc(Path("constant.mrc"), np.ones((3, 64, 64), np.float32), 1.35)
    return tmp_path


@pytest.fixture
def micrograph(here):
    write_mrc(Path("ice.mrc"), micrographs(12000)[0], 1.35)


def run(*words):
    assert main(list(words)) == 0
    output = next((w.partition("=")[2] for w in words if w.startswith("output=")),
                  "tem_taichi_fit")
    return json.loads((Path(output) / "results.json").read_text()), Path(output)


def read_recipe(words):
    return read_module_and_recipe(words)[1]


def names(folder):
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}


# --- what the recipes are ---

@pytest.mark.parametrize("name", RECIPES)
def test_what_is_shown_of_a_recipe_are_the_defaults_of_every_key(name, capsys):
    """So that what --show prints is what runs."""
    assert main([f"recipe={name}", "--show"]) == 0
    shown = capsys.readouterr().out
    content = yaml.safe_load(shown)
    assert content.pop("recipe") == name
    assert list(content) == [field.name for field in fields(RECIPES[name])]
    for key in content:  # each with its meaning
        assert re.search(rf"^# .*\n{key}: ", shown, re.MULTILINE)
    stack = {"input": ["a.mrc"]}
    plain, shipped = RECIPES[name](**stack), read_recipe([f"recipe={name}", "input=a.mrc"])
    assert plain == shipped
    for field in fields(plain):
        given = getattr(shipped, field.name)
        assert type(given) is type(getattr(plain, field.name))
        if field.name != "input":
            assert type(content[field.name]) is type(to_plain(given)), field.name  # 1.0 is not true


def test_help_and_show(here, capsys):
    for words in (["--help"], []):
        assert main(words) == 0
        assert "usage: python -m tem_taichi.fit recipe=NAME" in capsys.readouterr().out
    assert main(["recipe=ctf", "--show"]) == 0
    out = capsys.readouterr().out
    assert "# Cs [mm]\nspherical_aberration: 2.7" in out
    assert main(["recipe=ctf", "input=[a.mrc,b.mrc]", "voltage=200", "--show"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["voltage"] == 200
    Path("shown.yaml").write_text(shown)  # is a recipe itself
    assert read_recipe(["recipe=shown.yaml"]) == read_recipe(
        ["recipe=ctf", "input=[a.mrc,b.mrc]", "voltage=200"])


def test_recipe_of_ones_own(here):
    """Its files may be named from its own folder; what is given beside it wins."""
    Path("settings").mkdir()
    shutil.move("series.mrc", "settings/series.mrc")
    shutil.move("series.rawtlt", "settings/angles.tlt")
    Path("settings/mine.yaml").write_text("recipe: thickness\ninput: series.mrc\n"
                                          "angles: angles.tlt\nmean_free_path: 3000\n")
    result, _ = run("recipe=settings/mine.yaml", "output=a")
    assert result["mean_free_path_A"] == 3000
    result, _ = run("recipe=settings/mine.yaml", "output=b", "mean_free_path=2000")
    assert result["mean_free_path_A"] == 2000


def test_recipes_are_composed_as_scenes_are(here, capsys):
    """Of other files beside them, each of which may name its base in either way."""
    Path("lab.yaml").write_text("recipe: ctf\nvoltage: 200\nspherical_aberration: 1.2\n")
    Path("day.yaml").write_text("defaults: [lab, _self_]\nspherical_aberration: 0.01\n"
                                "output: o\ninput: ${output}.mrc\n")
    Path("own.yaml").write_text("defaults: [ctf, _self_]\nvoltage: 200\n")
    recipe = read_recipe(["recipe=day.yaml", "amplitude_contrast=0.1"])
    assert recipe == read_recipe(["recipe=own.yaml", "spherical_aberration=0.01", "output=o",
                                  "amplitude_contrast=0.1", "input=o.mrc"])
    assert (recipe.voltage, recipe.defocus) == (200, (1500, 60000))
    for text, said in (("defaults: [none, _self_]", "Could not load 'none'"),
                       ("defaults: [bad, _self_]", "bad.yaml: defaults: files include each other"),
                       ("defaults: [lab]", "bad.yaml: defaults: must end with _self_"),
                       ("defaults: lab", 'defaults="lab": must be a list in the file'),
                       ("defaults: [{hydra/launcher: joblib}, _self_]", "Hydra's own settings"),
                       ("voltage: 200", "recipe=None: must be one of beads, ctf, "),
                       ("defaults: [lab, _self_]\nvoltage: {a: 1}", 'voltage={"a": 1}')):
        Path("bad.yaml").write_text(text)
        assert main(["recipe=bad.yaml", "input=a.mrc"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and said in err, err


def test_commands_of_the_readme():
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    text = text.replace("\\\n", " ")  # commands on two lines
    lines = [line.partition("#")[0] for line in text.splitlines()
             if line.startswith("    python -m tem_taichi.fit") and "--show" not in line]
    found = {type(read_recipe(shlex.split(line)[3:])) for line in lines}
    assert found == set(RECIPES.values())


# --- what they find ---

def test_detector_from_flat_crops(here, capsys):
    result, folder = run("recipe=detector", "input=flat.mrc", "periodic=true")
    assert names(folder) == {"results.json", "metadata.json", "detector.png",
                             "detector/fitted.yaml"}
    assert "assumption: Only the noise power spectrum is measured" in capsys.readouterr().out
    assert result["images"] == result["crops"] == 6 and "mtf" not in result
    w, found, lower, upper = np.transpose(result["nps"])
    truth = noise_power_spectrum(as_tensor(w), CAMERA, dose=ELECTRONS, pixel_size=1.0).numpy()
    # 6 x 64^2 / 2 ordinates over 0.7 x 64 rings: 6 % a ring, smoothed over several.
    middle = (w > 0.03) & (w < 0.5)
    np.testing.assert_allclose(found[middle], truth[middle], rtol=0.2)
    assert ((lower <= truth) & (truth <= upper))[middle].mean() > 0.6
    settings = json.loads((folder / "metadata.json").read_text())
    assert settings["recipe"] == "detector" and settings["settings"]["periodic"] is True


@pytest.mark.parametrize("words", [
    [], ["gain=10"], ["kind=integrating"],
    ["kind=integrating", "gain=10", "dqe=0.4", "form=parametric"]])
def test_a_scene_chooses_the_fitted_detector(here, words):
    """Simulated flat fields have the noise that was measured."""
    result, folder = run("recipe=detector", "input=flat.mrc", "periodic=true", "output=fit", *words)
    (folder / "scene.yaml").write_text(SCENE)
    camera = load_scene(folder / "scene.yaml").detector
    assert camera.name == "fitted"
    fitted = detector_from_config(camera)
    # The camera's electrons are the mean counts over its own gain.
    mean = CAMERA.gain * ELECTRONS / fitted.gain
    w, nps, *_ = np.transpose(result["nps"])
    again = noise_power_spectrum(as_tensor(w), fitted, dose=mean, pixel_size=1.0).numpy()
    low = w < 0.5  # where the curve was bound to fall it is not the measured one
    np.testing.assert_allclose(again[low], nps[low], rtol=0.1)
    told = [line for line in result["assumptions"] if "gain, " in line]
    assert bool(told) == (fitted.gain != 10)  # a gain that is not the camera's is said
    if told:
        stated = float(re.search(r"from (\S+) e-/pixel", told[0])[1])
        assert stated == pytest.approx(mean, rel=0.01)  # three digits, of the counts
    assert simulate([str(folder / "scene.yaml")]) == 0
    assert Path("simulated/tilt_series.mrc").is_file()


def test_detector_from_an_edge(here):
    result, folder = run("recipe=detector", "input=edge.mrc", "method=edge", "highest=0.5",
                         "form=parametric", "gain=10")
    assert names(folder) == {"results.json", "metadata.json", "detector.png",
                             "detector/fitted.yaml"}
    w, found, *_ = np.transpose(result["mtf"])
    expected = evaluate(CAMERA.mtf, as_tensor(w)).numpy()
    # An edge of 96 pixels: the half-width of the intervals is some 0.05.
    assert np.abs(found - expected).max() < 0.15
    assert result["edge_angle_deg"] == pytest.approx(7, abs=0.5)
    assert yaml.safe_load((folder / "detector/fitted.yaml").read_text())["gain"] == 10


def test_detector_by_focal_loss_and_picking(here):
    result, folder = run("recipe=detector", "input=flat.mrc", "method=focal_loss", "gain=10")
    assert len(result["parameters"]) == 5 and "nps" not in result
    assert names(folder) == {"results.json", "metadata.json"}
    write_mrc(Path("large.mrc"), counts(np.ones((160, 160))), 1.2)
    result, folder = run("recipe=detector", "input=large.mrc", "pick=true", "size=32", "count=4",
                         "output=picked")
    assert result["images"] == 1 and result["crops"] == 4
    assert "picked.png" in names(folder)


def test_a_tilt_series_is_no_flat_field(here, capsys):
    result, _ = run("recipe=detector", "input=series.mrc", "periodic=true")
    told = capsys.readouterr().out
    for doubt in ("tilt angles beside it (series.rawtlt)", "means run from"):
        assert any(doubt in line for line in result["warnings"])
        assert doubt in told
    result, _ = run("recipe=detector", "input=flat.mrc", "periodic=true", "output=flat")
    assert result["warnings"] == []


def test_counts_without_scale_make_no_camera(here):
    """Images of mean 0 have a noise spectrum, but no electrons."""
    with mrcfile.open("flat.mrc") as file:
        write_mrc(Path("zero.mrc"), file.data - file.data.mean() - 1, 1.2)
    result, folder = run("recipe=detector", "input=zero.mrc", "output=a")
    assert "no configuration is written" in result["warnings"][0]
    assert not (folder / "detector").exists() and (folder / "detector.png").is_file()
    result, folder = run("recipe=detector", "input=zero.mrc", "output=b", "gain=10",
                         "electrons=22")
    assert (folder / "detector/fitted.yaml").is_file() and result["warnings"] == []


def test_ctf(micrograph, capsys):
    result, folder = run("recipe=ctf", "input=ice.mrc")
    assert names(folder) == {"results.json", "metadata.json", "0001_ice.png", "0001_ice.yaml",
                             "micrographs_ctf.star"}
    fit, = result["fits"]
    assert fit["reliable"] and fit["name"] == "ice.mrc"
    # 5 standard errors as reported.
    assert abs(fit["defocus_u"] - 12200) < 5 * fit["errors"][0] < 300
    assert abs(fit["defocus_v"] - 11800) < 5 * fit["errors"][1] < 300
    star = starfile.read(folder / "micrographs_ctf.star")
    assert star["micrographs"]["rlnDefocusU"][0] == pytest.approx(fit["defocus_u"], abs=0.01)
    assert star["micrographs"]["rlnDefocusAngle"][0] == pytest.approx(
        fit["astigmatism_angle"], abs=0.01)
    assert star["optics"]["rlnMicrographPixelSize"][0] == 1.35
    scene = load_scene(folder / "0001_ice.yaml")
    assert scene.optics.defocus == pytest.approx((fit["defocus_u"] + fit["defocus_v"]) / 2, 1e-5)
    assert scene.optics.astigmatism == pytest.approx(fit["defocus_u"] - fit["defocus_v"], 1e-4)
    assert scene.pixel_size == 1.35 and len(plan(scene).tilts) == 1
    assert "ice.mrc: defocus" in capsys.readouterr().out
    assert not unfinished_folder("tem_taichi_fit").exists()


def test_ctf_of_noise_is_not_reliable(here, capsys):
    """Neither JSON nor the star file has a number for a resolution that is nowhere."""
    noise = np.random.default_rng(0).normal(100, 10, (128, 128)).astype(np.float32)
    write_mrc(Path("noise.mrc"), noise, 1.35)
    result, folder = run("recipe=ctf", "input=noise.mrc")
    assert not result["fits"][0]["reliable"] and result["fits"][0]["doubts"]
    assert "UNRELIABLE" in capsys.readouterr().out
    assert not (folder / "micrographs_ctf.star").exists()
    star = starfile.read(folder / "micrographs_ctf_doubtful.star")["micrographs"]
    assert np.isfinite(star["rlnCtfMaxResolution"][0])


def test_bad_images_do_not_end_a_batch(here, capsys):
    """They are listed with their reason, and only good fits are in the star file."""
    good = micrographs(12000)[0]
    nan = good.copy()
    nan[3, 4] = np.nan
    for name, image in (("a", good), ("b", np.ones_like(good))):
        write_mrc(Path(f"{name}.mrc"), image, 1.35)
    write_mrc(Path("c.mrc"), good, 1.35)
    with mrcfile.open("c.mrc", "r+") as file:
        file.data[:] = nan
    Path("d.mrc").write_bytes(Path("a.mrc").read_bytes()[:5000])
    result, folder = run("recipe=ctf", "input=[b.mrc,d.mrc,c.mrc,a.mrc]")
    blank, spoiled, fine, cut = result["fits"]
    assert cut["name"] == "d.mrc" and "d.mrc" in cut["failed"] and not cut["reliable"]
    assert "every value is 1" in blank["failed"] and "not finite" in spoiled["failed"]
    assert blank["defocus_u"] is None and not blank["reliable"] and "failed" not in fine
    assert any("3 of 4 images could not be fitted" in text for text in result["warnings"])
    assert "b.mrc: FAILED" in capsys.readouterr().out
    star = starfile.read(folder / "micrographs_ctf.star")["micrographs"]
    assert list(star["rlnMicrographName"]) == ["a.mrc"]
    assert not (folder / "micrographs_ctf_doubtful.star").exists()


def test_ctf_of_particles(here):
    """One row for the stack, whose images are those of one micrograph."""
    boxes = micrographs(12000)[0][:288, :288].reshape(3, 96, 3, 96).swapaxes(1, 2)
    write_mrc(Path("boxes.mrcs"), boxes.reshape(-1, 96, 96).copy(), 1.35)
    result, _ = run("recipe=ctf", "input=boxes.mrcs", "average=true")
    fit, = result["fits"]
    assert fit["name"] == "boxes.mrcs"
    assert abs((fit["defocus_u"] + fit["defocus_v"]) / 2 / 12000 - 1) < 0.03


def test_large_pixels_have_a_range_of_their_own(here, capsys):
    """10 A: 30 to 4 A would leave too few rings, which the message says where it is asked for."""
    noise = np.random.default_rng(0).normal(100, 10, (256, 256)).astype(np.float32)
    write_mrc(Path("coarse.mrc"), noise, 10.0)
    result, _ = run("recipe=ctf", "input=coarse.mrc")
    assert "failed" not in result["fits"][0]
    assert main(["recipe=ctf", "input=coarse.mrc", "resolution=[30,4]", "output=b"]) == 2
    assert "resolution=[60,20]" in capsys.readouterr().err


def test_ctf_of_a_spectrum(here):
    spectrum = average_periodogram(micrographs(9000)[0], 192)
    write_mrc(Path("spectrum.mrc"), spectrum.numpy().astype(np.float32), 1.35)
    result, _ = run("recipe=ctf", "input=spectrum.mrc", "spectrum=true")
    fit, = result["fits"]
    assert abs((fit["defocus_u"] + fit["defocus_v"]) / 2 - 9000) < 5 * max(fit["errors"][:2])


def test_thickness(here):
    result, folder = run("recipe=thickness", "input=series.mrc", "mean_free_path=3950")
    assert any("an offset of 1 %" in line for line in result["assumptions"])
    assert names(folder) == {"results.json", "metadata.json", "thickness.png", "scene.yaml"}
    scene = load_scene(folder / "scene.yaml")
    # Along z of a specimen whose normal is turned about y; the tilts bring it back.
    normal = np.deg2rad(result["normal_angle_deg"])
    assert scene.specimen.ice.thickness == pytest.approx(
        result["thickness_A"] / np.cos(normal), 1e-5)
    assert plan(scene).tilts["tilt_angle"].to_numpy() == pytest.approx(np.sort(TILTS))
    assert result["thickness_over_mean_free_path"] == pytest.approx(
        0.5, abs=5 * result["standard_error"])
    # Means of 4096 pixels of 500 counts: 0.07 %, of a path that doubles.
    assert result["standard_error"] < 0.005
    assert result["normal_angle_deg"] == pytest.approx(5, abs=5 * result["normal_error_deg"])
    assert result["thickness_A"] == pytest.approx(
        3950 * result["thickness_over_mean_free_path"])


def test_a_dark_field_series_is_refused(here, capsys):
    with mrcfile.open("series.mrc") as file:
        bright = file.data.copy()
    with mrcfile.new("dark.mrc") as file:
        file.set_data((2 * bright.max() - bright).astype(np.float32))
    shutil.copy("series.rawtlt", "dark.rawtlt")
    for recipe in ("thickness", "twin"):
        assert main(["recipe=" + recipe, "input=dark.mrc", "pixel_size=10"]) == 2
    assert capsys.readouterr().err.count("brighter when tilted") >= 1
    assert not Path("tem_taichi_fit").exists()


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_angles_as_a_table(here, name):
    mark = "\t" if name.endswith("tsv") else ","
    Path(name).write_text("\n".join([f"# image{mark}angle_deg", *(
        f"{n}{mark}{angle}" for n, angle in enumerate(TILTS))]))
    Path("series.rawtlt").unlink()
    result, _ = run("recipe=thickness", "input=series.mrc", f"angles={name}")
    assert result["thickness_over_mean_free_path"] == pytest.approx(0.5, abs=0.02)


REAL = """\
defaults: [simulate, override specimen: empty, override detector: CAMERA, _self_]
name: real
shape: [128, 128]
pixel_size: 8.0
dose: 3
optics: {defocus: 40000}
detector: {gain: 5.0}
specimen: {ice: {thickness: 1500}}
interaction: {slice_thickness: 500}
tilts: {minimum: -54, maximum: 54, step: 9}
compute: {arch: cpu}
output: real
"""


# Of white noise the spectra tell the level themselves. That of the Falcon 4 falls 65-fold to
# Nyquist; at low frequency it lies beneath the crowd's and is told by its smoothness and the
# nominal dose: spectra alone would take anything from 2.9 to 4.9 for 5 (misfit 0.0038 to 0.0051).
@pytest.mark.parametrize(("camera", "tolerance"), [("k3_300kv", 0.02), ("falcon4ec_300kv", 0.05)])
def test_twin(here, camera, tolerance):
    """A simulated series and its table lead to a scene of the same ice, and to the same means."""
    Path("real.yaml").write_text(REAL.replace("CAMERA", camera))
    assert simulate(["real.yaml"]) == 0
    result, folder = run("recipe=twin", "input=real/real.mrc", "tile=32", "seed=5")
    assert names(folder) == {"results.json", "metadata.json", "twin.png", "twin.yaml"}
    # Means of 128^2 pixels of 100 electrons: 0.08 %, of an exponent of 0.4 to 0.7.
    assert result["thickness_A"] == pytest.approx(1500, rel=0.02)
    assert result["nominal_dose"] == 3 and "no membranes" in result["assumptions"][-2]
    assert not any("confidence" in line or "together" in line for line in result["assumptions"])
    scene = load_scene(folder / "twin.yaml")
    assert scene.seed == 5 and list(scene.shape) == [128, 128]
    assert scene.detector.gain == pytest.approx(5, rel=tolerance)
    begun = time.perf_counter()
    assert simulate([str(folder / "twin.yaml")]) == 0
    # A trial of some slices; machines get busy and idle meanwhile.
    assert 0.2 < result["simulation_seconds"] / (time.perf_counter() - begun) < 5
    assert "# Simulating it takes about" in (folder / "twin.yaml").read_text()
    with mrcfile.open("twin/twin.mrc") as twin, mrcfile.open("real/real.mrc") as real:
        np.testing.assert_allclose(twin.data.mean((1, 2)), real.data.mean((1, 2)), rtol=0.005)


def test_units_in_the_names_of_a_tables_columns(here):
    table = ["# angle_deg\tprior_dose_e_per_A2\tdefocus_um\tshift_x_nm", *(
        f"{angle}\t{2 * n}\t1.5\t0.3" for n, angle in enumerate(TILTS))]
    Path("series.tsv").write_text("\n".join(table))
    recipe = read_recipe(["recipe=twin", "input=series.mrc", "angles=series.tsv"])
    read = series_table(recipe, "series.mrc", len(TILTS))
    assert list(read) == ["tilt_angle", "prior_dose", "defocus", "shift_x"]
    np.testing.assert_allclose(read.iloc[2], [TILTS[2], 4, 15000, 3])


def test_real_tilt_series(here, shared, capsys):
    """EMPIAR-10499: its thickness in mean free paths, whatever the counts are; and a twin."""
    data = shared / "data/tilt"
    title, *lines = (data / "empiar10499_00254.tsv").read_text().splitlines()
    (here / "every4th.tsv").write_text("\n".join([title, *lines[::4]]))
    with mrcfile.open(data / "empiar10499_00254_y0-310.mrc") as file:
        write_mrc(here / "every4th.mrc", file.data[::4].astype(np.float32), 10.0)
    words = ["input=every4th.mrc", "angles=every4th.tsv"]
    result, _ = run("recipe=thickness", *words, "output=t")
    # By hand: the table's full frames have a mean of 39.84 at 0 deg, of 18.96 and 22.06 at -57
    # and 57: ln(39.84 / 20.5) / (1 / cos 57 - 1) = 0.79, to the 2 % that means scatter.
    assert result["thickness_over_mean_free_path"] == pytest.approx(0.79, abs=0.04)
    assert any("no slab" in line for line in result["warnings"])
    assert 0.06 < result["field_deviation"] < 0.12  # thirds of its columns: 0.89, 0.82, 0.70
    twin, folder = run("recipe=twin", *words, "output=w", "shape=[64,64]", "beads=null")
    assert any("no slab" in line for line in twin["warnings"])
    assert twin["thickness_over_mean_free_path"] == pytest.approx(
        result["thickness_over_mean_free_path"], rel=0.05)
    assert simulate([str(folder / "twin.yaml"), "--check"]) == 0


# --- what they refuse ---

@pytest.mark.parametrize(("words", "said"), [
    (["recipe=detector"], "input=[]"),
    (["recipe=detector", "input=none.mrc"], "none.mrc"),
    (["recipe=detector", "input=[flat.mrc,flat.mrc]"], "twice"),
    (["input=flat.mrc"], "recipe=None"),
    (["recipe=dector", "input=flat.mrc"], "recipe=dector: must be one of beads, ctf, denoise"),
    (["recipe=none.yaml", "input=flat.mrc"], "recipe=none.yaml: no such file"),
    (["recipe=ctf", "input=flat.mrc", "volage=200"], "volage=200: no such key; did you mean vol"),
    (["recipe=ctf", "input=flat.mrc", "voltage=high"], 'voltage="high": must be a number'),
    (["recipe=ctf", "input=flat.mrc", "voltage=200,300"], "voltage"),
    (["recipe=ctf", "input=flat.mrc", "~voltage"], "~voltage"),
    (["recipe=ctf", "input=flat.mrc", "voltage=nan"], "voltage=nan"),
    (["recipe=ctf", "input=flat.mrc", "spectrum=2"], "spectrum=2: must be true or false"),
    (["recipe=ctf", "input=flat.mrc", "defocus=[60000,1500]"], "defocus=(60000.0, 1500.0)"),
    (["recipe=ctf", "input=flat.mrc", "defocus=[1]"], "defocus=[1.0]: must be 2 positive"),
    (["recipe=ctf", "input=flat.mrc", "resolution=[4,30]"], "resolution=(4.0, 30.0)"),
    (["recipe=ctf", "input=flat.mrc", "pixel_size=1.35"], "pixel_size=1.35: flat.mrc says 1.2"),
    (["recipe=ctf", "input=bare.mrc"], "pixel_size=null: bare.mrc has none"),
    (["recipe=ctf", "input=constant.mrc"], "input: constant.mrc, image 1: image: every value is 1"),
    (["recipe=ctf", "input=nan.mrc"], "input: nan.mrc"),
    (["recipe=ctf", "input=broken.mrc"], "input: broken.mrc: can't be read as MRC"),
    (["recipe=ctf", "input='a b.mrc'"], 'input="a b.mrc": must be a name without blanks'),
    (["recipe=detector", "input=constant.mrc"], "input: crops[0]: is constant"),
    (["recipe=detector", "input=[flat.mrc,edge.mrc]"], "input: crops: must be images of one size"),
    (["recipe=detector", "input=flat.mrc", "size=100"], "size=100"),
    (["recipe=detector", "input=flat.mrc", "pick=true"], "input: image 1: micrograph"),
    (["recipe=detector", "input=flat.mrc", "pick=true", "method=edge"], "pick=true"),
    (["recipe=detector", "input=flat.mrc", "method=edge", "highest=0.1"], "highest=0.1"),
    (["recipe=detector", "input=flat.mrc", "kind=cmos"], 'kind="cmos"'),
    (["recipe=detector", "input=flat.mrc", "dqe=2"], "dqe=2"),
    (["recipe=detector", "input=edge.mrc", "method=edge", "dqe=-1"], "dqe=-1"),
    (["recipe=detector", "input=flat.mrc", "gain=0"], "gain=0"),
    (["recipe=thickness", "input=[series.mrc,flat.mrc]"], "must be one stack of a tilt series"),
    (["recipe=thickness", "input=flat.mrc"], "angles=null: there is no .mdoc"),
    (["recipe=thickness", "input=flat.mrc", "angles=series.rawtlt"],
     "angles=series.rawtlt: has 21 rows: must have one tilt angle for each of the 6 images"),
    (["recipe=thickness", "input=series.mrc", "angles=none.tlt"], "angles: none.tlt"),
    (["recipe=thickness", "input=series.mrc", "angles=words.csv"],
     "angles: row 1, column tilt_angle: 'steep' must be a number"),
    (["recipe=thickness", "input=series.mrc", "angles=cell.tsv"],
     "angles: row 3, column defocus_um: 'auto' must be a number"),
    (["recipe=thickness", "input=series.mrc", "angles=twice.csv"],
     "angles: column angle: there is another of tilt_angle"),
    (["recipe=thickness", "input=series.mrc", "angles=blank.csv"],
     "angles=blank.csv: row 2, tilt_angle=nan: must be within 90 of 0 [deg]"),
    (["recipe=thickness", "input=series.mrc", "angles=wide.csv"],
     "angles: wide.csv: rows have more cells than there are names of columns"),
    (["recipe=detector", "input=signed.mrc", "method=focal_loss"],
     "electrons=null: the images' mean is -"),
    (["recipe=detector", "input=flat.mrc", "method=focal_loss", "gain=1e-6"],
     "electrons=2.2"),
    (["recipe=thickness", "input=few.mrc", "angles=few.tlt"], "at least 4 tilts"),
    (["recipe=twin", "input=series.mrc"], "dose and prior_dose are both missing"),
    (["recipe=twin", "input=series.mrc", "masses=[-1]"], "masses=[-1.0]"),
    (["recipe=twin", "input=series.mrc", "tile=30"], "tile=30"),
    (["recipe=twin", "input=series.mrc", "particles.p.count=0"], "p"),
    (["recipe=detector", "input=flat.mrc", "output=flat.mrc"], "output: "),
    (["recipe=detector", "input=flat.mrc", "output=."], "output: "),
    (["recipe=detector", "input=flat.mrc", "--fast"], "--fast: no such option"),
    (["recipe=detector", "input=flat.mrc", "word"], "word"),
    (["mine.yaml", "input=flat.mrc"], "mine.yaml: must be KEY=VALUE; a file of settings"),
    (["recipe=detector", "input=flat.mrc", "count=[1"], "count=[1"),
])
def test_wrong_input_is_one_line_and_writes_nothing(here, capsys, words, said):
    write_mrc(Path("nan.mrc"), np.ones((64, 64), np.float32), 1.35)
    with mrcfile.open("nan.mrc", mode="r+", permissive=True) as file:
        file.data[..., 3, 3] = np.nan
    shutil.copy("flat.mrc", "bare.mrc")
    with mrcfile.open("bare.mrc", mode="r+") as file:
        file.voxel_size = 0.0
    Path("broken.mrc").write_bytes(Path("flat.mrc").read_bytes()[:2000])
    shutil.copy("flat.mrc", "a b.mrc")
    signed = np.random.default_rng(0).normal(-50, 1, (2, 64, 64))
    write_mrc(Path("signed.mrc"), signed.astype(np.float32), 1.0)
    Path("words.csv").write_text("tilt_angle\n" + "\n".join(["steep"] * len(TILTS)))
    rows = [[f"{angle}", "3.0"] for angle in TILTS]
    rows[2][1] = "auto"
    Path("cell.tsv").write_text("tilt_angle\tdefocus_um\n" + "\n".join(map("\t".join, rows)))
    Path("twice.csv").write_text("tilt_angle,angle\n1,2\n")
    Path("blank.csv").write_text("tilt_angle,dose\n1,2\n,2\n")
    Path("wide.csv").write_text("tilt_angle,dose\n1,2,3\n2,3,4\n")
    write_mrc(Path("few.mrc"), np.random.default_rng(0).poisson(9, (3, 64, 64)).astype("f4"), 1.0)
    write_rawtlt(Path("few.tlt"), [-30, 0, 30])
    before = names(here)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err, err
    assert names(here) == before


def test_nothing_is_overwritten_unless_asked(here, capsys):
    run("recipe=detector", "input=flat.mrc")
    before = Path("tem_taichi_fit/results.json").read_bytes()
    assert main(["recipe=detector", "input=flat.mrc", "kind=integrating"]) == 2
    assert "exists already; choose another folder or use overwrite=true" in capsys.readouterr().err
    assert Path("tem_taichi_fit/results.json").read_bytes() == before
    run("recipe=detector", "input=flat.mrc", "kind=integrating", "overwrite=true")
    assert Path("tem_taichi_fit/results.json").read_bytes() != before


def test_an_input_is_never_overwritten(here, capsys):
    """Not by another command, nor where the folder is an earlier output of the same fit."""
    run("recipe=detector", "input=flat.mrc", "output=o")
    Path("of_o.mrc").symlink_to("o/flat.mrc")
    shutil.copy("flat.mrc", "o/flat.mrc")
    before = names(here)
    for file in ("o/flat.mrc", "of_o.mrc"):
        assert main(["recipe=detector", f"input={file}", "output=o", "overwrite=true"]) == 2
        assert f"o: holds {file}, which this run reads" in capsys.readouterr().err
    Path("o/flat.mrc").unlink()
    assert main(["recipe=thickness", "input=series.mrc", "output=o", "overwrite=true"]) == 2
    assert "written by fit recipe=detector, not by fit recipe=thickness" in capsys.readouterr().err
    assert names(here) == before - {"o/flat.mrc", "of_o.mrc"}


def test_home_in_names_is_the_home(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert main(["recipe=thickness", "input=~/series.mrc", "angles=~/series.rawtlt",
                 "output=~/fitted"]) == 0
    assert (here / "fitted/results.json").is_file() and not Path("~").exists()


# --- interruptions ---

def test_what_is_fitted_before_a_wrong_file_is_kept(micrograph, capsys, monkeypatch):
    assert main(["recipe=ctf", "input=[ice.mrc,series.mrc]"]) == 2
    assert "input: series.mrc has pixels of 4 A, ice.mrc of 1.35 A" in capsys.readouterr().err
    monkeypatch.setattr(recipe_ctf, "fit_micrograph", None)  # needed no more
    result, _ = run("recipe=ctf", "input=ice.mrc")
    assert result["fits"][0]["reliable"] and not unfinished_folder("tem_taichi_fit").exists()


def test_fits_go_on_after_an_interruption(here, capsys, monkeypatch):
    """As if it had never stopped: only what is missing is fitted, and nothing hidden remains."""
    stack = micrographs(9000, 12000, 15000, size=256)
    write_mrc(Path("stack.mrcs"), stack, 1.35)
    words = ["recipe=ctf", "input=stack.mrcs", "resolution=[30,5]"]
    whole, first = run(*words, "output=whole")
    fitted, calls = recipe_ctf.fit_micrograph, []

    def stopped(image, *rest):
        calls.append(image)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fitted(image, *rest)

    monkeypatch.setattr(recipe_ctf, "fit_micrograph", stopped)
    assert main([*words, "output=out"]) == 130
    assert "interrupted" in capsys.readouterr().err
    kept = unfinished_folder("out")
    assert not Path("out").exists() and len(list(kept.glob("*.json"))) == 2
    # What was cut short counts as not there.
    sorted(kept.glob("*.json"))[0].write_text('{"defocus_u": 1')
    assert run(*words, "output=out")[0] == whole
    assert len(calls) == 3 + 2 and np.array_equal(calls[-1], stack[2])
    assert names("out") == names(first) and not kept.exists()
    for file in Path("out").glob("*.png"):
        assert file.read_bytes() == (first / file.name).read_bytes()


def test_a_second_fit_of_the_same_output_gets_one_line(here, capsys):
    write_mrc(Path("stack.mrcs"), micrographs(9000, size=256), 1.35)
    with unfinished("tem_taichi_fit"):
        assert main(["recipe=ctf", "input=stack.mrcs"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: output: ") and "another run is at work there" in err
    assert err.count("\n") == 1 and names(here) >= {"stack.mrcs"}
    assert not unfinished_folder("tem_taichi_fit").exists()


def test_other_settings_are_fitted_anew(here, monkeypatch):
    write_mrc(Path("stack.mrcs"), micrographs(9000, size=256), 1.35)
    write = recipe_ctf.star_tables
    monkeypatch.setattr(recipe_ctf, "star_tables",
                        lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["recipe=ctf", "input=stack.mrcs", "voltage=200"]) == 130
    monkeypatch.setattr(recipe_ctf, "star_tables", write)
    kept = unfinished_folder("tem_taichi_fit")
    foreign = kept / "notes.txt"
    foreign.write_text("mine")
    result, _ = run("recipe=ctf", "input=stack.mrcs", "voltage=300")
    fit, = result["fits"]
    assert abs((fit["defocus_u"] + fit["defocus_v"]) / 2 - 9000) < 5 * max(fit["errors"][:2])
    assert names(kept) == {"notes.txt"}  # only what is ours is deleted

