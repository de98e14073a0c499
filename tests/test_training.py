"""The DataLoader of docs/training.md, as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

DOCUMENT = Path(__file__).parent.parent / "docs" / "training.md"


def run(folder, code):
    script = folder / "training.py"
    script.write_text(code)
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True,
                          timeout=300, cwd=folder)


def test_workers_after_an_image(tmp_path):
    """Spawned they go on where forked ones would wait for ever, and say so instead."""
    code = re.search("```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[1]
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["first (64, 64)", *["batch (3, 64, 64) True"] * 2]
    forked = run(tmp_path, code.replace('"spawn"', '"fork"').replace("num_workers=2",
                                                                     "num_workers=1"))
    assert forked.returncode == 1
    assert 'multiprocessing_context="spawn"' in forked.stderr
