"""The notebooks run from top to bottom, each up to the asserts on what it claims."""

import os
import warnings
from pathlib import Path

import pytest

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
