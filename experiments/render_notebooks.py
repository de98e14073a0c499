"""Run the notebooks and write what they show as docs/notebooks/NAME.md with small pictures.

    python -m experiments.render_notebooks [NAME ...]

The notebooks themselves are kept without outputs. Each page ends with a digest of the cells it was
made from, by which a test knows that it is not out of date.
"""

import base64
import hashlib
import io
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "notebooks"
_WIDTH = 900  # pixels of a picture
_LINES = 30  # of text that a cell prints


def digest(cells: Sequence[Mapping[str, Any]]) -> str:
    """Of the kinds and sources of all cells, whatever their outputs."""
    text = "\x00".join(f"{cell['cell_type']}\x01{cell['source']}" for cell in cells)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def page(name: str, cells: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, bytes]]:
    """A notebook with its outputs as Markdown, and its pictures by the names of their files.

    Args:
        name: of the notebook's file, without its ending.
        cells: of nbformat 4, run.
    """
    parts, pictures = [], {}
    for cell in cells:
        if cell["cell_type"] == "markdown":
            parts.append(cell["source"])
            continue
        parts.append(f"```python\n{cell['source']}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            text = output.get("text", "") or data.get("text/plain", "")
            if "image/png" in data:
                file = f"{name}_{len(pictures) + 1}.png"
                pictures[file] = smaller(base64.b64decode(data["image/png"]))
                parts.append(f"![Figure {len(pictures)}]({file})")
            elif output.get("name") != "stderr" and text.strip():
                lines = text.rstrip().splitlines()
                rest = ["..."] if len(lines) > _LINES else []
                parts.append("```text\n" + "\n".join([*lines[:_LINES], *rest]) + "\n```")
    parts.append(f"*The outputs of [{name}.ipynb](../../notebooks/{name}.ipynb), by `python -m "
                 f"experiments.render_notebooks {name}`.*\n\n<!-- cells {digest(cells)} -->\n")
    return "\n\n".join(parts), pictures


def smaller(png: bytes) -> bytes:
    """A picture of at most 900 pixels across, in 256 colours of its own."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.width > _WIDTH:
        size = (_WIDTH, round(image.height * _WIDTH / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.quantize(256).save(file, "png", optimize=True)
    return file.getvalue()


def run(path: Path) -> list[Mapping[str, Any]]:
    """Cells of a notebook that has been run in a kernel that imports this checkout."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's client; the kernel is another process
        import nbclient
        import nbformat

        notebook = nbformat.read(path, as_version=4)
        environment = {**os.environ, "PYTHONPATH": str(ROOT),
                       "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        with TemporaryDirectory() as folder:  # where it may write
            nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3",
                                    resources={"metadata": {"path": folder}},
                                    ).execute(env=environment)
    return list(notebook.cells)


def main() -> None:
    names = sys.argv[1:] or sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    PAGES.mkdir(parents=True, exist_ok=True)
    for name in names:
        text, pictures = page(name, run(ROOT / "notebooks" / f"{name}.ipynb"))
        for old in PAGES.glob(f"{name}_*.png"):
            old.unlink()
        for file, png in pictures.items():
            (PAGES / file).write_bytes(png)
        (PAGES / f"{name}.md").write_text(text, encoding="utf-8")
        print(f"wrote {PAGES / name}.md and {len(pictures)} pictures")


if __name__ == "__main__":
    main()
