"""The notebooks run from top to bottom, each up to the asserts on what it claims."""

import base64
import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.render_notebooks import digest, page

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def jupyter():
    """The modules nbformat and nbclient, whose own imports may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nbclient
        import nbformat
    return nbformat, nbclient


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs(jupyter, path):
    nbformat, _ = jupyter
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert "assert " in notebook.cells[-1].source  # ends with its claim


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(jupyter, path, tmp_path):
    nbformat, nbclient = jupyter
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3",
                                     resources={"metadata": {"path": str(tmp_path)}})
    # The kernel imports this checkout, as the tests do, and draws without a screen.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's client; the kernel is another process
        client.execute(env=environment)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_page_is_not_out_of_date(jupyter, path):
    """If this fails: python -m experiments.render_notebooks NAME."""
    nbformat, _ = jupyter
    text = (ROOT / "docs" / "notebooks" / f"{path.stem}.md").read_text(encoding="utf-8")
    assert f"<!-- cells {digest(nbformat.read(path, as_version=4).cells)} -->" in text
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+\.png)\)", text)
    assert pictures and len(set(pictures)) == len(pictures)
    for name in pictures:
        file = ROOT / "docs" / "notebooks" / name
        assert file.stat().st_size < 250_000
        assert np.asarray(Image.open(file).convert("L")).std() > 5  # shows something


def test_pages_are_small_and_have_no_pictures_left_over():
    pages = ROOT / "docs" / "notebooks"
    text = "".join(path.read_text(encoding="utf-8") for path in pages.glob("*.md"))
    assert all(f"({path.name})" in text for path in pages.glob("*.png"))
    assert sum(path.stat().st_size for path in pages.iterdir()) < 900_000
    assert {path.stem for path in pages.glob("*.md")} == {path.stem for path in NOTEBOOKS}


def test_a_page_holds_text_code_and_outputs():
    picture = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).repeat(40).reshape(16, 640)).save(picture, "png")
    cells = [{"cell_type": "markdown", "source": "# Title"},
             {"cell_type": "code", "source": "print(1)", "outputs": [
                 {"output_type": "stream", "name": "stdout", "text": "1\n"},
                 {"output_type": "stream", "name": "stderr", "text": "a bar\n"},
                 {"output_type": "display_data", "data": {
                     "text/plain": "<Figure>",
                     "image/png": base64.b64encode(picture.getvalue()).decode()}}]}]
    text, pictures = page("one", cells)
    assert text.startswith("# Title\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n![")
    assert "(one_1.png)" in text and "a bar" not in text and "<Figure>" not in text
    assert Image.open(io.BytesIO(pictures["one_1.png"])).size == (640, 16)
    changed = [cells[0] | {"source": "# Other"}, cells[1]]
    assert digest(changed) != digest(cells)
    assert digest([cells[0], cells[1] | {"outputs": []}]) == digest(cells)
