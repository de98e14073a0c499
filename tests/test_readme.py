"""What the README shows works as it stands there."""

import re
from pathlib import Path

from tem_taichi.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(language):
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL).group(1)


def test_scene(tmp_path, capsys):
    scene = tmp_path / "my_scene.yaml"
    scene.write_text(block("yaml"))
    assert main([str(scene), "--check", f"output={tmp_path / 'out'}"]) == 0
    assert "41 images of 1024 x 1024 pixels" in capsys.readouterr().out


def test_python(capsys):
    namespace = {}
    exec(compile(block("python"), "README.md", "exec"), namespace)
    assert namespace["series"].images.shape == (5, 256, 256)
    assert namespace["slices"].shape == (16, 256, 256)
