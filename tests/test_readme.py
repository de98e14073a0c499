"""What the README shows works as it stands there."""

import re
import shlex
from pathlib import Path

import pytest

from tem_taichi import fit
from tem_taichi.simulate import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(language):
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL).group(1)


def test_scene(tmp_path, capsys):
    scene = tmp_path / "my_scene.yaml"
    scene.write_text(block("yaml"))
    # The trial is of an image as large as asked: smaller ones than the README's take a tenth.
    assert main([str(scene), "--check", "shape=[256,256]", f"output={tmp_path / 'out'}"]) == 0
    assert "41 images of 256 x 256 pixels" in capsys.readouterr().out


def test_python(capsys):
    namespace = {}
    exec(compile(block("python"), "README.md", "exec"), namespace)
    assert namespace["series"].images.shape == (5, 256, 256)
    assert namespace["slices"].shape == (16, 256, 256)


def commands(heading):
    """Arguments of each indented command below a heading; \\ goes on in the next line."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = re.sub(r"\\\n\s+", "", section).splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("    python")]
    assert all(word[:2] == ["python", "-m"] for word in words)
    return [word[2:] for word in words]


@pytest.mark.slow
def test_estimates_run_on_what_the_readme_simulates(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    programs = {"tem_taichi.simulate": main, "tem_taichi.fit": fit.main}
    for name, *words in commands("Estimate"):
        assert programs[name](words) == 0, (words, capsys.readouterr().err)
    written = {path.parent.name for path in tmp_path.glob("*/results.json")}
    assert written == {"its_ctf", "its_thickness", "my_twin", "its_noise", "in_the_ice",
                       "its_picture", "its_tilts", "its_tomogram", "its_look", "its_gold",
                       "in_its_style"}
    out = capsys.readouterr().out
    # The example's 20,000 A, along a beam whose axis is the ice's middle.
    u, v = map(float, re.search(r"defocus (\d+) (\d+) A at", out).groups())
    assert abs((u + v) / 2 - 20000) < 100 and "UNRELIABLE" not in out
