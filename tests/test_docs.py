"""The pages of docs/: what they show runs, and what they show is all there is."""

import importlib.util
import json
import os
import re
import shlex
from pathlib import Path

import mrcfile
import pytest
import yaml

from tem_taichi import fit
from tem_taichi.scene.load import load_scene
from tem_taichi.simulate import main
from tests.test_package import BELOW

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def test_the_samples_of_the_page_on_parts_of_ones_own_run(tmp_path, monkeypatch, capsys):
    """In the page's order: files are written, Python runs in one namespace, commands follow."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "extend.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)
    files = {block.partition("\n")[0][2:]: block for block in blocks if block.startswith("# ")}
    assert set(files) == {"mine.yaml", "detector/mine.yaml", "brightness.py"}
    for name, block in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(block, encoding="utf-8")
    namespace = {"__name__": "extend"}
    for block in blocks:
        if block not in files.values():
            exec(compile(block, "extend.md", "exec"), namespace)
    for name in ("ball", "c34"):
        value = getattr(namespace[name], "radius", namespace[name])
        assert float(value.grad) != 0 and value.grad.isfinite()
    assert namespace["counts"].shape == (2, 64, 64)
    error = float(namespace["error_bars"](namespace["problem"], namespace["found"])["radius"])
    assert 0.03 < error < 0.5
    assert abs(float(namespace["found"]["radius"]) - 15) < 4 * error  # 6e-5 by chance
    programs = {"tem_taichi.simulate": main, "tem_taichi.fit": fit.main}
    for line in re.findall(r"^    python -m (.*)$", text, re.MULTILINE):
        name, *words = shlex.split(line)
        assert programs[name](words) == 0, capsys.readouterr().err
    scene = yaml.safe_load(Path("mine/scene.yaml").read_text())
    assert scene["detector"]["dqe_table"][1] == [0.25, 0.7]
    mean = float(mrcfile.read("mine/tilt_series.mrc").mean())
    found = json.loads(Path("bright/results.json").read_text())["mean_counts"]
    assert found == pytest.approx(mean, rel=1e-6)  # of float32


def test_the_scene_of_the_page_on_scenes(tmp_path):
    text = (DOCS / "scenes.md").read_text(encoding="utf-8")
    file = tmp_path / "my_scene.yaml"
    file.write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1], encoding="utf-8")
    scene = load_scene(file, ["optics.defocus=25000"])
    assert scene.optics.defocus == 25000 and scene.detector.name == "k3_300kv"
    assert list(scene.specimen.particles) == ["ferritin"]


def test_the_fit_of_the_page_on_gradients_runs_and_finds_what_it_says():
    text = (DOCS / "gradients.md").read_text(encoding="utf-8")
    namespace = {}
    exec(compile(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], "gradients.md", "exec"),
         namespace)
    found, bars = namespace["found"].values, namespace["bars"]
    said = re.search(r"# (\S+) \+- (\S+) A, (\S+) \+- (\S+) A\n", text).groups()
    for n, (name, value) in enumerate(namespace["truth"].items()):
        bar = float(bars[name])
        assert abs(float(found[name] - value)) < 4 * bar
        # Where the mean differs in its last bit another machine may draw other counts
        assert abs(float(found[name]) - float(said[2 * n])) < 4 * bar
        assert bar == pytest.approx(float(said[2 * n + 1]), rel=2e-2, abs=5e-3)  # digits, noise


def test_the_picture_of_the_rooms_is_that_of_their_table():
    """If this fails: python docs/rooms.py, and look at docs/rooms.svg."""
    spec = importlib.util.spec_from_file_location("rooms", DOCS / "rooms.py")
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)
    assert rooms.below() == {room: known - {"ground"} for room, known in BELOW.items()}
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.draw()


def test_every_figure_is_in_the_gallery_with_its_command():
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    shipped = [*(ROOT / "experiments/figures").glob("*.png"), *DOCS.rglob("*.png")]
    assert len(shipped) > 10
    for path in shipped:
        place = os.path.relpath(path, DOCS)
        assert f"]({place})" in text, place
    for command in re.findall(r"`python -m experiments\.(\w+)( \w+)?", text):
        assert (ROOT / "experiments" / f"{command[0]}.py").is_file()
        assert not command[1] or (ROOT / f"notebooks/{command[1].strip()}.ipynb").is_file() \
            or command[0] != "render_notebooks"
