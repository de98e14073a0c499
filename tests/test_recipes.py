"""What a recipe of one's own takes, and the one writer of what recipes find."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
from matplotlib.figure import Figure

import tem_taichi
from tem_taichi import recipes
from tem_taichi.files.mrc import write_mrc
from tem_taichi.fit import main
from tem_taichi.recipes.load import recipe_names
from tem_taichi.recipes.result import Result, write_result

ROOT = Path(tem_taichi.__file__).parent.parent


def example():
    """The recipe that docs/recipes.md shows."""
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    return text.partition("```python\n")[2].partition("```")[0]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a stack of known means and the example beside it."""
    monkeypatch.chdir(tmp_path)
    means = 30.0 * np.arange(1, 5)[:, None, None]
    counts = np.random.default_rng(0).poisson(means, (4, 24, 32)).astype(np.float32)
    write_mrc(Path("a.mrc"), counts, 2.0)
    Path("mean_dose.py").write_text(example(), encoding="utf-8")
    return tmp_path


def check_mean_dose(folder, gain):
    """What the example finds in the stack, from its files."""
    means = mrcfile.read("a.mrc").mean((1, 2)).astype(float)
    doses = means / gain / 2.0**2
    result = json.loads((folder / "results.json").read_text())
    assert result["mean_dose_e_per_A2"] == pytest.approx(doses.mean(), rel=1e-5)
    assert "gain" in result["assumptions"][0]
    table = pd.read_csv(folder / "doses.csv")
    assert list(table["image"]) == [1, 2, 3, 4]
    np.testing.assert_allclose(table["dose_e_per_A2"], doses, rtol=1e-5)  # of single precision
    assert matplotlib.image.imread(folder / "doses.png").std() > 0.05
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["recipe"] == "mean_dose" and metadata["settings"]["gain"] == gain
    assert set(metadata["files"]) == {"results.json", "doses.csv", "doses.png"}


def test_a_recipe_of_ones_own_is_one_file(here):
    """Of some twenty lines; the command line finds it and all it gives is in the folder."""
    assert len([line for line in example().splitlines() if line.strip()]) <= 30
    done = subprocess.run(
        [sys.executable, "-m", "tem_taichi.fit", "recipe=mean_dose.py", "input=a.mrc", "gain=5"],
        capture_output=True, text=True, timeout=120, cwd=here, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "mean_dose_e_per_A2: 3.7" in done.stdout and "assumption: " in done.stdout
    check_mean_dose(here / "tem_taichi_fit", 5.0)
    assert {p.name for p in here.iterdir()} - {"__pycache__"} == {
        "a.mrc", "mean_dose.py", "tem_taichi_fit"}


def test_a_file_more_in_the_package_is_a_recipe(here, monkeypatch, capsys):
    """No other place is touched: --help, --show, settings in a YAML file and checks know it."""
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(here)])
    monkeypatch.setattr(recipes, "mean_dose", None, raising=False)  # so that both are as before
    monkeypatch.setitem(sys.modules, "tem_taichi.recipes.mean_dose", None)
    del sys.modules["tem_taichi.recipes.mean_dose"]
    assert list(recipe_names()) == ["beads", "ctf", "denoise", "detector", "look",
                                    "mean_dose", "reconstruct", "style", "thickness", "twin"]
    assert main(["--help"]) == 0
    assert "  mean_dose   Mean dose of images." in capsys.readouterr().out
    assert main(["recipe=mean_dose", "--show"]) == 0
    shown = capsys.readouterr().out
    assert "# counts per electron\ngain: 1.0\n" in shown
    Path("mine.yaml").write_text(shown.replace("gain: 1.0", "gain: 4").replace(
        "input: []", "input: a.mrc"))
    assert main(["recipe=mine.yaml", "output=o"]) == 0
    check_mean_dose(here / "o", 4.0)
    for words, said in ((["gian=2"], "gian=2: no such key; did you mean gain?"),
                        (["gain=high"], 'gain="high": must be a number'),
                        (["gain=-1"], "gain=-1.0: must be above 0")):
        assert main(["recipe=mean_dose", "input=a.mrc", "output=p", *words]) == 2
        assert said in capsys.readouterr().err
    assert not Path("p").exists()


def test_a_recipe_may_have_the_settings_of_another(here):
    Path("count.py").write_text("from tem_taichi.recipes.ctf import CtfRecipe\n"
                                "from tem_taichi.recipes.result import Result\n"
                                "def run(recipe, report):\n"
                                "    return Result({'files': len(recipe.input)})\n"
                                "RECIPE = (CtfRecipe, run)\n")
    assert main(["recipe=count.py", "input=a.mrc"]) == 0
    assert json.loads(Path("tem_taichi_fit/results.json").read_text()) == {"files": 1}
    assert json.loads(Path("tem_taichi_fit/metadata.json").read_text())["recipe"] == "count"


@pytest.mark.parametrize(("words", "said"), [
    ("recipe=none.py", "recipe=none.py: no such file"),
    ("recipe=plain.py", "recipe=plain.py: must have RECIPE = (settings, run)"),
    ("recipe=mine.yaml", "recipe=mean_dose.py: must be one of beads, ctf, denoise, detector, look, "
                         "reconstruct, style, thickness, twin, in mine.yaml"),
    ("recipe=result", "recipe=result: must be one of beads, ctf, denoise, detector, look, "
                      "reconstruct, style, thickness, twin, a YAML file"),
])
def test_what_is_no_recipe_is_refused(here, capsys, words, said):
    """A file of settings is data: it makes no program run."""
    Path("plain.py").write_text("x = 1\n")
    Path("mine.yaml").write_text("recipe: mean_dose.py\n")
    assert main([words, "input=a.mrc"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not Path("tem_taichi_fit").exists()


GIVES = """from tem_taichi.recipes.settings import Recipe
def run(recipe, report):
    return {"files": 1}
RECIPE = (Recipe, run)
"""


@pytest.mark.parametrize(("text", "said"), [
    ("def run(:\n", "recipe=own.py: cannot be loaded: SyntaxError: "),
    ("import no_such_module\n", "recipe=own.py: cannot be loaded: ModuleNotFoundError: No module"),
    ("raise SystemExit(0)\n", "recipe=own.py: cannot be loaded: SystemExit: 0"),
    ("RECIPE = 5\n", "recipe=own.py: must have RECIPE = (settings, run), a dataclass that "),
    (GIVES.replace("(Recipe, run)", "(run, Recipe)"), "recipe=own.py: must have RECIPE = "),
    (GIVES, "recipe=own: its function gave dict, must give a Result"),
])
def test_a_file_that_is_no_whole_recipe_is_refused_in_one_line(here, capsys, text, said):
    Path("own.py").write_text(text)
    assert main(["recipe=own.py", "input=a.mrc"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {said}") and err.count("\n") == 1
    assert not Path("tem_taichi_fit").exists()


def test_everything_of_a_result_is_written(tmp_path):
    cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    figure, picture = Figure(figsize=(1, 1), dpi=50), tmp_path / "kept.png"
    figure.savefig(picture)
    folder = tmp_path / "o"
    folder.mkdir()
    rows = pd.DataFrame({"rlnVoltage": [300.0, 200.0]})
    write_result(folder, Result(
        {"n": 2, "rows": [[1.0, None]]}, ["sharp"], [], tables={
            "a.csv": rows, "b.star": {"optics": rows, "particles": rows.iloc[:1]}},
        images={"i.mrc": (cube, 1.5)}, volumes={"maps/v.mrc": (cube.astype(float), 2.0)},
        scenes={"d/s.yaml": "dose: 1\n"}, figures={"f.png": figure, "g.png": picture}))
    assert json.loads((folder / "results.json").read_text()) == {
        "n": 2, "rows": [[1.0, None]], "assumptions": ["sharp"], "warnings": []}
    assert pd.read_csv(folder / "a.csv").equals(rows)
    star = starfile.read(folder / "b.star")
    assert list(star["optics"]["rlnVoltage"]) == [300, 200] and "particles" in star
    for name, pixel_size, kind in (("i.mrc", 1.5, 0), ("maps/v.mrc", 2.0, 1)):
        with mrcfile.open(folder / name) as file:
            assert np.array_equal(file.data, cube)
            assert file.voxel_size.x == pixel_size and file.header.ispg == kind
    assert (folder / "d/s.yaml").read_text() == "dose: 1\n"
    assert matplotlib.image.imread(folder / "f.png").shape[:2] == (50, 50)  # at its own dpi
    assert (folder / "g.png").read_bytes() == picture.read_bytes()
    with pytest.raises(ValueError, match=r"tables: t\.txt: must be one table in \.csv"):
        write_result(folder, Result({}, tables={"t.txt": rows}))
