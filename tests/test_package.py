import importlib
import re
from pathlib import Path

import tem_taichi as tt

ROOT = Path(tt.__file__).parent


def test_public_names_are_what_they_say_whatever_is_imported():
    """A submodule of the same name must not take a function's place."""
    for file in ROOT.rglob("*.py"):
        importlib.import_module(".".join(("tem_taichi", *file.relative_to(ROOT).with_suffix(
            "").parts)).removesuffix(".__init__"))
    for name in tt.__all__:
        assert callable(getattr(tt, name)), name
    assert set(tt.__all__) <= set(dir(tt))


def imports(file: Path) -> set[str]:
    return set(re.findall(r"^\s*(?:from|import) ([\w.]+)", file.read_text("utf-8"), re.MULTILINE))


def test_direction_of_dependencies():
    """Kernels know only Taichi; only the bridge, the device and stages know Taichi beside them;
    only the scene knows Hydra."""
    kernels = Path(importlib.import_module("tem_taichi.kernels").__file__).parent
    for file in kernels.glob("*.py"):
        assert imports(file) <= {"taichi", "collections.abc", "functools", "typing"}
    for file in ROOT.rglob("*.py"):
        names = imports(file)
        if "hydra" in {name.split(".")[0] for name in names}:
            assert file.stem in ("scene", "composition"), file
        if any(name.startswith("tem_taichi.kernels") for name in names):
            assert file.stem == "splatting", file
